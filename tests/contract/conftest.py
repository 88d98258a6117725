"""Fixtures of the contract tests."""

from minio_server import minio_server, minio_store

__all__ = ["minio_server", "minio_store"]
