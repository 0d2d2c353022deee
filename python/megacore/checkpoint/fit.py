"""Compares what a checkpoint holds with what a run wants, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from megacore.checkpoint.pieces import Part
from megacore.checkpoint.stored import StoredTensor
from megacore.checkpoint.strictness import Strictness
from megacore.checkpoint.vocabulary import VocabularyRows
from megacore.errors import CheckpointError

_MAX_FAULTS_SHOWN = 100
_MAX_NAMES_SHOWN = 5


@dataclass
class Fit:
    """Collects what does not fit, and what is to be said about what does.

    Attributes:
        cast: Accept another dtype.
        vocabulary: Accept other numbers of padding rows in vocabulary weights.
        strictness: What is done about tensors that only one side has.
        faults: What is wrong, one line each.
        notes: For the log.
    """

    cast: bool
    vocabulary: VocabularyRows | None
    strictness: Strictness
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def match(self, found: Mapping[str, StoredTensor], part: Part) -> StoredTensor | None:
        """The stored tensor to take a part from, None when it is not there."""
        name, wanted = part.layout.name, part.layout.full_shape
        stored = found.get(name)
        if stored is None:
            text = f"{name}: missing in the checkpoint"
            if self.strictness.missing == "raise":
                self._add(self.faults, text)
            elif self.strictness.missing == "log":
                self._add(self.notes, text)
            return None
        incomplete = stored.fault()
        if incomplete is not None:
            self._add(self.faults, f"{name}: incomplete in the checkpoint: {incomplete}")
        if stored.shape != wanted:
            if self.vocabulary and self.vocabulary.fits(name, stored.shape, wanted):
                note = self.vocabulary.note(stored.shape[0], wanted[0])
                self._add(self.notes, f"{name}: {note}")
            else:
                shapes = f"expected shape {list(wanted)}, found {list(stored.shape)}"
                self._add(self.faults, f"{name}: {shapes}")
        if stored.dtype != part.data.dtype:
            here, there = _short(part.data.dtype), _short(stored.dtype)
            if self.cast:
                self._add(self.notes, f"{name}: {there} converted to {here}")
            else:
                self._add(self.faults, f"{name}: expected dtype {here}, found {there}")
        return stored

    def unexpected(
        self, found: Mapping[str, StoredTensor], expected: Collection[str], ignore: tuple[str, ...]
    ) -> None:
        """Looks at what nobody asked for."""
        left = [
            name
            for name in found
            if name not in expected and not (ignore and name.startswith(ignore))
        ]
        if self.strictness.unexpected == "raise":
            self.faults += [f"{name}: in the checkpoint, but not in this run" for name in left]
        elif self.strictness.unexpected == "log" and left:
            some = ", ".join(left[:_MAX_NAMES_SHOWN]) + (" ..." if left[_MAX_NAMES_SHOWN:] else "")
            self.notes.append(f"{len(left)} tensors of the checkpoint are not used: {some}")

    def check(self, what: str) -> None:
        """Ends here when something is wrong.

        Raises:
            CheckpointError: Lists all that is wrong.
        """
        if not self.faults:
            return
        shown = self.faults[:_MAX_FAULTS_SHOWN]
        rest = len(self.faults) - len(shown)
        raise CheckpointError(
            f"{what} does not fit this run "
            f"({len(self.faults)} tensor{'s' if len(self.faults) != 1 else ''}):\n"
            + "\n".join(f"  {fault}" for fault in shown)
            + (f"\n  ... and {rest} more" if rest else "")
        )

    def _add(self, lines: list[str], text: str) -> None:
        # A sharded optimizer asks for a tensor in several ranges.
        if text not in lines:
            lines.append(text)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
