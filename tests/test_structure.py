"""The shape of the repository: who may include or import whom, sizes, forbidden constructs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "megacore"
CSRC = ROOT / "csrc"

CXX_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
CEILINGS = {".py": 500, ".cpp": 500, ".h": 500, ".cuh": 600, ".cu": 600}
MAX_FUNCTION_LINES = 100

# What each folder of csrc may include of the others ("bindings" may include everything).
CXX_LAYERS = {
    "core": {"core"},
    "kernels": {"core", "kernels"},
    "data": {"core", "data"},
    "comm": {"core", "comm"},
    "pipeline": {"core", "pipeline", "comm"},
    "planner": {"core", "comm", "pipeline", "planner"},
}

# What each package must not import. errors and config.fields are for everyone.
_HIGHER = {"training", "inference", "cli", "demo", "evaluation", "planning"}
PYTHON_FORBIDDEN = {
    "ops": {"layers", "models", "optim", "data", "checkpoint", "parallel"} | _HIGHER,
    "layers": {"models", "optim", "data", "checkpoint", "parallel"} | _HIGHER,
    "models": {"optim", "data", "checkpoint", "parallel"} | _HIGHER,
    "data": {"training", "layers", "inference", "cli", "demo"},
    "optim": {"training", "inference", "data", "checkpoint", "cli", "demo"},
    "checkpoint": {"training", "inference", "cli", "demo"},
    "config": {"demo"},
    "inference": {"demo"},
}

# The environment is read where the launcher's variables enter, and written where cuBLAS needs it.
ENVIRONMENT_ALLOWED = {
    "python/megacore/parallel/launch.py",
    "python/megacore/training/seeding.py",
    "setup.py",
}


def tracked_files() -> list[Path]:
    """Files under version control, or every source file where there is no git."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        names = [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("python", "csrc", "cpp_tests", "tests", "benchmarks", "tools")
        names = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in names if path.is_file()]


FILES = tracked_files()
PYTHON_FILES = [path for path in FILES if path.suffix == ".py"]
CXX_FILES = [path for path in FILES if path.suffix in CXX_SUFFIXES]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.M)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_there_is_something_to_check() -> None:
    assert len(PYTHON_FILES) > 50
    assert len(CXX_FILES) > 20


def test_torch_and_pybind_stay_in_bindings() -> None:
    offenders = [
        f"{relative(path)}: {name}"
        for path in CXX_FILES
        if CSRC in path.parents and path.parent.name != "bindings"
        for name in includes(path)
        if re.match(r"(torch|ATen|c10|pybind11|Python\.h)", name)
    ]
    assert not offenders


def test_include_direction() -> None:
    offenders = []
    for path in CXX_FILES:
        if CSRC not in path.parents:
            continue
        layer = path.relative_to(CSRC).parts[0]
        for name in includes(path):
            target = name.split("/")[0]
            if layer in CXX_LAYERS and target in {*CXX_LAYERS, "bindings"} - CXX_LAYERS[layer]:
                offenders.append(f"{relative(path)}: {name}")
    assert not offenders


def test_import_direction() -> None:
    offenders = []
    for path in PYTHON_FILES:
        if PACKAGE not in path.parents or path.name == "config.py":
            continue
        forbidden = PYTHON_FORBIDDEN.get(path.relative_to(PACKAGE).parts[0], set())
        for line, name in imported_modules(path):
            parts = name.split(".")
            # A component's config.py holds settings only; whoever is configured may read it.
            if parts[0] != "megacore" or len(parts) < 3 or parts[2] == "config":
                continue
            if parts[1] in forbidden:
                offenders.append(f"{relative(path)}:{line}: {name}")
    assert not offenders


def test_core_imports_without_torch() -> None:
    pytest.importorskip("megacore._C")
    code = "import sys, megacore._C; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("suffix", sorted(CEILINGS))
def test_file_length(suffix: str) -> None:
    offenders = {
        relative(path): lines
        for path in [*PYTHON_FILES, *CXX_FILES]
        if path.suffix == suffix
        and (lines := len(path.read_text().splitlines())) > CEILINGS[suffix]
    }
    assert not offenders


def test_python_function_length() -> None:
    offenders = []
    for path in PYTHON_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                # The docstring is the contract, not the code.
                docstring = node.body[0] if ast.get_docstring(node) else None
                skipped = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
                lines = node.end_lineno - node.lineno + 1 - skipped
                if lines > MAX_FUNCTION_LINES:
                    offenders.append(f"{relative(path)}:{node.lineno} {node.name}: {lines}")
    assert not offenders


def test_environment_is_read_in_one_place() -> None:
    offenders = [
        relative(path)
        for path in [*PYTHON_FILES, *CXX_FILES]
        if relative(path) not in ENVIRONMENT_ALLOWED
        and relative(path).split("/")[0] in {"python", "csrc", "tools", "setup.py"}
        and re.search(r"os\.environ|os\.getenv|\bgetenv\(", path.read_text())
    ]
    assert not offenders


def test_nothing_is_unpickled_or_evaluated() -> None:
    offenders = []
    for path in PYTHON_FILES:
        if PACKAGE not in path.parents and path.parent != ROOT / "tools":
            continue
        for line, name in imported_modules(path):
            if name.split(".")[0] in {"pickle", "marshal", "shelve", "dill", "cloudpickle"}:
                offenders.append(f"{relative(path)}:{line}: import {name}")
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            allow_pickle = any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            )
            if called in {"eval", "exec", "compile", "torch.load"} or allow_pickle:
                offenders.append(f"{relative(path)}:{node.lineno}: {called}")
    assert not offenders


def test_kernel_stems_are_complete() -> None:
    kernels = CSRC / "kernels"
    stems = {path.stem for path in FILES if path.parent == kernels and path.suffix == ".cu"}
    assert {"norm", "adamw"} <= stems
    missing = []
    for stem in sorted(stems):
        for name in (
            f"csrc/kernels/{stem}.h",
            f"csrc/kernels/{stem}_cpu.cpp",
            f"python/megacore/ops/{stem}.py",
            f"cpp_tests/test_{stem}.cpp",
            f"tests/ops/test_{stem}.py",
            f"benchmarks/bench_{stem}.py",
        ):
            if not (ROOT / name).exists():
                missing.append(name)
    assert not missing


def test_sources_are_ascii() -> None:
    offenders = [
        f"{relative(path)}:{number}"
        for path in [*PYTHON_FILES, *CXX_FILES]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if not line.isascii()
    ]
    assert not offenders


def test_no_path_of_a_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(home|root|work|Users)/\w")
    offenders = [
        f"{relative(path)}:{number}"
        for path in [*PYTHON_FILES, *CXX_FILES]
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not offenders
