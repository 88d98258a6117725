"""The SBOM of an image: its Python packages as cyclonedx-py finds them, and Debian's packages of its base."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from urllib.parse import quote

__all__ = ["debian_components", "write"]

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("opt/torch", "opt/app")


def debian_components(status: str) -> list[dict[str, str]]:
    """Read dpkg's list of packages as components of an SBOM."""
    components = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={fields['Architecture']}"
            components.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
    return components


def write(root: Path, image: str, target: Path) -> None:
    """Write the SBOM of the image whose file tree lies at `root`."""
    (packages,) = root.glob("opt/weft/lib/python3.*/site-packages")
    with tempfile.TemporaryDirectory() as folder:
        # The image's own interpreter cannot run outside of it: one beside it looks at the same packages.
        environment = Path(folder, "environment")
        venv.create(environment)
        (own,) = environment.glob("lib/python3.*/site-packages")
        (own / "image.pth").write_text("".join(f"{path}\n" for path in (packages, *(root / name for name in FOLDERS))))
        command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", str(environment / "bin/python")]
        command += ["--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    if done.returncode != 0:
        sys.exit(f"images: the SBOM of {image} could not be made: {done.stderr.strip()}")
    document = json.loads(target.read_text())
    document["metadata"].setdefault("properties", []).append({"name": "weft:image", "value": image})
    document["components"] += debian_components((root / "var/lib/dpkg/status").read_text())
    target.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
