"""
Features of the real model with a known meaning, labelled and scored by rule: what the pipeline makes of what is known.

    python benchmarks/features/bench_planted.py [--tokens 20000] [--documents 24]

`tests/planted_transcoder.py` makes a transcoder by hand for the model of `make model`: features that fire on a digit, a
bracket, or one of three words. They are harvested, indexed, explained and scored through the services in this process;
who explains and scores is an endpoint over HTTP that looks for the same five meanings in the lines it is shown. Right
labels must score above .95 by detection, and labels shuffled among the features at chance, .5, within the interval.
Writes `.weft/bench/planted.json` and fills `docs/benchmarks/features.md`; ends with 1 where that is not so.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).resolve().parents[2] / "tests"), str(Path(__file__).resolve().parents[1] / "training")]
from planted_transcoder import planted_house
from regions import fill
from rule_interpreter import LABELS, PLACES

from weft.features.v1 import interpretation_pb2, labels_pb2

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".weft" / "bench"
PAGE = ROOT / "docs" / "benchmarks" / "features.md"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"
KINDS = {
    "detection": labels_pb2.SCORE_KIND_DETECTION,
    "fuzzing": labels_pb2.SCORE_KIND_FUZZING,
    "intruder": labels_pb2.SCORE_KIND_INTRUDER,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def _pooled(score: interpretation_pb2.PooledScore) -> dict[str, Any]:
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.num_trials}


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with planted_house(
            Path(folder), MODEL.parent, MODEL.name, num_documents=options.documents, num_tokens=options.tokens
        ) as house:
            fires = await house.fires_right()
            explained, scored = await house.interpret(list(KINDS.values()))
            labels = {(each.layer, each.index): each async for each in house.client.labels.list("planted")}
    return {
        "tokens": options.tokens,
        "features": [
            {
                "meaning": meaning,
                "label": labels[place].text,
                "fires": dict(zip(("right", "alone", "missed"), fires[meaning], strict=True)),
                **{NAMES[score.kind]: score.value for score in labels[place].scores},
            }
            for meaning, place in zip(LABELS, PLACES, strict=True)
        ],
        "reports": {
            NAMES[each.kind]: {"mean": each.mean, "pooled": _pooled(each.pooled), "shuffled": _pooled(each.control)}
            for each in scored.reports
        },
        "calls": explained.spend.calls + scored.spend.calls,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    def shown(score: dict[str, Any]) -> str:
        return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"

    features = [
        f"| {each['meaning']} | {each['label']} | {each['fires']['right']}, {each['fires']['alone']}, "
        f"{each['fires']['missed']} | {each['detection']:.3f} | {each['fuzzing']:.3f} |"
        for each in found["features"]
    ]
    tests = [
        f"| {name} | {shown(each['pooled'])} | {shown(each['shuffled'])} | {each['pooled']['n']} |"
        for name, each in found["reports"].items()
        if each["shuffled"]["n"]
    ]
    return [
        f"{found['tokens']:,} tokens, {found['calls']} questions:",
        "",
        "| meaning | label | fires rightly, wrongly, not | detection | fuzzing |",
        "| --- | --- | --- | --- | --- |",
        *features,
        "",
        "| test | right labels | shuffled labels | decisions |",
        "| --- | --- | --- | --- |",
        *tests,
    ]


def main() -> None:
    """Measure, write, and say whether it is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--documents", type=int, default=24, help="that the encoder is made from, 200 tokens each")
    found = asyncio.run(_measure(parser.parse_args()))
    BENCH.mkdir(parents=True, exist_ok=True)
    (BENCH / "planted.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), "planted", _lines(found)), encoding="utf-8")
    shuffled = found["reports"]["detection"]["shuffled"]
    good = all(each["label"] == each["meaning"] and each["detection"] > 0.95 for each in found["features"])
    sys.exit(0 if good and shuffled["low"] <= 0.5 <= shuffled["high"] else 1)


if __name__ == "__main__":
    main()
