"""What a model's folder tells without its weights being loaded."""

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["has_weight", "model_revision", "most_positions"]

_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def model_revision(folder: Path) -> str:
    """
    Identify a model: SHA-256 over the names, sizes and bytes of its configuration, weights and tokenizer files.

    Files are taken in order of name; other files (a README, a chat template) do not count.
    """
    digest = hashlib.sha256()
    files = [folder / "config.json", *folder.glob("*.safetensors"), *(folder / name for name in _TOKENIZER_FILES)]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as handle:
            while piece := handle.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def most_positions(config: Any) -> int:
    """Return the longest text that a model of this configuration has positions for, in tokens."""
    # RoBERTa numbers positions from behind its padding token's id.
    unused = int(config.pad_token_id) + 1 if config.model_type == "roberta" else 0
    return int(config.max_position_embeddings) - unused


def has_weight(folder: Path, name: str) -> bool:
    """Whether the weights hold a tensor whose name ends so; what is missing would be drawn at random."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                if any(key.endswith(name) for key in file.keys()):  # noqa: SIM118  it is no mapping
                    return True
        except (OSError, SafetensorError):
            return False
    return False
