"""
Write stand-ins for the CUDA libraries that PyPI's torch for Linux is linked to, for images without a GPU.

    python cuda_standins.py FOLDER_OF_TORCH    # the folder `torch` of the installed package

That torch loads only where cuBLAS, NCCL and a dozen more are, 2 GB of them, although nothing calls them without a GPU.
A stand-in has the library's name, its version names and the functions that torch asks it for. Each of these answers
100, CUDA's "no device", or where it tells what an error is called, in words: torch then finds no GPU, says so where it
is asked to use one, and computes on the processor. torch itself is left as it was published. Needs pyelftools and
ziglang, which are in tools.txt.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile

LIBRARY = re.compile(r"lib(cu|nv|nccl)")
# The driver comes with a GPU and is loaded only when one is used.
DRIVER = "libcuda.so.1"
# What asks for a function without naming its library's version may get it from any library that is loaded.
UNVERSIONED = re.compile(r"(nccl|curand|cusparseLt|cuFile)[A-Z_]")
# They return text, which torch puts into its own errors.
TEXT = re.compile(r"Get\w*(String|Name)$")
NO_DEVICE = 100
NO_LIBRARY = "no device: this image computes on the processor and has no CUDA libraries"


@dataclass
class Linkage:
    """What the objects of a package ask others for."""

    libraries: set[str] = field(default_factory=set)
    versioned: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    unversioned: set[str] = field(default_factory=set)

    def read(self, path: Path) -> None:
        """Add what one shared object asks for."""
        with path.open("rb") as file:
            elf = ELFFile(file)
            dynamic = elf.get_section_by_name(".dynamic")
            self.libraries |= {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
            names, versions = {}, elf.get_section_by_name(".gnu.version_r")
            for library, needs in versions.iter_versions() if versions is not None else ():
                names |= {need["vna_other"]: (library.name, need.name) for need in needs}
            numbers = elf.get_section_by_name(".gnu.version")
            for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
                if not symbol.name or symbol["st_shndx"] != "SHN_UNDEF":
                    continue
                number = numbers.get_symbol(index)["ndx"] if numbers is not None else None
                if number in names:
                    library, version = names[number]
                    self.versioned[library][version].add(symbol.name)
                elif UNVERSIONED.match(symbol.name):
                    self.unversioned.add(symbol.name)


def define(function: str) -> str:
    """Return a function in C that says there is no device: in words where its name says that it returns text."""
    if TEXT.search(function):
        return f'const char *{function}(void) {{ return "{NO_LIBRARY}"; }}'
    return f"long {function}(void) {{ return {NO_DEVICE}; }}"


def compile_library(target: Path, versions: dict[str, set[str]], plain: set[str]) -> None:
    """Compile one library whose functions all answer NO_DEVICE, as a number or in words."""
    functions = sorted({*plain, *(name for names in versions.values() for name in names)})
    script = "".join(f"{version} {{ global: {'; '.join(sorted(names))}; }};\n" for version, names in versions.items())
    with tempfile.TemporaryDirectory() as scratch:
        source, map_file = Path(scratch, "standin.c"), Path(scratch, "versions.map")
        source.write_text("".join(f"{define(name)}\n" for name in functions))
        map_file.write_text(script)
        command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-nostdlib", "-s", "-O1", "-o", str(target)]
        command += [
            f"-Wl,-soname,{target.name}",
            *([f"-Wl,--version-script={map_file}"] if versions else []),
            str(source),
        ]
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        subprocess.run(command, check=True, env=environment)


def main() -> None:
    torch = Path(sys.argv[1])
    objects = [*torch.glob("*.so"), *torch.glob("lib/*.so*")]
    linkage = Linkage()
    for path in objects:
        linkage.read(path)
    wanted = sorted(name for name in linkage.libraries if LIBRARY.match(name) and name != DRIVER)
    if not wanted:
        sys.exit(f"cuda_standins: nothing in {torch} asks for a CUDA library; this torch needs no stand-ins.")
    plain = linkage.unversioned
    for library in wanted:
        versions = linkage.versioned.get(library, {})
        # One that names no versions takes all functions that were asked for without one.
        compile_library(torch / "lib" / library, versions, set() if versions else plain)
    print(f"cuda_standins: {len(wanted)} libraries: {' '.join(wanted)}")


if __name__ == "__main__":
    main()
