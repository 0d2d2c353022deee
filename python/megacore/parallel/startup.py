"""How the processes of a run find each other, compare what they were told, and part.

They meet at a key-value store (torch.distributed's TCPStore). Through it they compare their flags
before anything else, since processes with different flags would wait for each other for ever; and
through it they tell each other at the end whether they are done or what failed, so that none
finishes as if all were well while another died.
"""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, cast

import torch
from torch.distributed import PrefixStore, ProcessGroup, Store, TCPStore

from megacore import __version__
from megacore.config.faults import fault
from megacore.errors import CommunicationError, ConfigError, MegacoreError
from megacore.parallel.checks import StoreChecker
from megacore.parallel.config import ParallelConfig
from megacore.parallel.grid import PipelineEnds, group_ranks
from megacore.parallel.groups import Group, ParallelGroups, StepRecord, single_process_groups
from megacore.parallel.launch import MeetingPoint, Process

# Processes start when their machines are ready, and importing PyTorch from a cold network disk
# takes minutes: waiting for them has nothing to do with how long an operation may take.
_MEETING_TIMEOUT = timedelta(minutes=10)
# How long a failed process waits for the others to look at why, and for itself to end.
_PARTING_SECONDS = 10.0
# After a failure some processes may never come to read why.
_LINGER_SECONDS = 2.0
_MAX_SHOWN = 20


@contextmanager
def parallel_groups(
    config: ParallelConfig,
    *,
    process: Process,
    meeting_point: Callable[[], MeetingPoint],
    settings: Mapping[str, Any],
    ends: PipelineEnds | None = None,
) -> Iterator[ParallelGroups]:
    """The groups of this process, for the time of a run.

    Leaving the context waits until all processes leave it. When this process leaves with an
    exception the others are told, and nothing is waited for.

    Args:
        config: Degrees, backend and timeout.
        process: Who this process is.
        meeting_point: Says where the processes meet; called only where there are several.
        settings: What has to be the same in all processes, as JSON can hold it.
        ends: Where the pipeline begins and ends; by default as the named schedule puts it.

    Raises:
        ConfigError: The processes have different settings, or the backend is not there.
        CommunicationError: The processes do not come together, or another one failed.
    """
    if process.world_size == 1:
        yield single_process_groups()
        return
    backend = choose_backend(config, process)
    store = _meet(meeting_point(), process)
    compare_settings(store, process, settings)
    try:
        torch.distributed.init_process_group(
            backend,
            store=PrefixStore("groups", store),
            rank=process.rank,
            world_size=process.world_size,
            timeout=config.timeout,
        )
        groups = build_groups(
            config,
            world=cast(ProcessGroup, torch.distributed.group.WORLD),
            ends=ends,
            store=store,
        )
    except RuntimeError as error:
        raise _startup_failure(process, "init_process_group", error) from error
    parting = Parting(store, process, config.timeout)
    try:
        yield groups
    except BaseException as error:
        parting.fail(error)
        if isinstance(error, CommunicationError):
            parting.explain(error)
        _let_others_go(store, process, _LINGER_SECONDS)
        raise
    parting.finish(groups.record)


def choose_backend(config: ParallelConfig, process: Process) -> str:
    """The transport of torch.distributed, and with nccl the GPU of this process.

    Args:
        config: What was asked for.
        process: Who this process is.

    Raises:
        ConfigError: The backend is not there, or there are fewer GPUs than processes.
    """
    cuda = torch.cuda.is_available()
    backend = config.distributed_backend or ("nccl" if cuda else "gloo")
    if backend == "nccl":
        gpus = torch.cuda.device_count()
        if not (cuda and torch.distributed.is_nccl_available()):
            found = "a PyTorch without CUDA" if torch.version.cuda is None else f"{gpus} GPUs"
            given: dict[str, object] = {"--distributed-backend": "nccl", "found": found}
            raise ConfigError([fault("MC0906", given, allowed="gloo")])
        if process.local_rank >= gpus:
            given = {"local rank": process.local_rank, "GPUs of this machine": gpus}
            raise ConfigError([fault("MC0906", given, allowed=f"at most {gpus} processes here")])
        torch.cuda.set_device(process.local_rank)
    return backend


