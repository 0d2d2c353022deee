"""What of parallelism is refused, because a part of it does not exist yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megacore.config.faults import fault
from megacore.config.settings import Setting, settings_of
from megacore.errors import Fault
from megacore.parallel.config import ParallelConfig

# Field of ParallelConfig -> why values other than the default are refused. A field leaves this
# list with the code that reads it.
UNSUPPORTED: Mapping[str, str] = {
    "expert_model_parallel_size": "there is no mixture-of-experts model yet",
}

# Flags that change nothing in a run of one process.
BETWEEN_PROCESSES = (
    "distributed_backend",
    "distributed_timeout_minutes",
    "distributed_timeout_seconds",
    "use_distributed_optimizer",
    "data_parallel_sharding_strategy",
    "num_distributed_optimizer_instances",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "ddp_bucket_size",
    "ddp_average_in_collective",
    "async_tensor_model_parallel_allreduce",
    "overlap_p2p_comm",
    "check_collectives",
)


def unsupported(config: ParallelConfig) -> Iterator[Fault]:
    """Faults of what is asked for and does not exist yet.

    Args:
        config: Resolved or not.
    """
    if config.pipeline_schedule == "dualpipe":
        more = "it keeps two copies of each stage, whose gradients would have to be summed"
        given = {"--pipeline-schedule": "dualpipe"}
        yield fault("MC0011", given, allowed="dualpipev: the same bubble with one copy", more=more)
    alone = BETWEEN_PROCESSES if config.world_size == 1 else ()
    for setting in _given(config, [name for name in UNSUPPORTED if name not in alone]):
        value = getattr(config, setting.dest)
        shown = "" if setting.is_switch else value
        more = f"{setting.flag}: {UNSUPPORTED[setting.dest]}"
        yield fault("MC0011", {setting.flag: shown}, allowed=_default(setting), more=more)


def notes(config: ParallelConfig) -> list[str]:
    """Remarks on flags that have no effect in one process, one line each."""
    if config.world_size > 1:
        return []
    flags = [setting.flag for setting in _given(config, BETWEEN_PROCESSES)]
    return [f"{flag} has no effect: there is one process" for flag in flags]


def _given(config: ParallelConfig, names: Sequence[str]) -> list[Setting]:
    return [
        setting
        for setting in settings_of(ParallelConfig)
        if setting.dest in names and getattr(config, setting.dest) != setting.default
    ]


def _default(setting: Setting) -> str:
    return "leave it out" if setting.is_switch or setting.default is None else str(setting.default)
