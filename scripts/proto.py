"""
Generate the gRPC stubs under `services/weft` from `proto/`.

The imports of `google/` come from the installed googleapis-common-protos, as descriptors, so that nothing is fetched
and the generated code names the files that this very runtime registers.

    python scripts/proto.py            # write services/weft
    python scripts/proto.py --check    # exit 1 where the committed stubs differ
    python scripts/proto.py --lint     # buf lint over the same descriptors
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.longrunning import operations_proto_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
STUBS = ROOT / "services" / "weft"
# Beside this interpreter, whether or not the environment is on the PATH.
BIN = Path(sys.executable).parent
INIT = '"""Generated from `proto/` by `make proto`; never edited by hand."""\n'


def _collect(file: FileDescriptor, into: dict[str, FileDescriptor]) -> None:
    if file.name in into:
        return
    for dependency in file.dependencies:
        _collect(dependency, into)
    into[file.name] = file


def _write_google_descriptors(target: Path) -> None:
    files: dict[str, FileDescriptor] = {}
    _collect(operations_proto_pb2.DESCRIPTOR, files)
    # These are not among the imports of operations.proto.
    from google.protobuf import field_mask_pb2, timestamp_pb2

    for module in (timestamp_pb2, field_mask_pb2):
        _collect(module.DESCRIPTOR, files)
    descriptors = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(descriptors.file.add())
    target.write_bytes(descriptors.SerializeToString())


def _protoc(*arguments: str) -> None:
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    if protoc.main(["protoc", *arguments, *sources]) != 0:
        sys.exit("protoc failed; its message stands above.")


def generate(target: Path, scratch: Path) -> None:
    """Write stubs, their types and the package files below `target` (which stands for `services/`)."""
    google = scratch / "google.binpb"
    _write_google_descriptors(google)
    _protoc(
        f"--descriptor_set_in={google}",
        f"-I{PROTO}",
        *(f"--plugin=protoc-gen-{name}={BIN}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")),
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    )
    package = target / "weft"
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(INIT)
    (package / "py.typed").touch()


def write_image(scratch: Path) -> Path:
    """Write all of `proto/` and its imports as one descriptor set, comments included."""
    google, image = scratch / "google.binpb", scratch / "image.binpb"
    _write_google_descriptors(google)
    _protoc(
        f"--descriptor_set_in={google}",
        f"-I{PROTO}",
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={image}",
    )
    return image


def lint(scratch: Path) -> int:
    """Run buf's rules over an image made by protoc, so that imports need no network."""
    image = write_image(scratch)
    return subprocess.run([BIN / "buf", "lint", image, "--config", ROOT / "buf.yaml"], check=False).returncode


def differences(left: Path, right: Path) -> list[str]:
    """Name the files that differ between two trees, in either direction."""
    names = {
        path.relative_to(top)
        for top in (left, right)
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(
        str(name)
        for name in names
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--lint", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.lint:
            return lint(scratch)
        target = scratch / "services"
        target.mkdir()
        generate(target, scratch)
        if options.check:
            different = differences(target / "weft", STUBS)
            for name in different:
                print(
                    f"services/weft/{name} is not what proto/ gives: run `make proto` and commit it.", file=sys.stderr
                )
            return 1 if different else 0
        shutil.rmtree(STUBS, ignore_errors=True)
        shutil.copytree(target / "weft", STUBS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