def build_groups(
    config: ParallelConfig,
    *,
    world: ProcessGroup,
    ends: PipelineEnds | None = None,
    made: dict[tuple[int, ...], ProcessGroup] | None = None,
    store: Store | None = None,
) -> ParallelGroups:
    """The groups that this process belongs to. Only those of several processes are created.

    Every process of the world has to call it, in the same order of groups.

    Args:
        config: Degrees and order.
        world: The group of all processes, which torch.distributed has been initialised with.
        ends: Where the pipeline begins and ends; by default as the named schedule puts it.
        made: Groups that exist already, by their ranks; new ones are added.
        store: Through which calls are compared, with `--check-collectives`.

    Raises:
        ValueError: The degrees do not fit together.
    """
    made = {} if made is None else made
    rank, record = world.rank(), StepRecord()
    everyone = tuple(range(world.size()))
    made[everyone] = world

    def group(name: str, ranks: tuple[int, ...]) -> Group:
        if len(ranks) == 1:
            return Group(name, ranks, record=record)
        # Two axes may span the same ranks (dp and dp_cp without cp): one connection does for both.
        if ranks not in made:
            made[ranks] = torch.distributed.new_group(
                list(ranks), timeout=config.timeout, use_local_synchronization=True
            )
        index, checker = ranks.index(rank), None
        if config.check_collectives and store is not None:
            checker = StoreChecker(
                store, group=name, ranks=ranks, rank=index, record=record, timeout=config.timeout
            )
        return Group(name, ranks, index, made[ranks], record, checker)

    groups = {name: group(name, ranks) for name, ranks in group_ranks(config, rank, ends).items()}
    return ParallelGroups(world=group("world", everyone), record=record, **groups)


def pair_group(name: str, ranks: tuple[int, ...], like: Group, timeout: timedelta) -> Group:
    """Another group for two members of a group, with a connection of its own.

    Not by `torch.distributed.new_group`: it names groups by how many there are, and not all
    processes have equally many neighbours.

    Args:
        name: What errors call it; of all groups with these members it is the only one with it.
        ranks: Of the two in the whole run, ascending, this process among them; only they call.
        like: A group that has them both.
        timeout: Longest time that an operation may take.
    """
    index = ranks.index(like.global_rank)
    store = PrefixStore(f"{name}/{ranks}", _default_store())
    made: Any
    if torch.distributed.get_backend() == "nccl":
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        made = torch.distributed.ProcessGroupNCCL(store, index, len(ranks), options)
    else:
        made = torch.distributed.ProcessGroupGloo(store, index, len(ranks), timeout)
    return Group(name, ranks, index, made, like.record)


def _default_store() -> Store:
    return torch.distributed.distributed_c10d._get_default_store()


def _meet(point: MeetingPoint, process: Process) -> Store:
    is_host = process.is_first and not point.is_hosted
    try:
        store = TCPStore(
            point.address,
            point.port,
            process.world_size,
            is_host,
            timeout=_MEETING_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,
        )
        return restart_store(store, process) if point.is_hosted else store
    except RuntimeError as error:
        where = f"{point.address}:{point.port}: "
        raise _startup_failure(process, "meeting of all processes", error, where) from error


def restart_store(store: Store, process: Process) -> Store:
    """A part of the launcher's store that only the processes of this start use.

    When torchrun starts the processes again after a failure, its store still holds what the former
    ones wrote. The number of restarts does not tell the starts apart: it counts failures of one
    machine. So process 0 numbers the starts, and answers every process that comes with the number;
    those that came before a restart and are no more are answered in vain.

    Args:
        store: Of the launcher.
        process: Who this process is.

    Raises:
        RuntimeError: Not all processes came.
    """
    if not process.is_first:
        visitor = store.add("start/visitors", 1)
        start = store.get(f"start/answer/{visitor}").decode()
        store.add(f"start/{start}/joined", 1)
        return PrefixStore(f"start/{start}", store)
    start = str(store.add("start/number", 1))
    answered, end = 0, time.monotonic() + _MEETING_TIMEOUT.total_seconds()
    while store.add(f"start/{start}/joined", 0) < process.world_size - 1:
        waiting = store.add("start/visitors", 0)
        for visitor in range(answered + 1, waiting + 1):
            store.set(f"start/answer/{visitor}", start)
        if waiting == answered:
            if time.monotonic() > end:
                raise RuntimeError(f"not all of {process.world_size} processes came")
            time.sleep(0.02)
        answered = waiting
    return PrefixStore(f"start/{start}", store)


def _startup_failure(
    process: Process, operation: str, error: RuntimeError, where: str = ""
) -> CommunicationError:
    return CommunicationError(
        rank=process.rank,
        operation=operation,
        group="world",
        ranks=range(process.world_size),
        shape=None,
        dtype=None,
        step=None,
        cause=f"{where}{error}",
    )


