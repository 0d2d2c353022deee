"""Reading checkpoints: verified against their checksums, streamed through a memory map."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.metadata import Metadata, read_metadata
from megacore.checkpoint.pieces import (
    Piece,
    assemble,
    missing_elements,
    place,
    whole_layout,
    whole_piece,
)
from megacore.checkpoint.tensor_file import DTYPE_NAMES, TensorFile, check_size
from megacore.checkpoint.vocabulary import VocabularyRows
from megacore.errors import CheckpointError
from megacore.parallel.layout import ParamLayout

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
        names = (layout.group_of(name) for name in self._metadata.files)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def _open(self, group: str) -> dict[str, list[_Stored]]:
        """Name -> the pieces of each tensor of a group, none of them read yet.

        Raises:
            CheckpointError: The group is not there, a header is damaged, or pieces are missing.
        """
        if group not in self.groups:
            raise CheckpointError(
                f"{self.path}: holds no {group} state, only {', '.join(self.groups) or 'nothing'}"
                + _WITHOUT.get(group, "")
            )
        found: dict[str, list[_Stored]] = {}
        for file_name, record in self._metadata.files.items():
            if layout.group_of(file_name) != group:
                continue
            file, pieces = TensorFile(self.path / file_name, record), record.pieces or {}
            for key in file.names:
                dtype, shape = file.describe(key)
                piece = pieces.get(key) or whole_piece(key, shape)
                if piece.count != math.prod(shape):
                    raise CheckpointError(
                        f"{self.path / file_name}: tensor {key}: expected {piece.count} elements, "
                        f"found {math.prod(shape)}"
                    )
                found.setdefault(piece.layout.name, []).append(_Stored(file, key, piece, dtype))
        for name, stored in found.items():
            fault = missing_elements([member.piece for member in stored])
            if fault is None and len({member.dtype for member in stored}) > 1:
                fault = "its pieces have different dtypes"
            if fault is not None:
                raise CheckpointError(f"{self.path}: tensor {name} of the {group} state: {fault}")
        return found

    def tensors(self, group: str) -> dict[str, Tensor]:
        """All tensors of a group, whole and verified, backed by private maps of the files.

        Raises:
            CheckpointError: The group is not there, or a file or tensor is damaged.
        """
        return {name: _read(stored) for name, stored in self._open(group).items()}

    def describe(self, group: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype as in safetensors, full shape) of a group, without reading the data.

        Raises:
            CheckpointError: The group is not there, or the header of a file is damaged.
        """
        return {
            name: (stored[0].dtype, stored[0].piece.layout.full_shape)
            for name, stored in self._open(group).items()
        }

    @torch.no_grad()
    def load_into(
        self,
        group: str,
        targets: Mapping[str, Tensor],
        *,
        layouts: Mapping[str, ParamLayout] | None = None,
        cast: bool = False,
        vocabulary: VocabularyRows | None = None,
        others: Collection[str] = (),
        ignore: Sequence[str] = (),
    ) -> list[str]:
        """Copies a group into tensors that exist already, one tensor at a time.

        Args:
            group: Which group.
            targets: Name -> tensor to fill in place, any device.
            layouts: Name -> which part of the full tensor a target is, and what that is called;
                targets without layout are full tensors of their own name.
            cast: Accept another dtype and convert.
            vocabulary: Accept other numbers of padding rows in vocabulary weights.
            others: Stored tensors that may have no target: other processes of this run have them.
            ignore: Beginnings of stored names that may have no target.

        Returns:
            Notes for the log: tensors that were converted or resized.

        Raises:
            CheckpointError: Names and shapes do not fit (every fault is listed, and no target was
                changed), or data is damaged (targets before the damaged one were filled).
        """

        def slot(name: str, target: Tensor) -> Slot:
            cut = (layouts or {}).get(name) or whole_layout(name, tuple(target.shape))
            return Slot(cut, target.dtype, lambda: target)

        slots = [slot(name, target) for name, target in targets.items()]
        filled = self.stream(
            group, slots, cast=cast, vocabulary=vocabulary, others=others, ignore=ignore
        )
        return [note for _, _, notes in filled for note in notes]

    @torch.no_grad()
    def stream(
        self,
        group: str,
        slots: Sequence[Slot],
        *,
        cast: bool = False,
        vocabulary: VocabularyRows | None = None,
        others: Collection[str] = (),
        ignore: Sequence[str] = (),
    ) -> Iterator[tuple[Slot, Tensor, list[str]]]:
        """Fills the slots one after the other; each can be emptied before the next is filled.

        Args:
            group: Which group.
            slots: What to fill.
            cast: As in `load_into`.
            vocabulary: As in `load_into`.
            others: As in `load_into`.
            ignore: As in `load_into`.

        Yields:
            A slot, the tensor that was filled for it, and notes about it for the log.

        Raises:
            CheckpointError: As `load_into`.
        """
        found = self._open(group)
        faults, notes = _compare(found, slots, cast, vocabulary)
        expected = {slot.layout.name for slot in slots}.union(others)
        faults += [
            f"{name}: in the checkpoint, but not in this run"
            for name in found
            if name not in expected and not (ignore and name.startswith(tuple(ignore)))
        ]
        if faults:
            shown = faults[:_MAX_FAULTS_SHOWN]
            rest = len(faults) - len(shown)
            raise CheckpointError(
                f"{self.path}: the {group} state does not fit this run "
                f"({len(faults)} tensor{'s' if len(faults) != 1 else ''}):\n"
                + "\n".join(f"  {fault}" for fault in shown)
                + (f"\n  ... and {rest} more" if rest else "")
            )
        for slot, slot_notes in zip(slots, notes, strict=True):
            target = slot.target()
            note = place(_read(found[slot.layout.name]), target, slot.layout, vocabulary)
            if note is not None:
                slot_notes.append(f"{slot.layout.name}: {note}")
            yield slot, target, slot_notes


