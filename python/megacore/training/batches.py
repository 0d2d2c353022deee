"""Sources of micro-batches for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from megacore.data import build_loader
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError
from megacore.parallel.groups import Group, ParallelGroups, single_process_groups
from megacore.training.agreement import any_of
from megacore.training.family import Family, Samples, SplitSamples
from megacore.training.run_config import RunConfig
from megacore.training.run_state import RunState

Built = TypeVar("Built")


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Sources of micro-batches; None where nothing is wanted or the split has no data."""

    train: Iterator[Any] | None
    valid: Iterator[Any] | None
    test: Iterator[Any] | None


def samples_wanted(
    run: RunConfig, *, train_iters: int, batch_size: int
) -> tuple[int | None, int | None, int | None]:
    """Sequences that training, all validations and the test will use; None for none.

    Args:
        run: Resolved settings.
        train_iters: Iteration at which training ends.
        batch_size: Global batch size after any ramp-up; evaluation always uses it.
    """
    training = run.training
    train = None
    if train_iters > 0 and not training.skip_train:
        train = training.train_samples or train_iters * batch_size
    if training.eval_iters == 0:
        return train, None, None
    evaluations = train_iters // training.eval_interval + 1
    once = training.eval_iters * batch_size
    return train, evaluations * once, once


def build_batches(
    run: RunConfig,
    tokenizer: Tokenizer,
    *,
    family: Family[Any],
    state: RunState,
    wanted: tuple[int | None, int | None, int | None],
    vocab_rows: int,
    groups: ParallelGroups | None = None,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Batches:
    """Build the datasets, and start reading where the counters stand.

    Args:
        run: Resolved settings.
        tokenizer: Says where documents end, and names the index cache.
        family: Opens datasets and makes micro-batches.
        state: Counters.
        wanted: As `samples_wanted` gave.
        vocab_rows: Rows of the word embedding; every token id is checked against it.
        groups: The groups of this process; None for a run of one. Replicas read different samples,
            the processes of one replica all the same.
        device: Where the groups' backend wants its tensors; None: the CPU.
        say: Told what takes long.

    Raises:
        DataError: A dataset cannot be read, or has nothing for a split that is wanted.
    """
    groups = groups or single_process_groups()

    def build(may_build: bool) -> SplitSamples:
        return family.open_datasets(run, tokenizer, wanted=wanted, may_build=may_build, say=say)

    datasets = _first_alone(build, groups.world, device or torch.device("cpu"))

    def read(
        dataset: Samples | None,
        samples: int | None,
        consumed: int,
    ) -> Iterator[Any] | None:
        if dataset is None or samples is None:
            return None
        return build_loader(
            dataset,
            make=partial(family.make_batch, vocab_size=vocab_rows),
            data=run.data,
            micro_batch_size=int(run.batch.micro_batch_size or 1),
            consumed_samples=consumed,
            data_parallel_rank=groups.dp.rank,
            data_parallel_size=groups.dp.size,
        )

    return Batches(
        train=read(datasets.train, wanted[0], state.consumed_train_samples),
        valid=read(datasets.valid, wanted[1], state.consumed_valid_samples),
        test=read(datasets.test, wanted[2], 0),
    )


class _FirstFailedError(DataError):
    """The first process could not build the datasets and has said why."""

    is_common = True


def _first_alone(build: Callable[[bool], Built], world: Group, device: torch.device) -> Built:
    """The datasets; the first process builds the indices while the others wait to find them.

    Args:
        build: Opens the datasets; the argument says whether indices may be built.
        world: All processes.
        device: Where the group's backend wants its tensors.
    """
    if world.size == 1:
        return build(True)
    datasets: Built | None = None
    failure: DataError | None = None
    if world.is_first:
        try:
            datasets = build(True)
        except DataError as error:
            failure = error
    failed = any_of(failure is not None, world, device)
    if failure is not None:
        raise failure
    if failed:
        raise _FirstFailedError("rank 0 could not build the datasets")
    return build(False) if datasets is None else datasets
