"""A base model with its adapters added to the weights, as a source of conversion."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from megacore.checkpoint.convert.model_stream import ModelDescription, Source, TensorInfo
from megacore.checkpoint.lora.adapter import Adapters
from megacore.errors import CheckpointError
from megacore.layers.lora import merged_weight


class MergedSource:
    """The tensors of a base model, with W + scale * B A in the place of W.

    Args:
        base: The base model.
        adapters: Its adapters.

    Raises:
        CheckpointError: The adapters do not fit the model; all that is wrong with them.
    """

    def __init__(self, base: Source, adapters: Adapters) -> None:
        self._base = base
        self._adapters = adapters
        refuse_misfits(base, adapters)

    @property
    def description(self) -> ModelDescription:
        """That of the base model."""
        return self._base.description

    def names(self) -> list[str]:
        """Those of the base model."""
        return self._base.names()

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, which are those of the base model."""
        return self._base.info(name)

    def read(self, name: str) -> Tensor:
        """A weight with its adapter, or a tensor without one."""
        tensor = self._base.read(name)
        pair = self._adapters.layers.get(name.removesuffix(".weight"))
        if pair is None or not name.endswith(".weight"):
            return tensor
        return merged_weight(tensor, pair.down, pair.up, self._adapters.scale)

    def origins(self, name: str) -> tuple[str, ...]:
        """Names in the base model."""
        return self._base.origins(name)

    def unmapped(self) -> dict[str, str]:
        """What the base model has besides."""
        return self._base.unmapped()

    def close(self) -> None:
        """Closes the base model."""
        self._base.close()


def refuse_misfits(base: Source, adapters: Adapters) -> None:
    """Compares the shapes of adapters with those of the weights that they belong to.

    Args:
        base: The base model.
        adapters: Its adapters.

    Raises:
        CheckpointError: They do not fit; all that is wrong with them.
    """
    faults = list(_misfits(base, adapters))
    if faults:
        raise CheckpointError(
            f"{adapters.source}: the adapters do not fit the base model:\n  " + "\n  ".join(faults)
        )


def _misfits(base: Source, adapters: Adapters) -> Iterator[str]:
    names = set(base.names())
    for layer, pair in adapters.layers.items():
        name = f"{layer}.weight"
        if name not in names:
            yield f"{layer}: the base model has no such layer"
            continue
        found = (pair.up.shape[0], pair.down.shape[1])
        if found != base.info(name).shape:
            yield f"{layer}: made for a weight {list(found)}, found {list(base.info(name).shape)}"