@dataclass(frozen=True)
class Slot:
    """Where a tensor, or the part of it that this process has, is to be put.

    Attributes:
        layout: Which part it is, and the name of the tensor.
        dtype: Of the target.
        target: Gives the tensor to fill, of shape `layout.local_shape`; what the checkpoint has
            no values for (rows added to a vocabulary) is left in it.
    """

    layout: ParamLayout
    dtype: torch.dtype
    target: Callable[[], Tensor]


@dataclass(frozen=True)
class _Stored:
    """A piece of a tensor in an open file."""

    file: TensorFile
    key: str
    piece: Piece
    dtype: str


def _read(stored: Sequence[_Stored]) -> Tensor:
    if len(stored) == 1 and stored[0].piece.is_whole:
        return stored[0].file.read(stored[0].key)
    return assemble([(member.piece, member.file.read(member.key)) for member in stored])


def _compare(
    found: Mapping[str, Sequence[_Stored]],
    slots: Sequence[Slot],
    cast: bool,
    vocabulary: VocabularyRows | None,
) -> tuple[list[str], list[list[str]]]:
    """Faults of filling the slots from what is stored, and notes about each slot."""
    faults: list[str] = []
    notes: list[list[str]] = []
    for slot in slots:
        name, wanted = slot.layout.name, slot.layout.full_shape
        notes.append([])
        if name not in found:
            faults.append(f"{name}: missing in the checkpoint")
            continue
        dtype, shape = found[name][0].dtype, found[name][0].piece.layout.full_shape
        if shape != wanted and not (vocabulary and vocabulary.fits(name, shape, wanted)):
            faults.append(f"{name}: expected shape {list(wanted)}, found {list(shape)}")
        wanted_dtype = DTYPE_NAMES.get(slot.dtype, str(slot.dtype))
        if dtype != wanted_dtype and cast:
            notes[-1].append(f"{name}: {dtype} converted to {wanted_dtype}")
        elif dtype != wanted_dtype:
            faults.append(f"{name}: expected dtype {wanted_dtype}, found {dtype}")
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
