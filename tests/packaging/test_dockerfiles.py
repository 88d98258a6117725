"""What every Dockerfile of deploy/images promises."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "deploy" / "images"
SERVICES = ("activations", "attribution", "cache", "client", "console", "trainer")
WITH_TORCH = ("activations", "attribution", "trainer")
LABELS = ("title", "description", "licenses", "version", "revision", "base.name")

pytestmark = pytest.mark.packaging


def instructions(service: str) -> list[tuple[str, str]]:
    """Read a Dockerfile as its instructions, comments and line breaks taken out."""
    text = re.sub(r"^#.*\n", "", (IMAGES / service / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages(service: str) -> dict[str, list[tuple[str, str]]]:
    """Split a Dockerfile by stage; the last one has no name and is called `last`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for keyword, rest in instructions(service):
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found.setdefault(name or "last", [(keyword, base)])
        elif found:
            current.append((keyword, rest))
    return found


def test_dockerfiles_are_one_a_service() -> None:
    """Each service has a Dockerfile, and there is none besides."""
    assert sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile")) == list(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_takes_its_base_by_argument(service: str) -> None:
    """Each stage starts from the argument BASE_IMAGE or from a stage before it, so that a local base can stand in."""
    assert instructions(service)[0] == ("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")
    known = {"${BASE_IMAGE}"}
    for name, lines in stages(service).items():
        assert lines[0][1] in known
        known.add(name)


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_ends_as_a_user_without_rights(service: str) -> None:
    """The last stage runs as 10001, by number, so that a cluster can see that it is not root."""
    last = stages(service)["last"]
    users = [index for index, (keyword, _) in enumerate(last) if keyword == "USER"]
    assert [last[index][1] for index in users] == ["10001:10001"]
    assert not {"RUN", "COPY", "ADD"} & {keyword for keyword, _ in last[users[0] :]}


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_installs_nothing_in_its_last_stage(service: str) -> None:
    """The last stage gets finished folders: no installer, compiler or cache runs there."""
    last = stages(service)["last"]
    assert [rest.split("&&")[0].split()[0] for keyword, rest in last if keyword == "RUN"] == ["echo"]
    copied = [rest for keyword, rest in last if keyword == "COPY"]
    folders = ["torch", "weft", "app"] if service in WITH_TORCH else ["weft", "app"]
    assert [rest.split()[-1] for rest in copied] == [f"/opt/{folder}" for folder in folders]
    assert all(rest.startswith("--from=") for rest in copied)


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_installs_by_the_hashed_locks_alone(service: str) -> None:
    """All that runs in the other stages is install.py, which refuses what the locks do not name by hash."""
    for name, lines in stages(service).items():
        for keyword, rest in lines:
            if name != "last" and keyword == "RUN":
                assert re.sub(r"--mount=\S+\s*", "", rest).startswith("python3 /build/install.py ")
    source = (IMAGES / "install.py").read_text()
    assert source.count('"--require-hashes"') == 2


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_keeps_secrets_out_of_layers(service: str) -> None:
    """What the host lends to a build is mounted as a secret, and named nowhere else."""
    text = (IMAGES / service / "Dockerfile").read_text()
    for name in ("pip.conf", "ca.crt"):
        mounts = re.findall(rf"--mount=type=secret,id={re.escape(name)},target=\S+", text)
        assert len(mounts) == text.count("install.py tools") + text.count("install.py torch") + text.count(
            "install.py service"
        )
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_is_labelled(service: str) -> None:
    """The OCI labels say what the image is and what it was built from."""
    (labels,) = [rest for keyword, rest in stages(service)["last"] if keyword == "LABEL"]
    for label in LABELS:
        assert f"org.opencontainers.image.{label}=" in labels
    assert f'org.opencontainers.image.title="weft-{service}"' in labels


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_starts_its_service(service: str) -> None:
    """The entry point is the service's module, without a shell in between that would keep signals from it."""
    (entry,) = [json.loads(rest) for keyword, rest in stages(service)["last"] if keyword == "ENTRYPOINT"]
    wanted = ["/opt/app/bin/weft"] if service == "client" else ["/opt/weft/bin/python", "-m", f"weft_{service}"]
    assert entry == wanted


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfile_carries_torch_only_where_it_computes(service: str) -> None:
    """Cache, console and client have no torch: neither a stage of it nor a line in their lock."""
    locked = re.search(r"^torch==", (ROOT / f"requirements/{service}.txt").read_text(), re.MULTILINE)
    assert ("torch" in stages(service)) == bool(locked) == (service in WITH_TORCH)


def test_dockerfiles_share_their_first_stages_word_for_word() -> None:
    """Stages that are the same in every image are the same text, so that one build of them serves all."""
    for name in ("tools", "application", "torch"):
        texts = {json.dumps(stages(service)[name]) for service in SERVICES if name in stages(service)}
        assert len(texts) == 1


def test_dockerfiles_pass_hadolint() -> None:
    """Hadolint finds nothing to say."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is not in this environment; `make setup-dev` installs it"
    files = [str(IMAGES / service / "Dockerfile") for service in SERVICES]
    done = subprocess.run([hadolint, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dockerignore_lets_in_what_is_copied_and_no_more() -> None:
    """The build context is closed but for what the Dockerfiles copy."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    opened = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for service in SERVICES
        for keyword, rest in instructions(service)
        if keyword == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    for source in copied:
        assert any(Path(source).match(pattern) for pattern in opened), source
    assert all(any(Path(source).match(pattern) for source in copied) for pattern in opened)
