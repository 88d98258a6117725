"""`weft plan`: models by name and by file, what fits, and what a wrong question is answered with."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft_client.cli import app
from weft_client.plan.devices import DEVICES, step_time
from weft_client.plan.estimate import BITS, PROCESS_BYTES
from weft_client.plan.models import PRESETS, find_shape
from weft_clt.config import Activation
from weft_clt.sizing import Workload
from weft_common.errors import FailedPreconditionError, NotFoundError

DEMO = ("smollm2-135m", "--num-features", "512", "--tokens", "40_000", "--step-tokens", "1024")


def plan(*arguments: str) -> Any:
    """The plan as JSON."""
    result = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_part_adds_up() -> None:
    """The totals are those of the parts that are shown beside them."""
    found = plan(*DEMO, "--feature-ranks", "2", "--price", "3")
    memory, network = found["memory_bytes"], found["network_bytes"]
    parts = (
        "parameters",
        "gradients",
        "moments",
        "clocks",
        "activations",
        "data",
        "entries",
        "transient",
        "start",
        "process",
    )
    assert memory["rank"] == sum(memory[part] for part in parts)
    assert memory["process"] == PROCESS_BYTES
    parts = ("inputs", "entries", "norms", "selection", "gradients", "metrics")
    assert network["step"] == sum(network[part] for part in parts)
    assert network["token"] == network["step"] / 1024
    bucket = found["bucket_bytes"]
    assert bucket["total"] == bucket["dataset"] + bucket["checkpoints"] + bucket["transcoder"]
    assert found["run"]["steps"] == 40
    assert found["cost"]["total"] == pytest.approx(found["cost"]["rank_hours"] * 3)
    assert found["time"]["hours"] == pytest.approx(40_000 / found["time"]["tokens_per_s"] / 3600)


def test_rank_on_a_gpu_has_room_for_a_second_batch() -> None:
    """The next is made there while one is used: two streams of 30 layers of 576 float32 numbers a token."""
    data = [plan(*DEMO, "--feature-ranks", "1", "--device", name)["memory_bytes"]["data"] for name in DEVICES]
    more = {found - data[0] for found in data[1:]}
    assert (next(iter(DEVICES)), more) == ("cpu-core", {2 * 30 * 576 * 4 * 1024})


def test_rate_is_a_measurement_or_an_estimate() -> None:
    """A rate that was given is used as it is; each says where it comes from."""
    assert plan(*DEMO)["time"]["basis"].startswith("estimate: carried over by FLOP")
    assert plan(*DEMO, "--device", "h100")["time"]["basis"] == "estimate: roofline of the data sheet"
    given = plan(*DEMO, "--tokens-per-s", "1000")["time"]
    assert (given["basis"], given["tokens_per_s"]) == ("measurement: given", 1000)
    assert given["hours"] == pytest.approx(40 / 3600)


def test_cpu_rate_is_the_measured_one_at_its_own_shape() -> None:
    """What was carried over by FLOP comes back at the shape that it was measured at."""
    work = Workload(30, 576, 512, Activation.TOP_K, 32, 0.0, 0, 512, 1, 1)
    assert 512 / step_time(work, DEVICES["cpu-core"], 100).total == pytest.approx(143, rel=0.02)


def test_model_is_read_from_its_config(tmp_path: Path) -> None:
    """Hugging Face's names of either age, in a folder or a file, also below a text_config."""
    path = tmp_path / "config.json"
    for config in (
        {"num_hidden_layers": 16, "hidden_size": 2048},
        {"n_layer": 16, "n_embd": 2048},
        {"text_config": {"num_hidden_layers": 16, "hidden_size": 2048}},
    ):
        path.write_text(json.dumps(config))
        assert (find_shape(str(path)).num_layers, find_shape(str(tmp_path)).d_model) == (16, 2048)
    by_name, by_file = (
        plan(model, "--num-features", "4096", "--tokens", "1e6") for model in ("llama-3.2-1b", str(path))
    )
    assert by_name["memory_bytes"] == by_file["memory_bytes"]


