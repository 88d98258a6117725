"""
Build the pinned MinIO server once into the user's cache, and print where it lies.

    python scripts/minio.py            # build if it is not there, print the path
    python scripts/minio.py --path     # only print where it would lie
"""

from gotool import GoTool

MINIO = GoTool("minio", "github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c", (1, 24))

if __name__ == "__main__":
    MINIO.main("Build the pinned MinIO server once into the user's cache.")
