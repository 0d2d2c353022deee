"""Reading checkpoints: verified against their checksums, streamed through a memory map."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.metadata import Metadata, read_metadata
from megacore.checkpoint.tensor_file import (
    DTYPE_NAMES,
    FileRecord,
    check_header,
    check_size,
    read_tensors,
)
from megacore.checkpoint.vocabulary import VocabularyRows
from megacore.errors import CheckpointError

_MAX_FAULTS_SHOWN = 100
_WITHOUT = {
    "optimizer": "; pass --no-load-optim to go on without it",
    "rng": "; pass --no-load-rng to go on without it",
}


class Checkpoint:
    """An open checkpoint: small values are read and verified, tensors are when asked for.

    Attributes:
        path: Directory of the checkpoint.
        iteration: Iterations completed when it was saved.
        values: Everything that is not a tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata: Metadata = read_metadata(path)
        self.iteration = self._metadata.iteration
        # All sizes first: a copy that was cut short is found before anything is loaded.
        for name, record in self._metadata.files.items():
            check_size(path / name, record)
        self.values: dict[str, Any] = _read_state(path, self._metadata)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        return tuple(
            name.removesuffix(layout.TENSORS_SUFFIX)
            for name in self._metadata.files
            if name.endswith(layout.TENSORS_SUFFIX)
        )

    def _file(self, group: str) -> tuple[Path, FileRecord]:
        name = group + layout.TENSORS_SUFFIX
        if name not in self._metadata.files:
            raise CheckpointError(
                f"{self.path}: holds no {group} state, only {', '.join(self.groups) or 'nothing'}"
                + _WITHOUT.get(group, "")
            )
        return self.path / name, self._metadata.files[name]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """All tensors of a group, verified, backed by a private map of the file.

        Raises:
            CheckpointError: The group is not there, or a file or tensor is damaged.
        """
        return dict(read_tensors(*self._file(group)))

    def describe(self, group: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype as in safetensors, shape) of a group, without reading the data.

        Raises:
            CheckpointError: The group is not there, or the header of its file is damaged.
        """
        path, record = self._file(group)
        check_size(path, record)
        check_header(path, record)
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                return {
                    name: (piece.get_dtype(), tuple(piece.get_shape()))
                    for name, piece in slices.items()
                }
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error

    @torch.no_grad()
    def load_into(
        self,
        group: str,
        targets: Mapping[str, Tensor],
        *,
        cast: bool = False,
        vocabulary: VocabularyRows | None = None,
        ignore: Sequence[str] = (),
    ) -> list[str]:
        """Copies a group into tensors that exist already, one tensor at a time.

        Args:
            group: Which group.
            targets: Name -> tensor to fill in place, any device.
            cast: Accept another dtype and convert.
            vocabulary: Accept other numbers of padding rows in vocabulary weights.
            ignore: Beginnings of stored names that may have no target.

        Returns:
            Notes for the log: tensors that were converted or resized.

        Raises:
            CheckpointError: Names and shapes do not fit (every fault is listed, and no target was
                changed), or data is damaged (targets before the damaged one were filled).
        """
        stored = self.describe(group)
        faults, notes = _compare(stored, targets, cast, vocabulary, tuple(ignore))
        if faults:
            shown = faults[:_MAX_FAULTS_SHOWN]
            rest = len(faults) - len(shown)
            raise CheckpointError(
                f"{self.path}: the {group} state does not fit this run "
                f"({len(faults)} tensor{'s' if len(faults) != 1 else ''}):\n"
                + "\n".join(f"  {fault}" for fault in shown)
                + (f"\n  ... and {rest} more" if rest else "")
            )
        for name, tensor in read_tensors(*self._file(group)):
            target = targets.get(name)
            if target is None:
                continue
            if vocabulary and target.shape != tensor.shape:
                notes.append(f"{name}: {vocabulary.copy(target, tensor)}")
            else:
                target.copy_(tensor)
        return notes


def _compare(
    stored: Mapping[str, tuple[str, tuple[int, ...]]],
    targets: Mapping[str, Tensor],
    cast: bool,
    vocabulary: VocabularyRows | None,
    ignore: tuple[str, ...],
) -> tuple[list[str], list[str]]:
    """Faults and notes of filling `targets` from `stored`."""
    faults = [f"{name}: missing in the checkpoint" for name in targets if name not in stored]
    notes: list[str] = []
    for name, (dtype, shape) in stored.items():
        if name not in targets:
            if not (ignore and name.startswith(ignore)):
                faults.append(f"{name}: in the checkpoint, but not in this run")
            continue
        target = targets[name]
        wanted = tuple(target.shape)
        if shape != wanted and not (vocabulary and vocabulary.fits(name, shape, wanted)):
            faults.append(f"{name}: expected shape {list(wanted)}, found {list(shape)}")
        wanted_dtype = DTYPE_NAMES.get(target.dtype, str(target.dtype))
        if dtype != wanted_dtype:
            (notes if cast else faults).append(
                f"{name}: {dtype} converted to {wanted_dtype}"
                if cast
                else f"{name}: expected dtype {wanted_dtype}, found {dtype}"
            )
    return faults, notes


def _read_state(path: Path, metadata: Metadata) -> dict[str, Any]:
    file = path / layout.STATE
    record = metadata.files.get(layout.STATE)
    if record is None:
        raise CheckpointError(f"{path}: metadata.json does not list {layout.STATE}")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    if xxhash.xxh3_64_hexdigest(raw) != record.digest:
        raise CheckpointError(
            f"{file}: damaged: its checksum is not the one stored in metadata.json"
        )
    values = json.loads(raw)
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


def load_checkpoint(directory: str | Path, *, step: int | None = None) -> Checkpoint:
    """Opens the checkpoint that a directory's tracker points at.

    Args:
        directory: What `--load` names.
        step: Iteration to read instead.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    path = layout.find_checkpoint(directory, step=step)
    if path is None:
        raise CheckpointError(f"{directory}: no checkpoint found there")
    return Checkpoint(path)
