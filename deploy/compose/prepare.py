"""
Write what deploy/compose needs once: `.env` with secrets made here, and `endpoints.json` for the `weft` command.

    python3 deploy/compose/prepare.py --minio-image NAME:TAG
    docker compose --file deploy/compose/compose.yaml up --detach --wait
    weft --endpoints deploy/compose/endpoints.json datasets list

Both files can be read by their owner only, and git does not know them. Delete both for new secrets.
"""

import argparse
import json
import os
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Ports on this machine's loopback.
PORTS = {"activations": 7301, "cache": 7302, "trainer": 7303, "attribution": 7304, "console": 7305}
MADE = ("MINIO_ROOT_PASSWORD", "BUCKET_SECRET_KEY", "GRAFANA_PASSWORD", *(f"{name.upper()}_TOKEN" for name in PORTS))


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def endpoints(made: dict[str, str]) -> dict[str, object]:
    """Say where the services are and what they ask for, as the client reads it."""
    services: dict[str, object] = {
        name: {"target": f"127.0.0.1:{port}", "token": made[f"{name.upper()}_TOKEN"]}
        for name, port in PORTS.items()
        if name != "console"
    }
    services["console"] = {"url": f"http://127.0.0.1:{PORTS['console']}/", "token": made["CONSOLE_TOKEN"]}
    return {"services": services}


def prepare(folder: Path, minio_image: str) -> None:
    """Write both files into a folder, where neither is yet."""
    environment_file, endpoints_file = folder / ".env", folder / "endpoints.json"
    for path in (environment_file, endpoints_file):
        if path.exists():
            sys.exit(f"prepare: {path} is there already; delete it and the other file for new secrets.")
    made = {name: secrets.token_urlsafe(32) for name in MADE}
    told = {
        "MINIO_IMAGE": minio_image,
        "MINIO_ROOT_USER": "weft-root",
        "BUCKET_ACCESS_KEY": "weft-services",
        **{f"{name.upper()}_PORT": str(port) for name, port in PORTS.items()},
        **made,
    }
    write_private(environment_file, "".join(f"{name}={value}\n" for name, value in told.items()))
    write_private(endpoints_file, json.dumps(endpoints(made), indent=2) + "\n")
    print(f"prepare: wrote {environment_file} and {endpoints_file}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the secrets of deploy/compose.")
    parser.add_argument("--minio-image", required=True, help="an image of MinIO that this machine has or can pull")
    prepare(FOLDER, parser.parse_args().minio_image)
