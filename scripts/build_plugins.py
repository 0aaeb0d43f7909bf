"""Build libds4plugins with CMake and ninja.

    python scripts/build_plugins.py [--architectures 80 90 ...]

What this machine lacks (CMake, ninja, nvcc, cuobjdump, TensorRT's headers) is installed from the package index into
build/toolchain first. Prints the library, its size and the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from ds4export.errors import ToolchainError
from ds4export.ptxhost.toolchain import (
    BUILD,
    CUDA_PACKAGES,
    PACKAGES,
    PLUGINS,
    builders,
    find_toolchain,
    missing,
)

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--architectures", nargs="+", default=ARCHITECTURES, help="default: all six"
    )
    arguments = parser.parse_args()
    try:
        build(arguments.architectures)
    except ToolchainError as error:
        sys.exit(f"error: {error}")


def build(architectures: tuple[str, ...]) -> None:
    if wanted := missing():
        print(
            f"installing {', '.join(wanted)} into {PACKAGES.relative_to(PACKAGES.parent.parent)}",
            file=sys.stderr,
        )
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PACKAGES]
        files = [word for file in wanted for word in ("-r", PLUGINS / file)]
        subprocess.run([*pip, "--upgrade", *files], check=True)
    if (CUDA_PACKAGES / "lib").is_dir():
        make_links()
    tools = find_toolchain()
    cmake, ninja = builders()
    fat = tuple(architectures) == ARCHITECTURES
    folder = BUILD / ("plugins" if fat else "plugins-" + "-".join(architectures))
    start = time.monotonic()
    subprocess.run(
        [
            *(cmake, "-S", PLUGINS, "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DDS4_ARCHITECTURES={';'.join(architectures)}",
            f"-DCMAKE_CUDA_COMPILER={tools.nvcc}",
            f"-DTENSORRT_INCLUDE_DIR={tools.tensorrt_include}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run([ninja, "-C", folder, "-j", "2"], check=True, stdout=sys.stderr)
    for library in sorted(folder.glob("libds4plugins*.so")):
        size = library.stat().st_size / 1e6
        print(
            f"{library}  {size:.1f} MB  {time.monotonic() - start:.0f} s  nvcc {tools.nvcc_version}"
        )


def make_links() -> None:
    """The packages have neither the `lib64` that nvcc looks in nor the name that `-lcudart` looks for."""
    for link, target in (("lib64", "lib"), ("lib/libcudart.so", "libcudart.so.13")):
        if not (CUDA_PACKAGES / link).is_symlink():
            (CUDA_PACKAGES / link).symlink_to(target)
    for program in (*CUDA_PACKAGES.glob("bin/*"), *CUDA_PACKAGES.glob("nvvm/bin/*")):
        if program.is_file():
            program.chmod(program.stat().st_mode | 0o111)


if __name__ == "__main__":
    main()
