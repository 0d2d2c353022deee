"""Activations and gradients on their way between pipeline stages, over torch.distributed.

This is the transport of `megacore._C.pipeline.Executor`: it posts sends and receives and hands
out requests; when to post and when to wait is the schedule's and the executor's business.

Gloo pairs messages by tag, so one group does for all. NCCL pairs them by order, and on the stream
of a group an operation waits for those before it: there, each (sender, receiver) has a group of
its own, in which a schedule's sends and receives have the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from megacore.errors import UsageError
from megacore.parallel.groups import Group, Work

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_DIMS = 6

# Sender and receiver, as ranks of the pipeline.
Channel = tuple[int, int]


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor between stages looks like.

    Attributes:
        shape: Sizes of its dimensions.
        dtype: float32, bfloat16, float16 or float64.
        device: Where it is received.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device | str = "cpu"

    def empty(self) -> Tensor:
        """A tensor to receive into."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def fits(self, x: Tensor) -> bool:
        """Whether `x` looks like it."""
        return x.shape == self.shape and x.dtype == self.dtype


class SendRequest:
    """A send under way, which keeps its tensors."""

    __slots__ = ("_works",)

    def __init__(self, *works: Work) -> None:
        self._works = works

    def test(self) -> bool:
        """Whether it is over; Gloo cannot tell before it was waited for."""
        return all(work.is_completed() for work in self._works)

    def wait(self) -> None:
        """Blocks until the tensors may be changed."""
        for work in self._works:
            work.wait()


class RecvRequest:
    """A receive under way."""

    __slots__ = ("_tensor", "_work")

    def __init__(self, tensor: Tensor, work: Work) -> None:
        self._tensor = tensor
        self._work = work

    def test(self) -> bool:
        """Whether `wait` would return at once; Gloo cannot tell."""
        return self._work.is_completed()

    def wait(self) -> Tensor:
        """Blocks until the tensor is there (on CUDA: makes the current stream wait for it)."""
        self._work.wait()
        return self._tensor


class VariableRecvRequest:
    """A receive whose shape is on its way too."""

    __slots__ = ("_device", "_header", "_post")

    def __init__(
        self, header: RecvRequest, post: Callable[[Tensor], Work], device: torch.device | str
    ) -> None:
        self._header = header
        self._post = post
        self._device = device

    def test(self) -> bool:
        """False: the tensor is asked for only in `wait`."""
        return False

    def wait(self) -> Tensor:
        """Blocks until the tensor is there."""
        code, dims, *shape = self._header.wait().tolist()
        tensor = torch.empty(shape[:dims], dtype=_DTYPES[code], device=self._device)
        self._post(tensor).wait()
        return tensor


