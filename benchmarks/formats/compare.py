"""
Compare weft's reading and writing of other tools' layouts with the tools themselves, both ways.

    python benchmarks/formats/compare.py --peer circuit-tracer=PYTHON --peer saelens=PYTHON \
        --peer clt-forge=PYTHON:CODE --peer llamascopium=PYTHON:CODE

PYTHON is the interpreter of an environment that has the tool; CODE is a folder for its PYTHONPATH, where the tool is on
no registry. Prints, for each tool, the largest difference over the largest prediction, in float64:
    out    weft writes a transcoder, the tool loads it and predicts
    in     the tool makes and saves one and predicts, weft reads it
    back   weft reads the tool's, writes it again, the tool loads that and predicts
Exits 1 where one is not below 1e-6.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from transcoder_layouts import inputs_of, predict, random_transcoder  # noqa: E402  tests are no package

from weft_clt.formats.files import FolderFiles  # noqa: E402
from weft_clt.formats.opening import open_transcoder, write_transcoder  # noqa: E402

LIMIT = 1e-6


def in_peer(peer: str, where: str, what: str, folder: Path) -> None:
    """Run the peer's side."""
    python, _, code = where.partition(":")
    environment = {**os.environ, "PYTHONPATH": code, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    script = Path(__file__).with_name("in_peer.py")
    subprocess.run([python, script, peer, what, folder], check=True, env=environment, cwd=folder)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest number."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def compare(peer: str, where: str) -> dict[str, float]:
    """Compare both ways and there and back."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        out, made, back = (Path(name) / part for part in ("out", "made", "back"))
        for folder in (out, made, back):
            folder.mkdir()
        ours = random_transcoder(11, 3, 48, 16, window=1 if peer == "saelens" else None, input_hook="resid_mid")
        (out / "files").mkdir()
        list(write_transcoder(ours, peer, out / "files", "tiny"))
        np.save(out / "inputs.npy", inputs_of(ours.facts, 5, 64))
        in_peer(peer, where, "predict", out)
        found["out"] = difference(np.load(out / "predicted.npy"), predict(ours, np.load(out / "inputs.npy")))
        in_peer(peer, where, "make", made)
        theirs = open_transcoder(FolderFiles(made / "files"), input_hook="resid_mid")
        wanted = np.load(made / "predicted.npy")
        found["in"] = difference(predict(theirs, np.load(made / "inputs.npy")), wanted)
        (back / "files").mkdir()
        list(write_transcoder(theirs, peer, back / "files", "tiny"))
        np.save(back / "inputs.npy", np.load(made / "inputs.npy"))
        in_peer(peer, where, "predict", back)
        found["back"] = difference(np.load(back / "predicted.npy"), wanted)
    return found


def main() -> int:
    """Compare every peer that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", required=True, metavar="NAME=PYTHON[:CODE]")
    differences: list[float] = []
    print("| tool | out | in | back | s |\n| --- | --- | --- | --- | --- |")
    for given in parser.parse_args().peer:
        peer, _, where = given.partition("=")
        started = time.monotonic()
        found = compare(peer, where)
        differences += found.values()
        shown = " | ".join(f"{value:.1e}" for value in found.values())
        print(f"| {peer} | {shown} | {time.monotonic() - started:.0f} |", flush=True)
    # Whatever is compared with not-a-number is false: such a difference must not pass.
    return int(not all(value < LIMIT for value in differences))


if __name__ == "__main__":
    sys.exit(main())