def compare_settings(store: Store, process: Process, settings: Mapping[str, Any]) -> None:
    """Returns when all processes have called it, with the same settings.

    Args:
        store: Where they meet.
        process: Who this process is.
        settings: Name -> value, as JSON can hold it.

    Raises:
        ConfigError: Some differ, on this process or on another; the message names them.
        CommunicationError: Not all processes came.
    """
    own = {"--" + name.replace("_", "-"): value for name, value in settings.items()}
    own |= {"megacore": __version__, "torch": str(torch.__version__)}
    try:
        if process.is_first:
            store.set("settings/first", json.dumps(own))
        first = json.loads(store.get("settings/first"))
        different = [
            f"{name} {_shown(own, name)} where process 0 has {_shown(first, name)}"
            for name in sorted({*own, *first})
            if _shown(own, name) != _shown(first, name)
        ]
        if different:
            number = store.add("settings/different", 1)
            store.set(f"settings/different/{number}", json.dumps([process.rank, different]))
        if store.add("settings/compared", 1) == process.world_size:
            store.set("settings/all", "compared")
        store.wait(["settings/all"], _MEETING_TIMEOUT)
        count = store.add("settings/different", 0)
        numbers = range(1, min(count, _MAX_SHOWN) + 1)
        found = sorted(json.loads(store.get(f"settings/different/{i}")) for i in numbers)
    except RuntimeError as error:
        raise _startup_failure(process, "comparison of flags", error) from error
    if found:
        _let_others_go(store, process)
        given = {f"process {rank}:": "; ".join(texts) for rank, texts in found}
        if count > len(found):
            given["and"] = f"{count - len(found)} more processes"
        raise ConfigError([fault("MC0905", given)])


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "(nothing)"


class Parting:
    """How the processes of a run end together.

    Args:
        store: Where they met.
        process: Who this process is.
        timeout: How long one that is done waits for the others.
    """

    def __init__(self, store: Store, process: Process, timeout: timedelta) -> None:
        self._store = PrefixStore("parting", store)
        self._process = process
        self._timeout = timeout

    def finish(self, record: StepRecord) -> None:
        """Waits until all processes are done.

        Raises:
            CommunicationError: Another one failed, or did not end within the timeout.
        """
        cause = ""
        try:
            if self._store.add("done", 1) == self._process.world_size:
                self._store.set("over", "done")
            # Longer than an operation: who waits in vain for one says so before this ends.
            self._store.wait(["over"], self._timeout + timedelta(seconds=_PARTING_SECONDS))
            cause = self.first_failure()
        except RuntimeError as error:
            cause = f"not all processes came to the end: {error}"
        if cause:
            self._abort()
            raise CommunicationError(
                rank=self._process.rank,
                operation="end of the run",
                group="world",
                ranks=range(self._process.world_size),
                shape=None,
                dtype=None,
                step=record.step,
                cause=cause,
            )
        torch.distributed.destroy_process_group()
        _let_others_go(self._store, self._process)

    def fail(self, error: BaseException) -> None:
        """Tells the others of a failure, and lets go of them."""
        kind = "" if isinstance(error, MegacoreError) else f"{type(error).__name__}: "
        text = f"{kind}{error}".strip()
        if not text.startswith("rank "):
            text = f"rank {self._process.rank}: {text}"
        # The store may be gone together with process 0.
        with suppress(RuntimeError):
            self._store.set_timeout(timedelta(seconds=_PARTING_SECONDS))
            self._store.compare_set("failure", "", text)
            self._store.set("over", "failed")
        self._abort()

    def first_failure(self) -> str:
        """What failed first, on any process; "" when nothing did or nobody can say."""
        with suppress(RuntimeError):
            if self._store.check(["failure"]):
                return self._store.get("failure").decode()
        return ""

    def explain(self, error: CommunicationError) -> None:
        """Adds what failed first to an error that is probably its consequence."""
        first = self.first_failure()
        if first and not first.startswith(f"rank {self._process.rank}:"):
            error.args = (f"{error}\n  the first failure was: {first}",)

    def _abort(self) -> None:
        """Closes all connections without waiting; what other processes wait for fails at once."""
        # Whatever of torch's threads does not end after that is not worth waiting for.
        faulthandler.dump_traceback_later(
            _PARTING_SECONDS,
            exit=True,
            file=open(os.devnull, "w", encoding="utf-8"),  # noqa: SIM115
        )
        with suppress(RuntimeError):
            torch.distributed.distributed_c10d._abort_process_group()


def _let_others_go(store: Store, process: Process, seconds: float = _PARTING_SECONDS) -> None:
    """The process that may serve the store stays until the others have read from it."""
    with suppress(RuntimeError):
        if store.add("left", 1) == process.world_size:
            store.set("empty", "now")
        if process.is_first:
            store.wait(["empty"], timedelta(seconds=seconds))