class PipelineTransport:
    """Sends and receives between the ranks of one pipeline.

    Args:
        group: The ranks of the pipeline, in the order of the schedule's ranks.
        num_stages: Stages of the schedule, over all chains.
        spec: What the tensors between stages look like; with `variable` only dtype and device
            are used.
        variable: Shapes differ between microbatches: each activation is announced by a header.
            A gradient has the shape of its activation and needs none.
        channels: A group of two for every channel of this rank, from `channel_groups`; by default
            all use `group` and are told apart by tags, which NCCL does not have.
    """

    def __init__(
        self,
        group: Group,
        num_stages: int,
        spec: TensorSpec,
        *,
        variable: bool = False,
        channels: dict[Channel, Group] | None = None,
    ) -> None:
        self._group = group
        self._num_stages = num_stages
        self._spec = spec
        self._variable = variable
        self._channels = channels
        # Activations that were sent: their gradients will look the same.
        self._sent: dict[tuple[int, int], TensorSpec] = {}

    def post_send(
        self, peer: int, stage: int, microbatch: int, backward: bool, value: Tensor
    ) -> SendRequest:
        """Starts to send.

        Args:
            peer: Rank of the pipeline that receives.
            stage: Stage that consumes it.
            microbatch: Which one.
            backward: It is a gradient.
            value: Not to be changed before the request is over.

        Raises:
            CommunicationError: The transport failed.
            UsageError: The tensor does not look as it was announced.
        """
        value = value.contiguous()
        group, index = self._channel(self._group.rank, peer)
        tag = self._tag(stage, microbatch, backward)
        if not self._variable:
            if not self._spec.fits(value):
                raise UsageError(
                    f"a tensor {list(value.shape)} {value.dtype} is to be sent to stage {stage}, "
                    f"which expects {list(self._spec.shape)} {self._spec.dtype}"
                )
            return SendRequest(group.send(value, index, tag))
        if backward:
            return SendRequest(group.send(value, index, tag))
        if value.dtype not in _DTYPES or value.dim() > _MAX_DIMS:
            raise UsageError(f"a tensor {list(value.shape)} {value.dtype} cannot be sent")
        shape = tuple(value.shape)
        self._sent[stage - 1, microbatch] = TensorSpec(shape, value.dtype, value.device)
        header = [_DTYPES.index(value.dtype), len(shape), *shape]
        header += [0] * (2 + _MAX_DIMS - len(header))
        announced = torch.tensor(header, dtype=torch.int64, device=value.device)
        return SendRequest(group.send(announced, index, tag + 1), group.send(value, index, tag))

    def post_recv(
        self, peer: int, stage: int, microbatch: int, backward: bool
    ) -> RecvRequest | VariableRecvRequest:
        """Starts to receive.

        Args:
            peer: Rank of the pipeline that sends.
            stage: Stage that consumes it.
            microbatch: Which one.
            backward: It is a gradient.

        Raises:
            CommunicationError: The transport failed.
        """
        group, index = self._channel(peer, self._group.rank)
        tag = self._tag(stage, microbatch, backward)
        if self._variable and not backward:
            header = torch.empty(2 + _MAX_DIMS, dtype=torch.int64, device=self._spec.device)

            def post(tensor: Tensor) -> Work:
                return group.recv(tensor, index, tag)

            request = RecvRequest(header, group.recv(header, index, tag + 1))
            return VariableRecvRequest(request, post, self._spec.device)
        spec = self._sent.pop((stage, microbatch)) if self._variable else self._spec
        tensor = spec.empty()
        return RecvRequest(tensor, group.recv(tensor, index, tag))

    def abort(self, reason: str) -> None:
        """Forgets what is under way. Peers notice when this process ends or by their timeout.

        Args:
            reason: Why.
        """
        self._sent.clear()

    def _channel(self, sender: int, receiver: int) -> tuple[Group, int]:
        """The group of a channel, and the index in it of the rank at the other end."""
        if self._channels is None:
            return self._group, receiver if sender == self._group.rank else sender
        group = self._channels[sender, receiver]
        return group, 1 - group.rank

    def _tag(self, stage: int, microbatch: int, backward: bool) -> int:
        """The tag of a message; the next one belongs to its header."""
        return 2 * (2 * (microbatch * self._num_stages + stage) + backward)


def channel_groups(
    channels: Iterable[Channel],
    group: Group,
    make_group: Callable[[str, tuple[int, ...]], Group],
) -> dict[Channel, Group]:
    """A group of two for each channel that this rank is an end of.

    Args:
        channels: All channels of the pipeline; every rank passes the same.
        group: The ranks of the pipeline.
        make_group: Makes a group from its name and the ranks of its members in the whole run,
            ascending; both members call it in the same order, and no one else does.
    """
    groups = {}
    for sender, receiver in sorted(set(channels)):
        if group.rank in (sender, receiver):
            members = tuple(sorted((group.ranks[sender], group.ranks[receiver])))
            name = f"{group.name} {sender} to {receiver}"
            groups[sender, receiver] = make_group(name, members)
    return groups
