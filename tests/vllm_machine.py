"""
Where tests of the vLLM backend run: `make vllm`, on machines that its build for processors is made for.

On those machines a missing vLLM fails the tests: what is skipped there would prove nothing.
"""

import platform
import sys

import pytest

__all__ = ["on_vllm"]

on_vllm = [
    pytest.mark.vllm,
    # vLLM's own modules warn while they are imported.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64",
        reason="vLLM's build for processors is for Linux on x86-64",
    ),
]
