"""Names inside a checkpoint directory, the tracker, and finding a checkpoint to read."""

from __future__ import annotations

import re
from pathlib import Path

from megacore.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
METADATA = "metadata.json"
DCP_METADATA = ".metadata"
COMMON = "common.pt"
CHECKSUMS = "checksums.json"
RANK_FILE = "model_optim_rng.pt"
RANKS_OF_MEGATRON = "Megatron torch"
TORCH_DIST = "Megatron torch_dist"
FORMAT_KEY = "megacore_checkpoint"

# Hidden names, so that neither people nor tools take what they hold for a checkpoint.
WRITING = ".writing-"
REPLACED = ".replaced-"
REMOVING = ".removing-"

_ITERATION = re.compile(r"iter_(\d{7,})")


def iteration_name(iteration: int) -> str:
    """Directory name of an iteration: iter_0000100."""
    return f"iter_{iteration:07d}"


def iteration_of(name: str) -> int:
    """The iteration in the name of a directory, 0 for another name."""
    match = _ITERATION.fullmatch(name.removeprefix(REPLACED))
    return int(match.group(1)) if match else 0


def chunk_file_name(writer: int, number: int) -> str:
    """File of a process that writes tensors: __3_0.distcp."""
    return f"__{writer}_{number}.distcp"


def is_complete(path: Path) -> bool:
    """Whether a directory holds a checkpoint that megacore has published.

    Only the presence of the checksums is looked at; damage is found when it is opened.
    """
    return (path / CHECKSUMS).is_file()


def has_rank_files(path: Path) -> bool:
    """Whether a directory holds files of the ranks of a model: the format `torch`."""
    return any(path.glob(f"mp_rank_*/{RANK_FILE}"))


def is_readable(path: Path) -> bool:
    """Whether a directory holds a complete checkpoint, written by any program.

    Megacore writes the checksums last, Megatron-Core metadata.json, PyTorch .metadata. Whether the
    files of all ranks are there is seen when they are opened.
    """
    if is_complete(path) or has_rank_files(path):
        return True
    if not (path / DCP_METADATA).is_file():
        return False
    return (path / METADATA).is_file() or not (path / COMMON).exists()


def foreign_format(path: Path) -> str | None:
    """Name of the other system's format that a directory is written in, None if unknown."""
    if any(path.glob("mp_rank_*/*.pt")) or any(path.glob("mp_rank_*/*/*.pt")):
        return RANKS_OF_MEGATRON
    if (path / DCP_METADATA).exists() or any(path.glob("*.distcp")):
        return TORCH_DIST
    if any(path.glob("*/.zarray")):
        return "Megatron zarr"
    return None


def iterations(directory: Path) -> list[int]:
    """Iterations that have a directory, whatever its content, in ascending order."""
    found = set()
    for entry in directory.iterdir():
        match = _ITERATION.fullmatch(entry.name.removeprefix(REPLACED))
        if match and entry.is_dir():
            found.add(int(match.group(1)))
    return sorted(found)


def published(directory: Path, name: str) -> Path | None:
    """Where the complete checkpoint of this name is, None if there is none.

    A writer that was cut off while it exchanged an iteration for a new version of itself has moved
    the old one aside; nothing was lost, and the old one is what this returns.
    """
    for path in (directory / name, directory / f"{REPLACED}{name}"):
        if is_readable(path):
            return path
        if path.exists():
            return None
    return None


def complete_iterations(directory: Path) -> list[int]:
    """Iterations with a complete checkpoint, in ascending order."""
    return [i for i in iterations(directory) if published(directory, iteration_name(i))]


def read_tracker(directory: Path) -> int | str | None:
    """What the tracker points at: an iteration, "release", or None when there is no tracker.

    Raises:
        CheckpointError: The tracker holds something else.
    """
    path = directory / TRACKER
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    text = raw.decode("ascii", errors="replace").strip()
    if text == RELEASE:
        return RELEASE
    if not re.fullmatch(r"[0-9]+", text):
        raise CheckpointError(
            f"{path}: expected an iteration number or the word {RELEASE}, found {text[:40]!r}"
        )
    return int(text)


def latest_iteration(directory: Path) -> int | None:
    """Newest iteration that a directory vouches for, None when it has none.

    That is the tracker's, or without a tracker (a first save that was cut off just before it) the
    newest complete one. "release" is not an iteration.
    """
    tracked = read_tracker(directory)
    if tracked is None and directory.is_dir():
        return max(complete_iterations(directory), default=None)
    return tracked if isinstance(tracked, int) else None


def find_checkpoint(directory: str | Path, *, step: int | None = None) -> Path | None:
    """The checkpoint directory to read.

    Args:
        directory: What `--load` names.
        step: Iteration to read instead of the one in the tracker.

    Returns:
        Path of iter_... or release, or the directory itself if it is a checkpoint; None when there
        is nothing at all (no directory, no tracker, no iteration), which a caller may take for a
        fresh start.

    Raises:
        CheckpointError: Something is there, but it cannot be read: wrong tracker, missing or
            incomplete iteration, a format that is not supported.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a checkpoint directory, found a file")
    if not directory.exists():
        return None
    tracked = read_tracker(directory)
    present = iterations(directory)
    if tracked is None and not present:
        return directory if step is None and is_readable(directory) else None
    if step is not None:
        return _readable(directory, iteration_name(step), wanted_by=f"iteration {step}")
    if tracked == RELEASE:
        return _readable(directory, RELEASE, wanted_by=f"{TRACKER} (release)")
    if tracked is None:
        newest = max(complete_iterations(directory) or present)
        wanted_by = f"no {TRACKER}; the newest iteration"
        return _readable(directory, iteration_name(newest), wanted_by=wanted_by)
    return _readable(directory, iteration_name(int(tracked)), wanted_by=f"{TRACKER} ({tracked})")


def _readable(directory: Path, name: str, *, wanted_by: str) -> Path:
    found = published(directory, name)
    if found:
        return found
    path = directory / name
    if not path.exists():
        have = ", ".join(str(i) for i in iterations(directory)) or "none"
        raise CheckpointError(
            f"{path}: not found, but wanted by {wanted_by}; iterations there: {have}"
        )
    foreign = foreign_format(path)
    if foreign == RANKS_OF_MEGATRON:
        raise CheckpointError(f"{path}: not a complete checkpoint: no mp_rank_* has {RANK_FILE}")
    if foreign and foreign != TORCH_DIST:
        raise CheckpointError(f"{path}: this is a {foreign} checkpoint: not supported yet")
    raise CheckpointError(f"{path}: not a complete checkpoint: {CHECKSUMS} is missing")
