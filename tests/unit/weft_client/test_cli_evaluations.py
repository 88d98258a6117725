"""An evaluation as a table."""

import math

from rich.console import Console

from weft.training.v1 import messages_pb2
from weft_client.cli.evaluations import evaluation_table


def _printed(evaluation: messages_pb2.Evaluation) -> list[str]:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(evaluation_table(evaluation))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_evaluation_table_has_a_line_a_layer_and_one_for_all() -> None:
    """Figures stand under their headings; what an older trainer did not measure is a dash."""
    lines = _printed(
        messages_pb2.Evaluation(
            step=60,
            tokens=4000,
            explained_variance=0.5,
            explained_variance_by_layer=[0.4, 0.6],
            l0_by_layer=[10, 30],
            silent_share=0.125,
        )
    )
    assert [line.split() for line in lines if line][:4] == [
        ["layer", "explained", "L0", "silent", "dense"],
        ["0", "0.400", "10.0", "–", "–"],
        ["1", "0.600", "30.0", "–", "–"],
        ["all", "0.500", "20.0", "12.5%", "0.0%"],
    ]
    assert "step 60, 4,000 held-out tokens" in "\n".join(lines)


def test_evaluation_table_shows_the_replacement_model() -> None:
    """Scores stand in the lines of their layers; a recovered share that is no number is a dash."""

    def score(recovered: float) -> messages_pb2.ReplacementScore:
        return messages_pb2.ReplacementScore(top1_agreement=0.5, kl_divergence=0.25, recovered=recovered)

    lines = _printed(
        messages_pb2.Evaluation(
            explained_variance_by_layer=[0.4],
            replacement=messages_pb2.Replacement(
                tokens=510, sequences=2, cross_entropy=3.0, all=score(math.nan), by_layer=[score(0.75)]
            ),
        )
    )
    rows = [line.split() for line in lines if line]
    assert rows[0][-4:] == ["top-1", "KL", "CE", "recovered"]
    assert rows[1][-3:] == ["50.0%", "0.2500", "0.750"]
    assert rows[2][-3:] == ["50.0%", "0.2500", "–"]
    assert "relative to zero ablation" in "\n".join(lines)
