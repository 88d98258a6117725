"""What an import is refused for before it asks a service anything."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from weft_client.importing import import_dataset
from weft_common.errors import InvalidArgumentError


def test_import_writes_no_klt(tmp_path: Path) -> None:
    """The basis of klt lies where only a harvest writes: an import that asks for it is told what there is."""
    client = Mock()
    with pytest.raises(InvalidArgumentError, match="'uniform' or 'bf16'"):
        import_dataset(
            client, "a", tmp_path, model="models/m", model_revision="1", input_hook="mlp_in", output_hook="mlp_out",
            codec="klt",
        )  # fmt: skip
    assert not client.mock_calls
