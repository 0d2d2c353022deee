"""Loaders and savers by name; the module of a format is imported when the format is used.

A format is one module with `open_source(path, options) -> Source`, `make_target(options) -> Target`
and `matches(path) -> bool` (whether a path is in this format), each where it can.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from megacore.checkpoint.convert.model_stream import Source, SourceOptions, Target, TargetOptions
from megacore.errors import CheckpointError, UsageError

_HERE = "megacore.checkpoint.convert"

# Name -> module. "core" and "legacy" are the names in the documentation of Megatron-LM, "mcore" and
# "megatron" those of its modules.
LOADERS = {
    "core": f"{_HERE}.core",
    "mcore": f"{_HERE}.core",
    "legacy": f"{_HERE}.legacy",
    "megatron": f"{_HERE}.legacy",
    "hf": f"{_HERE}.hf",
    "meta": f"{_HERE}.meta_llama",
    "gguf": f"{_HERE}.gguf",
}
SAVERS = {
    "core": f"{_HERE}.core",
    "mcore": f"{_HERE}.core",
    "legacy": f"{_HERE}.legacy",
    "megatron": f"{_HERE}.legacy",
    "hf": f"{_HERE}.hf",
}
# Order of looking: formats that are recognised by one file before those that need a closer look.
_LOOKED_FOR = ("gguf", "meta", "hf", "core")


def loader(name: str) -> ModuleType:
    """The module of a source format.

    Raises:
        UsageError: There is none of that name.
    """
    return _module(LOADERS, name, "loader")


def saver(name: str) -> ModuleType:
    """The module of a target format.

    Raises:
        UsageError: There is none of that name.
    """
    return _module(SAVERS, name, "saver")


def _module(table: dict[str, str], name: str, kind: str) -> ModuleType:
    if name not in table:
        raise UsageError(f"there is no {kind} {name!r}; one of: {', '.join(table)}")
    return import_module(table[name])


def recognised(path: Path) -> str | None:
    """Name of the loader that reads what is at `path`, None if none does."""
    if not path.exists():
        return None
    # Directories of Hugging Face often hold the same model in other formats too.
    if _has_weights(path) and loader("hf").matches(path):
        return "hf"
    return next((name for name in _LOOKED_FOR if loader(name).matches(path)), None)


def _has_weights(path: Path) -> bool:
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return any(next(path.glob(pattern), None) is not None for pattern in patterns)


def detect(path: Path) -> str:
    """Name of the loader that reads what is at `path`.

    Raises:
        CheckpointError: There is nothing, or nothing that any loader reads.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    name = recognised(path)
    if name is None:
        raise CheckpointError(
            f"{path}: the format is not recognised. Looked for: a GGUF file; consolidated.*.pth "
            "with params.json (Meta); config.json (Hugging Face); "
            "latest_checkpointed_iteration.txt or mp_rank_* (Megatron and megacore)"
        )
    return name


def open_source(path: Path, options: SourceOptions, *, name: str | None = None) -> Source:
    """Opens a model with the loader of this name, or with the one that recognises it.

    Raises:
        CheckpointError: It cannot be read; the message says why.
        UsageError: There is no such loader.
    """
    source: Source = loader(name or detect(path)).open_source(path, options)
    return source


def make_target(name: str, options: TargetOptions) -> Target:
    """A target in the format of this name.

    Raises:
        CheckpointError: The format cannot have these options.
        UsageError: There is no such saver.
    """
    target: Target = saver(name).make_target(options)
    return target
