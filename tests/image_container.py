"""
Runs a built image as a cluster would: read-only root, uid 10001, no capabilities, /tmp alone to write to.

By buildah and runc where both are there, else by docker. The container shares this machine's network, so that a test
reaches it at 127.0.0.1.
"""

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["container"]


@contextmanager
def container(
    image: str, folder: Path, arguments: Sequence[str] | None, environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an image in the foreground of a process; signals to the process reach the container."""
    with _command(image, folder, arguments, environment) as command, log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _command(
    image: str, folder: Path, arguments: Sequence[str] | None, environment: Mapping[str, str]
) -> Iterator[list[str]]:
    name = f"weft-test-{uuid.uuid4().hex[:12]}"
    if shutil.which("buildah") and shutil.which("runc"):
        mounted = _answer(["buildah", "from", "--pull-never", "--name", name, image])
        try:
            (folder / "config.json").write_text(json.dumps(_bundle(image, mounted, folder, arguments, environment)))
            yield ["runc", "run", name]
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run(["runc", "delete", "--force", name], check=True, capture_output=True)
            _answer(["buildah", "rm", mounted])
    elif shutil.which("docker"):
        command = ["docker", "run", "--rm", "--name", name, "--network=host", "--read-only", "--tmpfs=/tmp:mode=1777"]
        command += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
        command += [f"--env={key}={value}" for key, value in environment.items()]
        if arguments is not None:
            command += [f"--entrypoint={arguments[0]}"]
        yield [*command, image, *(arguments or [])[1:]]
    else:
        pytest.fail("an image is run by buildah and runc, or by docker; install them: apt-get install buildah runc.")


def _bundle(
    image: str, mounted: str, folder: Path, arguments: Sequence[str] | None, environment: Mapping[str, str]
) -> dict[str, object]:
    """Write what runc is told: its own default, closed further, with the image's configuration."""
    told = json.loads(_answer(["buildah", "inspect", "--type", "image", image]))["OCIv1"]["config"]
    (folder / "config.json").unlink(missing_ok=True)
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    spec = json.loads((folder / "config.json").read_text())
    process = spec["process"]
    uid, gid = map(int, told["User"].split(":"))
    process |= {"terminal": False, "cwd": told["WorkingDir"], "noNewPrivileges": True, "user": {"uid": uid, "gid": gid}}
    process["args"] = list(arguments) if arguments is not None else told["Entrypoint"]
    process["env"] = [*told["Env"], *(f"{key}={value}" for key, value in environment.items())]
    process["capabilities"] = {kind: [] for kind in process["capabilities"]}
    spec["root"] = {"path": _answer(["buildah", "mount", mounted]), "readonly": True}
    spec["linux"]["namespaces"] = [one for one in spec["linux"]["namespaces"] if one["type"] != "network"]
    options = ["nosuid", "nodev", "mode=1777"]
    spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options})
    return dict(spec)


def _answer(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    if done.returncode != 0:
        pytest.fail(f"`{' '.join(command)}` failed: {done.stderr.strip()}. Are the images built? `make images` does.")
    return done.stdout.strip()
