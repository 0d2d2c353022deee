"""Who this process is among the processes of a run: the only reader of a launcher's variables.

torchrun and torch.distributed.launch set RANK, WORLD_SIZE and LOCAL_RANK; srun sets the SLURM_
variables. No variable is ever required: without any of them the run is one process.
"""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megacore.config.faults import fault
from megacore.errors import ConfigError, Fault, MegacoreError

# First the name that torchrun uses, then Slurm's. The number of tasks is that of the job *step*:
# a batch script, which runs once, sees SLURM_NTASKS of the whole job too.
_NAMES = {
    "world_size": ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),
    "rank": ("RANK", "SLURM_PROCID"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID"),
}
_MAX_PROCESSES = 1 << 20
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


@dataclass(frozen=True)
class Process:
    """One process of a run.

    Attributes:
        rank: Its number, from 0.
        world_size: How many there are.
        local_rank: Its number on this machine, from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the process that prints what is said once."""
        return self.rank == 0


def current_process(environment: Mapping[str, str] | None = None) -> Process:
    """The process that a launcher's variables describe.

    Args:
        environment: Variables; by default those of this process.

    Raises:
        ConfigError: They are not integers, or do not fit together.
    """
    env = os.environ if environment is None else environment
    family = 0 if any(names[0] in env for names in _NAMES.values()) else 1
    found: dict[str, int] = {}
    texts = {name: env[names[family]] for name, names in _NAMES.items() if names[family] in env}
    if family == 1 and "world_size" not in texts:
        return Process()
    given = {_NAMES[name][family]: text for name, text in texts.items()}
    try:
        found = {name: int(text) for name, text in texts.items()}
    except ValueError:
        raise ConfigError([fault("MC0015", given)]) from None
    process = Process(**found)
    if not 1 <= process.world_size <= _MAX_PROCESSES or not 0 <= process.rank < process.world_size:
        raise ConfigError([fault("MC0015", given)])
    if not 0 <= process.local_rank < process.world_size:
        raise ConfigError([fault("MC0015", given)])
    return process


@dataclass(frozen=True)
class MeetingPoint:
    """Where the processes of a run find each other.

    Attributes:
        address: Name or address of the machine of process 0.
        port: Its port.
        is_hosted: The launcher serves the port; otherwise process 0 has to.
    """

    address: str
    port: int
    is_hosted: bool = False


def meeting_point(environment: Mapping[str, str] | None = None) -> MeetingPoint:
    """Where the launcher wants the processes to meet.

    Under srun, where nothing sets an address, it is the first machine of the step, and a port that
    follows from the number of the job.

    Args:
        environment: Variables; by default those of this process.

    Raises:
        ConfigError: No launcher says it, or it is no address and port.
    """
    env = os.environ if environment is None else environment
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    number = job_id(env)
    address = env.get("MASTER_ADDR") or first_host(nodes)
    port = env.get("MASTER_PORT") or (str(20000 + int(number) % 20000) if number.isdigit() else "")
    if not address or not port.isdigit() or not 0 < int(port) < 65536:
        given = {name: env.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
        raise ConfigError([fault("MC0907", given)])
    return MeetingPoint(address, int(port), env.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def first_host(nodes: str) -> str:
    """The first machine of one of Slurm's lists, such as "gpu[07-12,20],cpu1"; "" of an empty one.

    Args:
        nodes: The list.
    """
    found = re.match(r"([^\[,]*)(?:\[([^\]\-,]+)[^\]]*\])?([^\[,]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def speaks_for_all(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process says what all processes would say: the first one, or one without rank.

    Args:
        environment: Variables; by default those of this process.
    """
    try:
        return current_process(environment).is_first
    except ConfigError:
        return True


def job_id(environment: Mapping[str, str] | None = None) -> str:
    """Slurm's number of the job, empty outside one.

    Args:
        environment: Variables; by default those of this process.
    """
    env = os.environ if environment is None else environment
    return env.get("SLURM_JOB_ID", "")


def launch_faults(environment: Mapping[str, str] | None = None) -> Iterator[Fault]:
    """Faults of the way in which the run was started.

    Args:
        environment: Variables; by default those of this process.
    """
    try:
        current_process(environment)
    except ConfigError as error:
        yield from error.faults


def launched_world_size(environment: Mapping[str, str] | None = None) -> int:
    """Number of processes that the launcher started; 1 where its variables are faulty.

    Args:
        environment: Variables; by default those of this process.
    """
    try:
        return current_process(environment).world_size
    except ConfigError:
        return 1


def report_to_launcher(error: BaseException, environment: Mapping[str, str] | None = None) -> None:
    """Writes the error where torchrun looks for it, so that it shows the cause and not "exit 1".

    Nothing happens outside torchrun. A file that cannot be written is not another error.

    Args:
        error: What ended the process.
        environment: Variables; by default those of this process.
    """
    env = os.environ if environment is None else environment
    path = env.get(_ERROR_FILE)
    if not path:
        return
    # torchrun shows "py_callstack". An error that a user can act on needs no traceback.
    shown = str(error)
    if not isinstance(error, MegacoreError):
        shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    content = {
        "message": {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {"py_callstack": shown, "timestamp": str(int(time.time()))},
        }
    }
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        return
