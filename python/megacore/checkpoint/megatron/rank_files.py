"""Names of the directories and files of a `torch` checkpoint, one directory per rank of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megacore.checkpoint.layout import RANK_FILE
from megacore.errors import CheckpointError

MODEL_FILE = RANK_FILE
BUFFER_FILE = "distrib_optim.pt"

_DIRECTORY = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_MAX_SHOWN = 8


@dataclass(frozen=True, order=True)
class Place:
    """Place of a file in the grid that the model is cut into.

    Attributes:
        tensor: Rank in the tensor-parallel group.
        pipeline: Rank of the pipeline.
        expert: Rank in the expert-parallel group.
    """

    tensor: int
    pipeline: int = 0
    expert: int = 0

    def directory(self, *, pipeline_size: int, expert_size: int = 1) -> str:
        """Name of its directory, which has only the numbers that the grid needs."""
        name = f"mp_rank_{self.tensor:02d}"
        if pipeline_size > 1:
            name += f"_{self.pipeline:03d}"
        return name + (f"_{self.expert:03d}" if expert_size > 1 else "")


@dataclass(frozen=True)
class RankFiles:
    """The directories of a checkpoint, none of them missing.

    Attributes:
        tensor_size: Tensor-parallel size.
        pipeline_size: Ranks of the pipeline.
        directories: Place -> directory.
    """

    tensor_size: int
    pipeline_size: int
    directories: Mapping[Place, Path]

    def model_file(self, place: Place) -> Path:
        """The file of everything but the state of a distributed optimizer."""
        return self.directories[place] / MODEL_FILE

    def buffer_file(self, place: Place) -> Path:
        """The file of the state of a distributed optimizer."""
        return self.directories[place] / BUFFER_FILE


def first_file(path: Path) -> Path:
    """The file of the first rank, which says how large the grid is.

    Raises:
        CheckpointError: There is none.
    """
    found = sorted(_numbers(path))
    if not found or any(found[0]):
        raise CheckpointError(
            f"{path}: mp_rank_00/{MODEL_FILE} (or mp_rank_00_000/...) of the first rank is missing"
            + (f"; found {', '.join(sorted(p.name for p in _numbers(path).values()))}"[:200])
        )
    return _numbers(path)[found[0]] / MODEL_FILE


def find_rank_files(
    path: Path, *, tensor_size: int | None, pipeline_size: int | None, expert_size: int = 1
) -> RankFiles:
    """All directories of a checkpoint.

    Args:
        path: Directory of an iteration, or of a release.
        tensor_size: Tensor-parallel size by the settings that the checkpoint holds, None when
            they do not say.
        pipeline_size: Ranks of the pipeline by those settings.
        expert_size: Expert-parallel size by those settings.

    Raises:
        CheckpointError: A rank of the grid has no file; all of them are named. Or the directories
            do not fit together.
    """
    numbers = _numbers(path)
    if expert_size > 1:
        raise CheckpointError(
            f"{path}: its experts are divided over {expert_size} ranks (expert parallelism), which "
            "is not supported yet"
        )
    if len({len(own) for own in numbers}) > 1 or any(len(own) > 2 for own in numbers):
        names = ", ".join(sorted(p.name for p in numbers.values())[:_MAX_SHOWN])
        raise CheckpointError(f"{path}: directories of more than one layout: {names}")
    directories = {Place(*own): directory for own, directory in numbers.items()}
    tensor_size = max(tensor_size or 1, *(place.tensor + 1 for place in directories))
    found_pipeline = max(place.pipeline for place in directories) + 1
    pipeline_size = max(pipeline_size or 1, found_pipeline)
    missing = [
        place.directory(pipeline_size=pipeline_size)
        for place in _grid(tensor_size, pipeline_size)
        if place not in directories or not (directories[place] / MODEL_FILE).is_file()
    ]
    if missing:
        shown = ", ".join(f"{name}/{MODEL_FILE}" for name in missing[:_MAX_SHOWN])
        rest = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise CheckpointError(
            f"{path}: incomplete: of {tensor_size} tensor-parallel ranks and {pipeline_size} "
            f"pipeline ranks, {shown}{rest} missing"
        )
    return RankFiles(tensor_size, pipeline_size, directories)


def _grid(tensor_size: int, pipeline_size: int) -> list[Place]:
    return [Place(t, p) for p in range(pipeline_size) for t in range(tensor_size)]


def _numbers(path: Path) -> dict[tuple[int, ...], Path]:
    """Numbers in the name -> directory."""
    found = {}
    for entry in path.glob("mp_rank_*"):
        match = _DIRECTORY.fullmatch(entry.name)
        if match and entry.is_dir():
            found[tuple(int(number) for number in match.groups() if number is not None)] = entry
    return found
