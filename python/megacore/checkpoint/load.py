"""Reading checkpoints: any layout of processes from any other, every byte verified."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.chunks import Region, part_regions, whole
from megacore.checkpoint.common_file import OWN, values_of
from megacore.checkpoint.fit import Fit
from megacore.checkpoint.manifest import Manifest, read_manifest
from megacore.checkpoint.pieces import Part, whole_layout
from megacore.checkpoint.sharded_keys import GROUPS
from megacore.checkpoint.spans import Copy, Reader, SpanReader, copies
from megacore.checkpoint.stored import StoredTensor, stored_tensors
from megacore.checkpoint.strictness import STRICT, Strictness
from megacore.checkpoint.torch_files import read_torch_file
from megacore.checkpoint.torch_files.dcp import read_dcp_metadata
from megacore.checkpoint.vocabulary import VocabularyRows
from megacore.errors import CheckpointError
from megacore.parallel.layout import ParamLayout

_WITHOUT = {
    "optimizer": "; pass --no-load-optim to go on without it",
    "rng": "; pass --no-load-rng to go on without it",
}


class Checkpoint:
    """An open `torch_dist` checkpoint: small values are read, tensors are when asked for.

    Attributes:
        path: Directory of the checkpoint.
        iteration: Iterations completed when it was saved.
        values: Everything that is not a tensor.
        is_own: Whether megacore wrote it. Otherwise it comes from Megatron-Core or PyTorch: only
            what these store is known, and verified with what checksums they have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = stored_manifest(path)
        self.is_own = manifest is not None
        if manifest is not None:
            # All sizes first: a copy that was cut short is found before anything is loaded.
            manifest.check_sizes(path)
            for name in (layout.COMMON, layout.DCP_METADATA, layout.METADATA):
                manifest.read_verified(path, name)
        common = read_common(path, manifest)
        self.iteration = iteration_in(path, manifest, common)
        self.values: dict[str, Any] = {}
        if common:
            self.values = values_of(common, self.iteration, path / layout.COMMON)
        self._tensors = stored_tensors(read_dcp_metadata(path))
        self._reader: Reader = SpanReader(path, manifest)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        return tuple(group for group in GROUPS if group in self._tensors)

    def names(self, group: str) -> list[str]:
        """Names of the tensors of a group.

        Raises:
            CheckpointError: The group is not there.
        """
        return list(self._group(group))

    def describe(self, group: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name -> (dtype, full shape) of a group, without reading the data.

        Raises:
            CheckpointError: The group is not there.
        """
        return {name: (t.dtype, t.shape) for name, t in self._group(group).items()}

    def stored(self, group: str) -> dict[str, StoredTensor]:
        """Name -> where the chunks of each tensor of a group are.

        Raises:
            CheckpointError: The group is not there.
        """
        return dict(self._group(group))

    def _group(self, group: str) -> dict[str, StoredTensor]:
        if group not in self._tensors:
            raise CheckpointError(
                f"{self.path}: holds no {group} state, only {', '.join(self.groups) or 'nothing'}"
                + _WITHOUT.get(group, "")
            )
        return self._tensors[group]

    def read(self, group: str, name: str) -> Tensor:
        """A whole tensor, verified.

        Raises:
            CheckpointError: It is not there, incomplete or damaged.
        """
        stored = self._group(group).get(name)
        if stored is None:
            raise CheckpointError(f"{self.path}: the {group} state has no tensor {name}")
        return self._read([stored])[0]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """All tensors of a group, whole and verified.

        Raises:
            CheckpointError: The group is not there, or a tensor is incomplete or damaged.
        """
        stored = self._group(group)
        return dict(zip(stored, self._read(list(stored.values())), strict=True))

    def _read(self, wanted: Sequence[StoredTensor]) -> list[Tensor]:
        full = [torch.empty(stored.shape, dtype=stored.dtype) for stored in wanted]
        work: list[Copy] = []
        for stored, tensor in zip(wanted, full, strict=True):
            fault = stored.fault()
            if fault is not None:
                raise CheckpointError(f"{self.path}: tensor {stored.name} is incomplete: {fault}")
            work += copies(stored, [(whole(stored.shape), tensor)])
        self._reader.run(work)
        return full

    def load_into(
        self,
        group: str,
        targets: Mapping[str, Tensor],
        *,
        layouts: Mapping[str, ParamLayout] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Copies a group into tensors that exist already.

        Args:
            group: Which group.
            targets: Name -> tensor to fill in place, any device.
            layouts: Name -> which part of the full tensor a target is, and what that is called;
                targets without layout are full tensors of their own name.
            settings: Keyword arguments of `fill`.

        Returns:
            As `fill`.

        Raises:
            CheckpointError: As `fill`.
        """
        parts = [
            Part((layouts or {}).get(name) or whole_layout(name, tuple(target.shape)), target)
            for name, target in targets.items()
        ]
        return self.fill(group, parts, **settings)

    def fill(
        self,
        group: str,
        parts: Sequence[Part],
        *,
        cast: bool = False,
        vocabulary: VocabularyRows | None = None,
        others: Collection[str] = (),
        ignore: Sequence[str] = (),
        strictness: Strictness = STRICT,
        reads: Collection[int] | None = None,
    ) -> list[str]:
        """Copies exactly what is asked for, from wherever it is stored, into tensors.

        Args:
            group: Which group.
            parts: Parts of tensors, or ranges of parts, to fill in place. What the checkpoint has
                no values for (rows added to a vocabulary) is left as it is.
            cast: Accept another dtype and convert.
            vocabulary: Accept other numbers of padding rows in vocabulary weights.
            others: Stored tensors that may have no target: other processes of this run have them.
            ignore: Beginnings of stored names that may have no target.
            strictness: What is done about tensors that only one side has.
            reads: Indices of the parts to fill now, by default all; others are only checked.

        Returns:
            Notes for the log: tensors that were converted, resized or left out.

        Raises:
            CheckpointError: Names and shapes do not fit (every fault is listed, and no target was
                changed), or data is damaged (targets may have been filled).
        """
        found = self._group(group)
        fit = Fit(cast=cast, vocabulary=vocabulary, strictness=strictness)
        matched = [(part, fit.match(found, part)) for part in parts]
        fit.unexpected(found, {part.layout.name for part in parts}.union(others), tuple(ignore))
        fit.check(f"{self.path}: the {group} state")
        self._reader.run(
            copy
            for i, (part, stored) in enumerate(matched)
            if stored is not None and (reads is None or i in reads)
            for copy in _copies(stored, part)
        )
        return fit.notes


def stored_manifest(path: Path) -> Manifest | None:
    """The checksums of a checkpoint, None for one that another program wrote."""
    if (path / layout.CHECKSUMS).exists():
        return read_manifest(path)
    if not (path / layout.DCP_METADATA).exists():
        raise CheckpointError(f"{path}: not a complete checkpoint: {layout.CHECKSUMS} is missing")
    return None


def read_common(path: Path, manifest: Manifest | None) -> Mapping[str, Any]:
    """The content of common.pt; empty where there is none, which PyTorch alone does not write."""
    file = path / layout.COMMON
    if manifest is None and not file.exists():
        return {}
    common = read_torch_file(file)
    if not isinstance(common, Mapping):
        raise CheckpointError(f"{file}: expected a dictionary, found {type(common).__name__}")
    if manifest is None and OWN in common:
        raise CheckpointError(f"{path}: not a complete checkpoint: {layout.CHECKSUMS} is missing")
    return common


def iteration_in(path: Path, manifest: Manifest | None, common: Mapping[str, Any]) -> int:
    """Iterations completed when a checkpoint was saved, from what is known about it."""
    if manifest is not None:
        return manifest.iteration
    stored = common.get("iteration")
    return stored if isinstance(stored, int) else layout.iteration_of(path.name)


def _copies(stored: StoredTensor, part: Part) -> Iterator[Copy]:
    rows = None
    if stored.shape != part.layout.full_shape:
        rows = min(stored.shape[0], part.layout.full_shape[0])
    return copies(stored, _wanted(part), rows=rows)


def _wanted(part: Part) -> Iterator[tuple[Region, Tensor]]:
    """Rectangles of the full tensor, and the views of the target that they go to."""
    data = part.data.detach()
    if data.is_contiguous():
        yield from part_regions(part.layout, part.start, data.view(-1))
        return
    origin = (0,) * data.dim()
    for box in part.layout.boxes():
        view = Region(box.local_offset, box.shape).of(data, origin)
        yield Region(box.full_offset, box.shape), view
