"""Installing from an sdist and from a wheel into clean environments, built without isolation."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# Runs in the new environment: both extensions, the command, no source tree on the path.
PROBE = """
import sys, pathlib, torch, megacore, megacore._C
from megacore.ops import library, norm
assert library.kernels_missing == "", library.kernels_missing
assert pathlib.Path(megacore.__file__).is_relative_to(sys.prefix), megacore.__file__
assert norm.rms_norm(torch.ones(2, 8), torch.ones(8), eps=0.0).eq(1).all()
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist of the tree, and a wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("packages")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def test_contents(packages: dict[str, Path]) -> None:
    with tarfile.open(packages["sdist"]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"CMakeLists.txt", "csrc/kernels/norm.cu", "cmake/MegacoreCuda.cmake"} <= names
    assert not [name for name in names if name.endswith(".so")]
    with zipfile.ZipFile(packages["wheel"]) as archive:
        names = set(archive.namelist())
    assert "megacore/_ops.so" in names
    assert [name for name in names if name.startswith("megacore/_C.")]
    assert "megacore/config/megatron_flags.tsv" in names


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_install_in_a_clean_environment(
    kind: str, packages: dict[str, Path], tmp_path: Path
) -> None:
    # The dependencies (gigabytes of torch) are lent by this environment through a path file, which
    # names its packages but not this project's tree.
    # Without pip, hence also without the old setuptools that some Pythons bundle with it.
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    lent = Path(pytest.__file__).resolve().parent.parent
    (site / "lent.pth").write_text(f"{lent}\n")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-build-isolation",
        "--no-deps", "--no-index", "--ignore-installed", packages[kind], cwd=tmp_path,
    )  # fmt: skip
    run(python, "-c", PROBE, cwd=tmp_path)
    assert "megacore" in run(tmp_path / "env" / "bin" / "megacore", "--help", cwd=tmp_path)
