"""What goes into a checkpoint of a run."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from megacore.checkpoint.config import CheckpointConfig
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.random_streams import RandomStream
from megacore.training.checkpoint_parts import (
    MODEL,
    OPTIMIZER,
    RNG,
    GroupWriters,
    gather_rng_of,
    model_parts,
    optimizer_parts,
    rng_layout,
)
from megacore.training.learner import Learner
from megacore.training.live_view import Screen
from megacore.training.outputs import Outputs
from megacore.training.rank_files import RankFiles, rng_entries
from megacore.training.run_config import RunConfig
from megacore.training.run_state import RunState
from megacore.training.saver import Saver, SaveRequest

Result = TypeVar("Result")


def stored_arguments(run: RunConfig, *, vocab_size: int, padded_vocab_size: int) -> dict[str, Any]:
    """The "args" of a checkpoint: every setting, and the sizes of the vocabulary that was used."""
    sizes = {"true_vocab_size": vocab_size, "padded_vocab_size": padded_vocab_size}
    return {**run.values(), **sizes}


def environment(device: torch.device) -> dict[str, Any]:
    """What results depend on besides the settings; a resumed run elsewhere is not bitwise equal."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
    }


class Checkpoints:
    """Saves a run.

    Args:
        config: What to save and how often.
        saver: Writes them, or None when nothing is saved.
        learner: Model, optimizer and schedule.
        arguments: What `stored_arguments` gave.
        groups: The processes of the run.
        stream: Random stream of a tensor-parallel process, or None.
        device: Where the model is.
        outputs: Holds the progress file.
        screen: Prints lines.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        *,
        saver: Saver | None,
        learner: Learner,
        arguments: Mapping[str, Any],
        groups: ParallelGroups,
        stream: RandomStream | None,
        device: torch.device,
        outputs: Outputs,
        screen: Screen,
    ) -> None:
        self._config = config
        self._groups = groups
        self._stream = stream
        self._saver = saver
        self._learner = learner
        self._arguments = dict(arguments)
        self._device = device
        self._outputs = outputs
        self._screen = screen

    @property
    def is_on(self) -> bool:
        """Whether the run is saved at all."""
        return self._saver is not None

    @property
    def interval(self) -> int | None:
        """Iterations between periodic saves."""
        return self._config.save_interval if self.is_on else None

    @property
    def non_persistent_interval(self) -> int | None:
        """Iterations between saves of which only the newest is kept."""
        return self._config.non_persistent_save_interval if self.is_on else None

    def prepare(self) -> None:
        """Find what saving will need, before the first iteration.

        Raises:
            CheckpointError: There is no memory for the copies of `--async-save`.
        """
        if self._saver is None or self._config.ckpt_format == "torch":
            return
        learner, groups = self._learner, self._groups
        spread = self._config.ckpt_fully_parallel_save
        parts = model_parts(learner, groups, spread=spread)
        if not self._config.no_save_optim:
            parts += optimizer_parts(learner, groups, spread=spread)
        self._saver.prepare(parts)

    def save(self, state: RunState, *, is_persistent: bool = True) -> None:
        """Write a checkpoint of the run as it is now.

        Args:
            state: Counters of the run.
            is_persistent: It is to be kept, and not only the newest of its kind.

        Raises:
            CheckpointError: It could not be written; what was there before is still valid.
        """
        assert self._saver is not None
        iteration, where = state.iteration, self._saver.path(is_persistent=is_persistent)
        self._screen.line(f"saving checkpoint at iteration {iteration:7d} to {where}")
        request = self._request(state, is_persistent=is_persistent)
        # The counters go on while a save may still be under way.
        at_save = replace(state)
        self._saver.save(request, lambda: self._note_saved(at_save, where))

    def _request(self, state: RunState, *, is_persistent: bool) -> SaveRequest:
        """What this process is to write, in the format of the run."""
        learner, groups = self._learner, self._groups
        values: dict[str, Any] = {
            "args": self._arguments,
            "counters": state.values(),
            "scheduler": learner.scheduler.state_values(),
            "environment": environment(self._device),
        }
        if learner.fp8 is not None:
            parts_of_all = GroupWriters(groups.world, self._device).exchange(
                learner.fp8.state_values()
            )
            values["fp8"] = {name: value for part in parts_of_all for name, value in part.items()}
        has_optimizer, has_rng = not self._config.no_save_optim, not self._config.no_save_rng
        if has_optimizer:
            values[OPTIMIZER] = learner.optimizer.state_values()
        if has_rng:
            values["rng_layout"] = rng_layout(groups)
        if self._config.ckpt_format == "torch":
            rng = rng_entries(groups, self._stream, self._device) if has_rng else None
            collected = RankFiles(learner, groups, self._device)
            files = collected.collect(state.iteration, values, rng)
            return SaveRequest(
                iteration=state.iteration,
                tensors={},
                parts={},
                values=values,
                is_persistent=is_persistent,
                files=files,
            )
        spread = self._config.ckpt_fully_parallel_save
        parts = {MODEL: model_parts(learner, groups, spread=spread)}
        tensors = {}
        if has_optimizer:
            parts[OPTIMIZER] = optimizer_parts(learner, groups, spread=spread)
        if has_rng:
            tensors[RNG], own = gather_rng_of(groups, self._stream)
            all_values = GroupWriters(groups.world, self._device).exchange(own)
            values[RNG] = {name: value for part in all_values for name, value in part.items()}
        return SaveRequest(
            iteration=state.iteration,
            tensors=tensors,
            parts=parts,
            values=values,
            is_persistent=is_persistent,
        )

    def _note_saved(self, state: RunState, where: Path) -> None:
        """Says that a checkpoint is published."""
        self._screen.line(
            f"  successfully saved checkpoint from iteration {state.iteration:7d} to {where}"
        )
        if self._outputs.progress is not None:
            self._outputs.progress.saved(
                state.iteration,
                operations=state.floating_point_operations,
                tokens=float(state.consumed_train_samples) * self._arguments["seq_length"],
                since_start=self._outputs.job,
            )

    def poll(self) -> None:
        """Look after a save that is under way; between any two iterations.

        Raises:
            CheckpointError: It could not be written.
        """
        if self._saver is not None:
            self._saver.poll()

    def finish(self) -> None:
        """Wait until everything is published.

        Raises:
            CheckpointError: It could not be written.
        """
        if self._saver is not None:
            self._saver.finish()
