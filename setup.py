"""Builds the extension products with CMake and hands them to setuptools.

Two products, on purpose:

* `megacore._C` (pybind11) does not know torch. Data tools import it in milliseconds instead of
  paying the second that importing torch costs, and it works where there is no torch at all.
* `megacore._ops` is the torch operator library. It uses torch's stable ABI only, so one binary
  serves every torch from 2.11 on and holds no Python symbol. It is built where torch is installed.

`MEGACORE_CUDA=AUTO|ON|OFF` in the environment chooses whether the CUDA kernels are built; AUTO
builds them when nvcc and a CUDA torch are there. An editable install builds nothing when
`MEGACORE_SKIP_BUILD` is set: `make build` compiles by itself. Both matter at build time only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake and Ninja once for all products."""

    def run(self) -> None:
        """Configure and build into the wheel's tree, or in place for an editable install."""
        if self.editable_mode:
            if os.environ.get("MEGACORE_SKIP_BUILD"):
                return
            output, build_dir = ROOT / "python" / "megacore", ROOT / "build" / "cmake"
        else:
            output = Path(self.build_lib).resolve() / "megacore"
            build_dir = Path(self.build_temp).resolve() / "cmake"
        build_dir.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        cmake = self._tool("cmake")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={self._tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DMEGACORE_OUTPUT_DIR={output}",
        ]  # fmt: skip
        if cuda := os.environ.get("MEGACORE_CUDA"):
            configure.append(f"-DMEGACORE_CUDA={cuda}")
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build_dir)], check=True)

    def get_outputs(self) -> list[str]:
        """Names of the built files, for the installer's record."""
        folder = Path(self.build_lib) / "megacore"
        return [str(path) for path in folder.glob("_*.so")]

    @staticmethod
    def _tool(name: str) -> str:
        # The interpreter's own folder first: an isolated or virtual environment brings its tools.
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if found is None:
            raise SystemExit(f"{name} is needed to build megacore: pip install {name}")
        return found


setup(
    ext_modules=[Extension("megacore._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
