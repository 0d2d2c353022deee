"""The parts of a model that are used as a whole: layers, embedding, final norm, output layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from torch import nn

Bucket = TypeVar("Bucket", contravariant=True)


class Waiting(Protocol[Bucket]):
    """What knows when the parameters of a bucket can be used."""

    @property
    def pending(self) -> bool:
        """Whether any bucket cannot be used yet."""

    def wait(self, bucket: Bucket) -> None:
        """Returns when they can."""


def units(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The parts of a model, and whether a part is used as a whole.

    An element of a list of modules is one part, and so is a module without such lists. Of any
    other module, which is not a part as a whole, only its own parameters belong to it.
    """
    lists = (nn.ModuleList, nn.ModuleDict)
    if not any(isinstance(child, lists) for child in module.modules()):
        yield module, True
        return
    if not isinstance(module, lists):
        yield module, False
    for child in module.children():
        if isinstance(module, lists):
            yield child, True
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
    for unit, whole in units(module):
        used = [bucket_of[id(p)] for p in unit.parameters(recurse=whole) if id(p) in bucket_of]
        needed = list({id(bucket): bucket for bucket in used}.values())
        if not needed:
            continue

        def before(_: nn.Module, __: object, needed: list[Bucket] = needed) -> None:
            if waiting.pending:
                for bucket in needed:
                    waiting.wait(bucket)

        unit.register_forward_pre_hook(before)

    def before_saving(*_: object) -> None:
        for bucket in bucket_of.values():
            waiting.wait(bucket)

    module.register_state_dict_pre_hook(before_saving)
