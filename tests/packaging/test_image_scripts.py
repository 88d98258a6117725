"""scripts/images.py and what it stands on: names, options, secrets, engines, SBOMs."""

import json
import stat
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

pytestmark = pytest.mark.packaging


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find each other as they do when one of them is run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def images(scripts: None) -> ModuleType:
    """The script that `make images` runs."""
    import images

    return images


@pytest.fixture
def engine(scripts: None) -> ModuleType:
    """What builds."""
    import image_engine

    return image_engine


def put_command(folder: Path, name: str, script: str) -> None:
    """Put a command of this name on the path of a test."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("said", "tag"),
    [([], VERSION), (["--variant", "cuda"], f"{VERSION}-cuda"), (["--variant", "cuda", "--tag", "9"], "9")],
)
def test_images_are_tagged_by_version_and_variant(images: ModuleType, said: list[str], tag: str) -> None:
    """The tag is the version, and names the variant where it is for GPUs."""
    assert images.parse(said, VERSION).tag == tag


def test_images_services_are_those_with_a_dockerfile(images: ModuleType) -> None:
    """No Dockerfile is left out of `make images`."""
    assert sorted(images.SERVICES) == sorted(path.parent.name for path in ROOT.glob("deploy/images/*/Dockerfile"))
    with pytest.raises(SystemExit):
        images.parse(["--service", "catche"], VERSION)


def test_images_lend_the_first_configuration_that_is_there(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PIP_CONFIG_FILE goes before the user's own file."""
    asked, own = tmp_path / "asked.conf", tmp_path / ".config" / "pip" / "pip.conf"
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(asked))
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert images.secrets() == {"pip.conf": own, "ca.crt": own}
    asked.touch()
    assert images.secrets()["pip.conf"] == asked


def test_build_says_files_arguments_and_secrets(engine: ModuleType, tmp_path: Path) -> None:
    """Both engines are told the same options."""
    build = engine.Build("localhost/weft-cache:1", Path("D"), tmp_path, {"VARIANT": "cpu"}, {"ca.crt": Path("/c")})
    options = ["--file", "D", "--tag", "localhost/weft-cache:1", "--build-arg", "VARIANT=cpu"]
    assert build.options() == [*options, "--secret", "id=ca.crt,src=/c"]


def test_engine_is_buildah_before_docker(engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Buildah is taken where both are there; docker is taken where its daemon answers."""
    put_command(tmp_path, "docker", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(engine.find_engine(), engine.Docker)
    put_command(tmp_path, "buildah", "exit 0")
    assert isinstance(engine.find_engine(), engine.Buildah)


def test_engine_that_does_not_answer_is_none(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A docker command without its daemon builds nothing, and the message says what to install."""
    put_command(tmp_path, "docker", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="neither buildah nor a running docker was found; install one"):
        engine.find_engine()


def test_failed_build_shows_the_end_of_its_log(
    images: ModuleType,
    engine: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the engine said is shown, and the rest can be found."""
    put_command(tmp_path, "buildah", "echo the wheel is missing >&2; exit 125")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(images, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"localhost/weft-cache:1 was not built.*weft-cache\.log"):
        images.build_image(engine.Buildah(), "cache", "localhost/weft-cache:1", {"VARIANT": "cpu"})
    assert "the wheel is missing" in capsys.readouterr().err


def test_buildah_adds_up_the_layers(engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image's size is that of its layers, each counted once."""
    manifest = json.dumps({"layers": [{"size": 150}, {"size": 1300}]})
    put_command(tmp_path, "buildah", f"echo '{json.dumps({'Manifest': manifest})}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine.Buildah().size("localhost/weft-cache:1") == 1450


def test_buildah_builds_from_what_is_there_with_a_fixed_clock(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A local base image is used without asking a registry, and no layer carries the time of its build."""
    put_command(tmp_path, "buildah", 'echo "$@" >"$(dirname "$0")/asked"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with (tmp_path / "log").open("w") as log:
        assert engine.Buildah().build(engine.Build("i:1", Path("D"), tmp_path, {}, {}), log)
    assert (tmp_path / "asked").read_text().startswith("build --layers --pull=false --timestamp 315532800 ")


def test_sbom_reads_debians_packages(scripts: None) -> None:
    """Packages that are installed are components; those that were removed are not."""
    import sbom

    status = (
        "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.2.13\nArchitecture: amd64\nDescription: zlib\n"
        " Conffiles: none\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n"
    )
    (component,) = sbom.debian_components(status)
    assert component["purl"] == "pkg:deb/debian/zlib1g@1%3A1.2.13?arch=amd64"
    assert (component["name"], component["version"]) == ("zlib1g", "1:1.2.13")


def test_sbom_of_an_image_names_its_packages(scripts: None, tmp_path: Path) -> None:
    """Python's packages of all three folders are in the document, and the machine's own are not."""
    import sbom

    places = ("opt/weft/lib/python3.11/site-packages", "opt/torch", "opt/app")
    for place, name in zip(places, ("minio", "torch", "weft"), strict=True):
        metadata = tmp_path / place / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text("")
    sbom.write(tmp_path, "localhost/weft-cache:1", tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert {component["name"] for component in document["components"]} == {"minio", "torch"}
    assert document["metadata"]["component"]["name"] == "weft"
    assert "pytest" not in json.dumps(document)
