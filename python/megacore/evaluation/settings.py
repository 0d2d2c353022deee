"""The settings of an evaluation: those of training, with the task's, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from megacore.config.faults import fault, required
from megacore.config.layers import Origin
from megacore.config.parser import merge_faults, read_layers, show_notes
from megacore.config.report import format_config
from megacore.config.settings import value_faults
from megacore.errors import Fault, Information
from megacore.evaluation.config import TaskConfig
from megacore.parallel.launch import launch_faults, launched_world_size
from megacore.training.run_config import RunConfig, config_types

_DESCRIPTION = "Score a model on a task. Flags have the names of Megatron-LM's tasks/main.py."


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """What is evaluated, and how.

    Attributes:
        task: The task and its files.
        run: Model, tokenizer, batches, checkpoints and the rest; not resolved, because the length
            of a finetuning follows from its data.
        origins: Where each value came from.
    """

    task: TaskConfig
    run: RunConfig
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def is_given(self, name: str) -> bool:
        """Whether the command line or a file sets the field of this name."""
        return self.origins.get(name, Origin()).kind != "default"

    def faults(self) -> Iterator[Fault]:
        """Every rule that the values break."""
        yield from self.task.faults()
        if self.task.is_zero_shot:
            yield from self._zero_shot_faults()

    def _zero_shot_faults(self) -> Iterator[Fault]:
        for component in self.run.components:
            yield from value_faults(component)
        if self.run.checkpoint.load is None:
            yield required("--load")
        yield from self.run.precision.faults()
        parallel = self.run.parallel
        sizes = {
            "--tensor-model-parallel-size": parallel.tensor_model_parallel_size,
            "--pipeline-model-parallel-size": parallel.pipeline_model_parallel_size,
            "--context-parallel-size": parallel.context_parallel_size,
        }
        larger = {name: size for name, size in sizes.items() if size > 1}
        if larger:
            yield fault("MC1342", larger, allowed="1")


def parse_task(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> TaskRun:
    """An evaluation from its command line and files.

    Args:
        argv: Words of the command line, without the program name.
        environment: Variables of the launcher; by default those of this process.

    Raises:
        ConfigError: Every fault that could be found.
        Information: `--help` or `--print-config` was given.
    """
    types = config_types()
    parsed, faults, doubtful = read_layers(
        [TaskConfig, *types.values()],
        argv,
        prog="megacore evaluate",
        description=_DESCRIPTION,
        megatron=True,
    )
    run = RunConfig(**{name: parsed.configs[kind] for name, kind in types.items()})
    faults.extend(launch_faults(environment))
    run = run.in_world(launched_world_size(environment))
    result = TaskRun(task=parsed.configs[TaskConfig], run=run, origins=parsed.origins)
    faults.extend(result.faults())
    merge_faults(faults, doubtful)
    show_notes([*parsed.notes, *result.task.notes()])
    if parsed.print_config:
        raise Information(format_config([result.task, *run.components], parsed.origins))
    if result.task.is_zero_shot:
        run = replace(run, parallel=run.parallel.resolved())
    return replace(result, run=run)
