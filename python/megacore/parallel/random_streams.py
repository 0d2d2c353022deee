"""Random numbers of tensor-parallel processes: where they are the same, and where they differ.

PyTorch's default generator is in the same state on all processes of a tensor-parallel group: what
they all compute alike (dropout of the residual stream, when the sequence is not split) drops the
same elements everywhere. What each computes for itself draws from a second stream, seeded with
seed + 2718 + rank: dropout of the attention weights of its heads, and with sequence parallelism
all dropout, of its tokens.

So which layouts drop the same elements, for the same seed:

* Without sequence parallelism, dropout of the residual stream does not depend on the
  tensor-parallel size, as long as attention dropout draws from the second stream too (streams are
  for groups of one process as well).
* Attention dropout, and with sequence parallelism all dropout, differs between tensor-parallel
  sizes.
* Stages of a pipeline have different seeds, so dropout differs between pipeline sizes.
* Recompute, overlap and the sharding of the optimizer change nothing.

Source of the seeds: Megatron-Core's model-parallel random number tracker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from megacore.errors import CheckpointError

TENSOR_SEED_OFFSET = 2718
_CPU, _CUDA = "cpu", "cuda"


class RandomStream:
    """A random stream that takes the place of PyTorch's default generators for a while.

    Args:
        seed: Seed of the stream.
        device: Device whose default generator it replaces, besides that of the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._states = {_CPU: torch.Generator().manual_seed(seed).get_state()}
        if device.type == "cuda":
            self._states[_CUDA] = torch.Generator(device).manual_seed(seed).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the default generators draw from this stream; it goes on where it stopped."""
        outside = self._swap(self._states)
        try:
            yield
        finally:
            self._states = self._swap(outside)

    @contextmanager
    def from_state(self, states: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the stream goes on from `states`; afterwards from where it was before."""
        before, self._states = self._states, dict(states)
        try:
            yield
        finally:
            self._states = before

    def state_tensors(self) -> dict[str, Tensor]:
        """Name -> state of a generator, uint8; not changed by later draws."""
        return dict(self._states)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a stored state; one of a device that this run does not use is ignored.

        Args:
            tensors: As `state_tensors` gave.

        Raises:
            CheckpointError: A state is missing or unusable.
        """
        missing = [name for name in self._states if name not in tensors]
        if missing:
            raise CheckpointError(f"state of a random stream lacks {', '.join(missing)}")
        states = {name: tensors[name].clone() for name in self._states}
        for name, state in states.items():
            try:
                torch.Generator(self.device if name == _CUDA else "cpu").set_state(state)
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(
                    f"state {name} of a random stream cannot be restored: {error}"
                ) from error
        self._states = states

    def _swap(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sets the default generators, and returns how they were."""
        before = {_CPU: torch.get_rng_state()}
        torch.set_rng_state(states[_CPU])
        if _CUDA in states:
            before[_CUDA] = torch.cuda.get_rng_state(self.device)
            torch.cuda.set_rng_state(states[_CUDA], self.device)
        return before


def tensor_stream(seed: int, tensor_rank: int, device: torch.device) -> RandomStream:
    """The stream of what each process of a tensor-parallel group draws for itself.

    Args:
        seed: Seed of the default generators of this process.
        tensor_rank: Index of this process in its tensor-parallel group.
        device: Device of the model.
    """
    return RandomStream(seed + TENSOR_SEED_OFFSET + tensor_rank, device)


class Streamed(nn.Module):
    """A module without parameters that draws from a stream, in training.

    Args:
        module: What draws.
        stream: Where from.
    """

    def __init__(self, module: nn.Module, stream: RandomStream) -> None:
        super().__init__()
        self.module = module
        self.stream = stream

    def forward(self, *inputs: Any) -> Tensor:
        """Run the module."""
        with self.stream.active() if self.training else nullcontext():
            result: Tensor = self.module(*inputs)
        return result
