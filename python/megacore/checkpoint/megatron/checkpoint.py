"""An open checkpoint of the `torch` format: what all its files hold together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megacore.checkpoint.megatron.arguments import Plain, settings_of_args, stored_fields
from megacore.checkpoint.megatron.chunks import StoredModel, read_model
from megacore.checkpoint.megatron.optimizer import has_optimizer, inner_optimizer, optimizer_parts
from megacore.checkpoint.megatron.rank_files import Place, find_rank_files, first_file
from megacore.checkpoint.megatron.run_values import (
    counters,
    optimizer_values,
    schedule,
)
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.torch_files import read_torch_file
from megacore.errors import CheckpointError

# Key of our own values: the text of a JSON object.
OWN = "megacore"
MODEL, OPTIMIZER, RNG = "model", "optimizer", "rng"


class MegatronCheckpoint:
    """A checkpoint of Megatron-LM, or of megacore in the same layout.

    Opening it reads the lists of tensors of all files; tensors are memory maps of the files.

    Args:
        path: Directory of an iteration, or of a release.
        verify: Which files to compare with their checksums, byte by byte: (i, n) for one in n of
            them, from the i-th one on; None for none.

    Attributes:
        path: The directory.
        args: Attributes of the stored namespace.
        model: The model.

    Raises:
        CheckpointError: A file is missing, damaged or not that of a model; the message names it.
    """

    def __init__(self, path: Path, *, verify: tuple[int, int] | None = None) -> None:
        self.path = path
        first = first_file(path)
        state = _read(first)
        self.args = stored_fields(state)
        self._files = find_rank_files(
            path,
            tensor_size=_size(self.args, "tensor_model_parallel_size"),
            pipeline_size=_size(self.args, "pipeline_model_parallel_size"),
            expert_size=_size(self.args, "expert_model_parallel_size") or 1,
        )
        self._verify = verify
        files = {place: self._files.model_file(place) for place in sorted(self._files.directories)}
        self._states = {
            place: _read(file, verify=self._is_mine(number)) if number else state
            for number, (place, file) in enumerate(files.items())
        }
        if self._is_mine(0):
            _read(first, verify=True)
        self._first = self._states[Place(0)]
        self._check_iterations()
        self.model: StoredModel = read_model(self._files, self._states)
        expected = _size(self.args, "num_layers")
        if expected is not None and expected != self.model.num_layers:
            raise CheckpointError(
                f"{path}: args.num_layers is {expected}, but the files hold "
                f"{self.model.num_layers} layers"
            )

    @property
    def iteration(self) -> int:
        """Iterations that were completed, 0 when the files do not say."""
        iteration = self._first.get("iteration")
        return iteration if isinstance(iteration, int) else 0

    @property
    def is_own(self) -> bool:
        """Whether megacore wrote it."""
        return OWN in self._first

    @cached_property
    def settings(self) -> dict[str, Plain]:
        """The stored arguments as settings of megacore."""
        return settings_of_args(self.args, is_legacy=self.model.is_legacy, is_own=self.is_own)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        there = {
            MODEL: True,
            OPTIMIZER: has_optimizer(self._first),
            RNG: bool(self._first.get("rng_state")),
        }
        return tuple(name for name, is_there in there.items() if is_there)

    @property
    def values(self) -> dict[str, Any]:
        """Everything that is not a tensor, by the names that a run uses."""
        file = self._files.model_file(Place(0))
        if self.is_own:
            return own_values(self._first[OWN], file)
        values: dict[str, Any] = {
            "args": self.settings,
            "counters": counters(self._first, self.args, self.iteration),
            "scheduler": schedule(self._first),
            # Random states of another program mean nothing to the layers here.
            "rng_layout": [],
        }
        if OPTIMIZER in self.groups:
            values[OPTIMIZER] = optimizer_values(self._first, file, self.iteration)
        return values

    def parts(self, group: str) -> dict[str, list[Part]]:
        """Name -> the parts that make up each tensor of the model, or of the optimizer.

        Raises:
            CheckpointError: They are not there, or do not fit to the model.
        """
        if group == MODEL:
            return self.model.parts()
        return optimizer_parts(self._files, self._states, self.model, self._buffers())

    def rng_entries(self) -> list[tuple[Path, Mapping[str, Any]]]:
        """Random states, with the file that they are in; those of one or more processes each.

        Raises:
            CheckpointError: A file has none.
        """
        found: list[tuple[Path, Mapping[str, Any]]] = []
        for place, state in self._states.items():
            file, entries = self._files.model_file(place), state.get("rng_state")
            if not isinstance(entries, list) or not entries:
                raise CheckpointError(f"{file}: holds no random state; pass --no-load-rng")
            found += [(file, entry) for entry in entries if isinstance(entry, Mapping)]
        return found

    def _buffers(self) -> dict[Place, Any]:
        """Contents of the files of a distributed optimizer; empty when it was a plain one."""
        inner = inner_optimizer(self._first, self._files.model_file(Place(0)))
        if inner.get("state"):
            return {}
        files = {place: self._files.buffer_file(place) for place in self._states}
        missing = [str(file) for file in files.values() if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{missing[0]}: missing, but the optimizer was a distributed one; pass "
                "--no-load-optim to go on without its state"
            )
        return {
            place: _read(file, verify=self._is_mine(number), of_model=False)
            for number, (place, file) in enumerate(files.items())
        }

    def _is_mine(self, number: int) -> bool:
        """Whether this process verifies a file."""
        return self._verify is not None and number % self._verify[1] == self._verify[0]

    def _check_iterations(self) -> None:
        """All files must be of one save."""
        for place, state in self._states.items():
            if state.get("iteration") != self._first.get("iteration"):
                raise CheckpointError(
                    f"{self._files.model_file(place)}: of iteration {state.get('iteration')}, but "
                    f"the first rank's file is of iteration {self._first.get('iteration')}"
                )

    @property
    def tensor_size(self) -> int:
        """Tensor-parallel size."""
        return self._files.tensor_size

    @property
    def pipeline_size(self) -> int:
        """Ranks of the pipeline."""
        return self._files.pipeline_size

    @property
    def virtual_size(self) -> int:
        """Stages of each rank of the pipeline."""
        return len(self.model.chunks[Place(0)])

    @property
    def dtype(self) -> torch.dtype:
        """Of the word embedding, or of the first tensor that there is."""
        return next(iter(self.model.chunks[Place(0)][0].tensors.values())).dtype


def own_values(text: Any, file: Path) -> dict[str, Any]:
    """The values that megacore stored for itself.

    Raises:
        CheckpointError: They are not a JSON object.
    """
    try:
        values = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the values of the run are damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


def _read(file: Path, *, verify: bool = False, of_model: bool = True) -> Any:
    state = read_torch_file(file, verify=verify)
    if of_model and not isinstance(state, Mapping):
        raise CheckpointError(f"{file}: expected a dictionary, found {type(state).__name__}")
    return state


def _size(args: Mapping[str, Any], name: str) -> int | None:
    value = args.get(name)
    return value if isinstance(value, int) and value > 0 else None
