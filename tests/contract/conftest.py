"""Fixtures of the contract tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minio_server import minio_server, minio_store

__all__ = ["minio_server", "minio_store"]
