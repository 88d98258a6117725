"""
Build the images of deploy/images, with an SBOM of each, and say how large they are.

    python scripts/images.py                                   # all of them, for processors
    python scripts/images.py --variant cuda --service trainer  # one of them, for GPUs
    python scripts/images.py --registry HOST/PATH --tag 1.2.3  # named to be pushed

Writes .weft/images: sizes.json, and a log and an SBOM (CycloneDX) an image. pip's configuration and the authorities'
certificates of this machine are lent to the builds and left in no image.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import page
import sbom
from image_engine import Build, Engine, find_engine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".weft" / "images"
SERVICES = ("activations", "attribution", "cache", "client", "console", "trainer")
DEFAULT_BASE = "python:3.11-slim-bookworm"
PARTS = {"torch": "opt/torch", "packages": "opt/weft", "weft": "opt/app"}


def first_file(*candidates: str | Path | None) -> Path | None:
    """Return the first of these that is a file."""
    return next((path for path in (Path(name) for name in candidates if name) if path.is_file()), None)


def secrets() -> dict[str, Path]:
    """Return what a build on this machine may need to reach its package index."""
    home = Path.home()
    found = {
        "pip.conf": first_file(
            os.environ.get("PIP_CONFIG_FILE"),
            home / ".config/pip/pip.conf",
            home / ".pip/pip.conf",
            "/etc/pip.conf",
        ),
        "ca.crt": first_file(os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"),
    }
    return {name: path for name, path in found.items() if path is not None}


def revision() -> str:
    """Return the commit, marked where the tree differs from it; `unknown` outside of git."""
    asked = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
    done = subprocess.run(asked, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def folder_bytes(folder: Path) -> int:
    """Add up the files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def build_image(engine: Engine, service: str, image: str, arguments: dict[str, str]) -> dict[str, object]:
    """Build one image and its SBOM; return what sizes.json says of it."""
    log = RESULTS / f"weft-{service}.log"
    build = Build(image, ROOT / "deploy/images" / service / "Dockerfile", ROOT, arguments, secrets())
    began = time.monotonic()
    with log.open("w") as file:
        built = engine.build(build, file)
    if not built:
        sys.stderr.write("".join(log.read_text().splitlines(keepends=True)[-25:]))
        sys.exit(f"images: {image} was not built; the end of its log stands above, all of it is in {log}.")
    seconds = round(time.monotonic() - began, 1)
    with engine.files(image) as root:
        parts = {part: folder_bytes(root / folder) for part, folder in PARTS.items() if (root / folder).is_dir()}
        sbom.write(root, image, RESULTS / f"weft-{service}.cdx.json")
    size = engine.size(image)
    shares = ", ".join(f"{part} {share / 1e6:.0f}" for part, share in parts.items())
    print(f"{image}: {size / 1e6:.0f} MB ({shares}), built in {seconds:.0f} s", flush=True)
    return {"bytes": size, "parts": parts, "seconds": seconds, "variant": arguments["VARIANT"]}


def parse(arguments: Sequence[str], version: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the images of deploy/images.")
    parser.add_argument("--service", action="append", choices=SERVICES, help="only this one; may be repeated")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--registry", default="localhost", help="what stands before the name; default: localhost")
    parser.add_argument("--tag", help=f"default: {version}, and {version}-cuda for that variant")
    parser.add_argument("--base", default=os.environ.get("BASE_IMAGE", DEFAULT_BASE), help=f"default: {DEFAULT_BASE}")
    parsed = parser.parse_args(arguments)
    parsed.tag = parsed.tag or (version if parsed.variant == "cpu" else f"{version}-{parsed.variant}")
    return parsed


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    asked = parse(sys.argv[1:], version)
    engine = find_engine()
    page.build()
    RESULTS.mkdir(parents=True, exist_ok=True)
    told = {"BASE_IMAGE": asked.base, "VARIANT": asked.variant, "VERSION": version, "REVISION": revision()}
    sizes = RESULTS / "sizes.json"
    known = json.loads(sizes.read_text()) if sizes.is_file() else {}
    for service in asked.service or SERVICES:
        image = f"{asked.registry}/weft-{service}:{asked.tag}"
        known[image] = build_image(engine, service, image, told)
        sizes.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