@pytest.mark.parametrize("text", ["", "[]", '{"hidden_size": 5}', '{"n_layer": "a", "n_embd": 5}'])
def test_config_that_does_not_say_is_refused(tmp_path: Path, text: str) -> None:
    """The message has the keys that are looked for."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(FailedPreconditionError, match="expected"):
        find_shape(str(path))


def test_unknown_model_lists_the_presets() -> None:
    """A name that is neither preset nor file."""
    with pytest.raises(NotFoundError, match="one of smollm2-135m, gpt2"):
        find_shape("llama-9")
    assert all(name == shape.name for name, shape in PRESETS.items())


def test_rank_that_does_not_fit_says_how_many_would() -> None:
    """The number named fits, and is what 0 feature ranks choose."""
    big = ("llama-3.2-1b", "--num-features", "65536", "--tokens", "1e8", "--device", "a100-80gb")
    alone = plan(*big)
    assert not alone["time"]["fits"]
    wanted = alone["time"]["feature_ranks_that_fit"]
    assert f"{wanted} feature ranks are the fewest" in alone["notes"][0]
    assert plan(*big, "--feature-ranks", str(wanted))["time"]["fits"]
    assert not plan(*big, "--feature-ranks", str(wanted // 2))["time"]["fits"]
    assert plan(*big, "--feature-ranks", "0")["run"]["feature_ranks"] == wanted


def test_plan_that_fits_nowhere_says_so() -> None:
    """Where more ranks need more memory for their lists, none is enough, and the leanest is shown."""
    found = plan(
        "llama-3.1-8b", "--num-features", "131072", "--top-k", "512", "--tokens", "1e9", "--device", "l4",
        "--feature-ranks", "0",
    )  # fmt: skip
    assert found["time"]["feature_ranks_that_fit"] == 0
    assert "no number of feature ranks does" in found["notes"][0]


def test_codec_and_epochs_decide_the_dataset() -> None:
    """Bits by codec or by hand; a second epoch halves what is harvested."""
    once = plan(*DEMO)["bucket_bytes"]
    assert plan(*DEMO, "--epochs", "2")["bucket_bytes"]["dataset"] == pytest.approx(once["dataset"] / 2, rel=0.01)
    exact = plan(*DEMO, "--codec", "bf16")["bucket_bytes"]["dataset"]
    assert exact / once["dataset"] == pytest.approx(BITS["bf16"] / BITS["uniform"], rel=0.02)
    assert plan(*DEMO, "--bits", "11.1")["bucket_bytes"]["dataset"] == exact


def test_basis_of_klt_is_stored_once_and_held_by_every_rank() -> None:
    """Two bytes for each layer, stream and pair of channels: in the bucket once, in a rank three times."""
    basis = 2 * 2 * 30 * 576**2
    sizes = []
    for tokens in ("40_000", "80_000"):
        demo = ("smollm2-135m", "--num-features", "512", "--tokens", tokens, "--step-tokens", "1024")
        klt, same_bits = (plan(*demo, *codec) for codec in (("--codec", "klt"), ("--bits", str(BITS["klt"]))))
        sizes.append(klt["bucket_bytes"]["dataset"] - same_bits["bucket_bytes"]["dataset"])
        assert klt["memory_bytes"]["data"] - same_bits["memory_bytes"]["data"] == 3 * basis
    assert sizes == [basis, basis]


def test_estimates_beyond_what_weft_does_are_marked() -> None:
    """Type, thresholds and revived features each come with a note."""
    notes = plan(*DEMO, "--device", "h100", "--aux-top-k", "64", "--dtype", "bfloat16", "--activation", "jump-relu")[
        "notes"
    ]
    words = ["float32", "near", "AuxK"]
    assert [word for word in words if any(word in note for note in notes)] == words
    assert plan(*DEMO)["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("--feature-ranks", "5"), "cannot be split evenly over 5", 2),
        (("--top-k", "1000"), "cannot be active", 2),
        (("--activation", "gelu"), "jump-relu or top-k or relu", 2),
        (("--recipe", "nobodys"), "give one of anthropic", 2),
        (("--dtype", "int8"), "float32 or bfloat16", 2),
        (("--codec", "zip"), "uniform or klt or bf16", 2),
        (("--tokens", "many"), "no whole number", 2),
        (("--held-out-share", "1"), "a share", 2),
        (("--network-gbit", "0"), "--network-gbit is 0", 2),
        (("--device", "tpu"), "one of cpu-core", 1),
    ],
)
def test_wrong_question_is_answered_in_words(arguments: tuple[str, ...], says: str, code: int) -> None:
    """Exit code 2 for a wrong request, 1 for a thing that is not there."""
    result = CliRunner().invoke(app, ["plan", *DEMO, *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in " ".join(result.stderr.replace("│", " ").split())
