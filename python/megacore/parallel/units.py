"""The parts of a model that are used as a whole: layers, embedding, final norm, output layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

Bucket = TypeVar("Bucket")
AnyBucket = TypeVar("AnyBucket", contravariant=True)


class Waiting(Protocol[AnyBucket]):
    """What knows when the parameters of a bucket can be used."""

    @property
    def pending(self) -> bool:
        """Whether any bucket cannot be used yet."""

    def wait(self, bucket: AnyBucket) -> None:
        """Returns when they can."""

    def finish(self) -> None:
        """Returns when all can."""


class Sharded(Protocol[AnyBucket]):
    """What gathers parameters for as long as they are used."""

    def use(self, bucket: AnyBucket, *, backward: bool) -> None:
        """Returns when the parameters of a bucket are here."""

    def release(self, bucket: AnyBucket) -> None:
        """Lets go of them."""

    def finish(self) -> None:
        """Returns when all are here."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of a model.

    Attributes:
        module: The part.
        is_whole: All parameters inside of it belong to it; else only its own.
        is_layer: It is an element of a list of modules, so nothing outside uses its parameters.
    """

    module: nn.Module
    is_whole: bool
    is_layer: bool

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that belong to it."""
        return self.module.parameters(recurse=self.is_whole)

    def buckets(self, bucket_of: Mapping[int, Bucket]) -> list[Bucket]:
        """The buckets of its parameters, each once.

        Args:
            bucket_of: id of a parameter -> its bucket.
        """
        used = [bucket_of[id(p)] for p in self.parameters() if id(p) in bucket_of]
        return list({id(bucket): bucket for bucket in used}.values())


def units(module: nn.Module) -> Iterator[Unit]:
    """The parts of a model, in order.

    An element of a list of modules is one part, and so is a module without such lists. Of any
    other module, which is not a part as a whole, only its own parameters belong to it.
    """
    lists = (nn.ModuleList, nn.ModuleDict)
    if not any(isinstance(child, lists) for child in module.modules()):
        yield Unit(module, is_whole=True, is_layer=False)
        return
    if not isinstance(module, lists):
        yield Unit(module, is_whole=False, is_layer=False)
    for child in module.children():
        if isinstance(module, lists):
            yield Unit(child, is_whole=True, is_layer=True)
        else:
            yield from units(child)


def wait_before_use(
    module: nn.Module, bucket_of: Mapping[int, Bucket], waiting: Waiting[Bucket]
) -> None:
    """Makes each part of a model wait, before its forward, for the buckets of its parameters.

    Args:
        module: A model or pipeline stage.
        bucket_of: id of a parameter -> its bucket.
        waiting: Whom to ask.
    """
    for unit in units(module):
        needed = unit.buckets(bucket_of)
        if not needed:
            continue

        def before(_: nn.Module, __: object, needed: list[Bucket] = needed) -> None:
            if waiting.pending:
                for bucket in needed:
                    waiting.wait(bucket)

        unit.module.register_forward_pre_hook(before)
    module.register_state_dict_pre_hook(lambda *_: waiting.finish())


def gather_while_used(
    module: nn.Module, bucket_of: Mapping[int, Bucket], sharded: Sharded[Bucket]
) -> None:
    """Makes each part of a model have its parameters while it computes.

    Those of layers are released after their forward, and gathered again before their backward;
    who computes gradients releases them after it. Other parameters stay once they were gathered:
    another part may use them (a tied word embedding).

    Args:
        module: A model or pipeline stage.
        bucket_of: id of a parameter -> its bucket.
        sharded: Gathers and releases.
    """
    parts = [(unit, unit.buckets(bucket_of)) for unit in units(module)]
    last_user = {id(bucket): unit for unit, needed in parts for bucket in needed}
    for unit, needed in parts:
        if not needed:
            continue
        ends = [b for b in needed if unit.is_layer and last_user[id(b)] is unit]
        _gather_around(unit, needed, ends, sharded)
    module.register_state_dict_pre_hook(lambda *_: sharded.finish())


def _gather_around(
    unit: Unit, needed: list[Bucket], ends: list[Bucket], sharded: Sharded[Bucket]
) -> None:
    """Hooks of one part; `ends` are the buckets of which it is the last user in forward."""

    def before_forward(_: nn.Module, __: object) -> None:
        for bucket in needed:
            sharded.use(bucket, backward=False)

    def before_backward(_: Tensor) -> None:
        for bucket in reversed(needed):
            sharded.use(bucket, backward=True)

    def after_forward(_: nn.Module, __: object, output: object) -> None:
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(before_backward)
        # Recomputed in the middle of backward, a layer needs its parameters right after.
        if not _in_backward():
            for bucket in ends:
                sharded.release(bucket)

    unit.module.register_forward_pre_hook(before_forward)
    if unit.is_layer:
        unit.module.register_forward_hook(after_forward)


def _tensors(output: object) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        return (output,)
    return [x for x in output if isinstance(x, Tensor)] if isinstance(output, tuple) else ()


def _in_backward() -> bool:
    return int(torch._C._current_graph_task_id()) != -1
