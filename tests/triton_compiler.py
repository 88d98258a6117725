"""Triton's compiler without a device: every kernel to machine code of a GPU, by the types that training uses."""

import re
import subprocess
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import __path__ as nvidia_path
from triton.compiler import ASTSource

from weft_clt.kernels import triton_adam, triton_encode, triton_reductions, triton_rows, triton_segments, triton_top_k

_LISTS = {
    "start": "*i32", "row_end": "*i32", "token": "*i32", "row_start": "*i32", "row_active": "*i32", "feature": "*i32",
    "pair_start": "*i64", "pairs": "*i64", "out_key": "*i64", "counter": "*i64", "keep": "*i8",
    "room": "i64", "numel": "i64", "first_place": "i64",
}  # fmt: skip
_WIDE = {"bound", "feature_bound", "token_bound", "value_part", "square_part", "first", "second", "part", "smallest"}
_SCALARS = {"grad_scale", "beta1", "rest1", "beta2", "rest2", "rate", "root", "epsilon"}
_INTEGERS = {
    "num_tokens", "num_features", "num_columns", "num_entries", "seed", "top_k", "d_model", "first_feature",
    "all_features",
}  # fmt: skip

_SEGMENT: dict[str, int] = dict.fromkeys(("VALUES", "COEFF", "SQUARES", "ADD", "FRESH", "ADAM", "HAS_FIRST"), False)
_SEGMENT |= {"ROWS": triton_segments._ROWS, "COLUMNS": triton_segments._MOST_COLUMNS}


def _encode(dtype: torch.dtype, **flags: int) -> tuple[Any, dict[str, int], dict[str, int]]:
    tile = triton_encode.Tile.of(dtype)
    cut = {"TOKENS": tile.tokens, "FEATURES": tile.features, "DEPTH": tile.depth, "WHOLE": True}
    cut |= {"WIDEN": dtype is not torch.bfloat16, "BY_FEATURE": False, "BY_TOKEN": False, "KEEP": False} | flags
    return triton_encode.select_kernel, cut, {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def launches(dtype: torch.dtype) -> dict[str, tuple[Any, dict[str, int], dict[str, int]]]:
    """Name, kernel, constants and options of every launch of a training step at a width of 2,048 columns."""
    segment, four = triton_segments.segment_kernel, {"num_warps": 4}
    return {
        "encode above": _encode(dtype, BY_FEATURE=True),
        "encode above, kept": _encode(dtype, BY_FEATURE=True, KEEP=True),
        "encode largest": _encode(dtype, BY_TOKEN=True),
        "largest": (triton_top_k.keep_largest_kernel, {"BLOCK": triton_top_k._BLOCK}, {"num_warps": 1}),
        "decode": (
            triton_rows.decode_kernel, {"ROWS": triton_rows._ROWS, "COLUMNS": triton_rows._MOST_COLUMNS}, four,
        ),
        "value gradients": (segment, _SEGMENT | {"VALUES": True, "SQUARES": True}, four),
        "decoder gradient": (segment, _SEGMENT | {"COEFF": True, "ADD": True}, four),
        "decoder gradient, fresh": (segment, _SEGMENT | {"COEFF": True, "ADD": True, "FRESH": True}, four),
        "encoder gradient": (segment, _SEGMENT | {"ADD": True}, four),
        "decoder update": (segment, _SEGMENT | {"COEFF": True, "ADAM": True}, four),
        "decoder update, beta1": (segment, _SEGMENT | {"COEFF": True, "ADAM": True, "HAS_FIRST": True}, four),
        "adam": (triton_adam.adam_kernel, {"HAS_FIRST": True, "BLOCK": triton_adam._BLOCK}, four),
        "row squares": (triton_reductions.row_squares_kernel, {"COLUMNS": 2048}, four),
        "squares": (triton_reductions.squares_kernel, {"BLOCK": triton_reductions._BLOCK}, four),
    }  # fmt: skip


def _type(name: str, dtype: torch.dtype, constants: dict[str, int]) -> str:
    if name in constants:
        return "constexpr"
    if name in _LISTS:
        return _LISTS[name]
    if name in _SCALARS or name in _INTEGERS:
        return "fp32" if name in _SCALARS else "i32"
    return "*fp32" if name in _WIDE or dtype is torch.float32 else "*bf16"


def compiled(launch: tuple[Any, dict[str, int], dict[str, int]], dtype: torch.dtype, capability: int) -> Any:
    """Compile to a cubin, with addresses and sizes that are multiples of 16, as real ones are."""
    kernel, constants, options = launch
    signature = {name: _type(name, dtype, constants) for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if (kind.startswith("*") and name not in ("token", "value", "row_end")) or name in ("num_columns", "d_model")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled_bytes(binary: Any, folder: Path) -> int:
    """What does not fit the registers, as the assembler that comes with Triton says."""
    source = folder / "kernel.ptx"
    source.write_text(binary.asm["ptx"])
    target = re.search(r"^\.target (\w+)", binary.asm["ptx"], re.MULTILINE)
    assert target
    command = [str(Path(nvidia_path[0]) / "bin" / "ptxas"), "-v", f"--gpu-name={target[1]}", str(source)]
    done = subprocess.run([*command, "-o", str(folder / "kernel.cubin")], capture_output=True, text=True, check=True)
    stores = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert stores, done.stderr
    return sum(map(int, stores))
