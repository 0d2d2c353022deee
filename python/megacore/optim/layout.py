"""Makes the buffers of parameters and gradients, and divides them into buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacore import _C
from megacore.optim.buffers import FULL_PRECISION, Bucket, OwnPiece, Run, Treatment
from megacore.optim.groups import TrainedParam
from megacore.optim.shared_bucket import SharedBucket


@dataclass(frozen=True, kw_only=True)
class BufferRules:
    """How buffers are made.

    Attributes:
        bucket_size: A bucket ends when it has this many elements; 0: one bucket per buffer.
        num_shards: Processes that share the optimizer state.
        shard: This process among them.
        half_gradients: Sum the gradients of float16 parameters in float16, not in float32.
        share_gradients: Keep the own part of the gradients only.
        share_parameters: Keep the own part of the parameters only; `share_gradients` too.
    """

    bucket_size: int = 0
    num_shards: int = 1
    shard: int = 0
    half_gradients: bool = False
    share_gradients: bool = False
    share_parameters: bool = False

    def grad_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In which dtype gradients of parameters of `dtype` are summed."""
        if dtype in FULL_PRECISION or (dtype == torch.float16 and self.half_gradients):
            return dtype
        return torch.float32


def build_buckets(
    params: Sequence[TrainedParam],
    rules: BufferRules,
    units: Mapping[int, tuple[int, bool]] | None = None,
) -> list[Bucket]:
    """Moves the parameters of one chunk into buffers.

    Args:
        params: In the order of the model.
        rules: How the buffers are made.
        units: id of a parameter -> number of the part of the model that uses it, and whether that
            is a layer; a part is not divided between buckets. None: there are no parts.

    Returns:
        The buckets, in the order in which backward completes them.

    Raises:
        ValueError: Parameters of one dtype are on several devices.
    """
    groups: dict[tuple[torch.dtype, bool], list[TrainedParam]] = {}
    for param in reversed(params):
        is_layer = units is not None and units[id(param.param)][1]
        groups.setdefault((param.param.dtype, is_layer), []).append(param)
    buckets: list[Bucket] = []
    for (dtype, is_layer), members in groups.items():
        device = members[0].param.device
        elsewhere = [f"{p.name} on {p.param.device}" for p in members if p.param.device != device]
        if elsewhere:
            raise ValueError(f"parameters of one dtype must share {device}: {', '.join(elsewhere)}")
        numbers = [i if units is None else units[id(p.param)][0] for i, p in enumerate(members)]
        buckets += _Buffer(members, rules, dtype, numbers, is_layer).buckets()
    return buckets


class _Buffer:
    """Parameters of one dtype, and the memory of their buckets."""

    def __init__(
        self,
        params: Sequence[TrainedParam],
        rules: BufferRules,
        dtype: torch.dtype,
        units: Sequence[int],
        is_layer: bool,
    ) -> None:
        self.params, self.rules, self.is_layer = params, rules, is_layer
        self.treatments = sorted({Treatment.of(p) for p in params}, key=lambda t: t.order)
        self.plan = _C.comm.plan_buckets(
            numels=[p.param.numel() for p in params],
            keys=[self.treatments.index(Treatment.of(p)) for p in params],
            units=units,
            alone=[p.tied is not None or p.is_shared for p in params],
            max_elements=rules.bucket_size,
            num_shards=rules.num_shards,
        )
        self.device = params[0].param.device
        self.dtype, self.grad_dtype = dtype, rules.grad_dtype(dtype)
        self.main_dtype = dtype if dtype in FULL_PRECISION else torch.float32
        size = self.plan.size
        # What comes and goes is allocated bucket by bucket instead.
        self.model = None if rules.share_parameters else self._zeros(size, dtype)
        self.grad = None if rules.share_gradients else self._zeros(size, self.grad_dtype)
        own_size = size // rules.num_shards
        self.main_is_model = self.main_dtype == dtype and not rules.share_parameters
        self.main = None if self.main_is_model else self._zeros(own_size, self.main_dtype)
        self.own_grad = self._zeros(own_size, self.grad_dtype) if rules.share_gradients else None
        converts = self.main_dtype != self.grad_dtype
        self.main_grad = self._zeros(own_size, self.main_dtype) if converts else None

    def _zeros(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=self.device)

    def buckets(self) -> list[Bucket]:
        """The buckets, filled with the parameters."""
        made, held = [], 0
        for bucket_idx in range(self.plan.num_buckets):
            first, last = self.plan.shard(bucket_idx, self.rules.shard)
            bucket = self._bucket(bucket_idx, slice(held, held + last - first))
            held += last - first
            with torch.no_grad():
                for param, view in bucket.views(bucket.model):
                    view.copy_(param.param)
                    param.param.data = view
                bucket.refresh_main()
            made.append(bucket)
        return made

    def _bucket(self, bucket_idx: int, held: slice) -> Bucket:
        """A bucket; `held` is its range of what only the own part has."""
        plan, rules = self.plan, self.rules
        begin, end = plan.bucket_range(bucket_idx)
        first, last = plan.shard(bucket_idx, rules.shard)
        own = slice(first - begin, last - begin)
        if self.model is None:
            model = self._zeros(end - begin, self.dtype)
        else:
            model = self.model[begin:end]
        if self.grad is None:
            grad = self._zeros(end - begin, self.grad_dtype)
        else:
            grad = self.grad[begin:end]
        own_grad = grad[own] if self.own_grad is None else self.own_grad[held]
        members = plan.bucket_params(bucket_idx)
        settings: dict[str, Any] = {
            "model": model,
            "grad": grad,
            "own": own,
            "main": model[own] if self.main is None else self.main[held],
            "main_grad": own_grad if self.main_grad is None else self.main_grad[held],
            "main_is_model": self.main_is_model,
            "runs": _runs(plan, bucket_idx, (first, last), self.treatments),
            "pieces": _pieces(plan, bucket_idx, (first, last), self.params),
        }
        params = [self.params[i] for i in members]
        offsets = [plan.param_range(i)[0] - begin for i in members]
        if not rules.share_gradients:
            return Bucket(params, offsets, **settings)
        return SharedBucket(
            params,
            offsets,
            own_grad=own_grad,
            shares_parameters=rules.share_parameters,
            is_layers=self.is_layer,
            **settings,
        )


def _runs(
    plan: Any, bucket_idx: int, own: tuple[int, int], treatments: Sequence[Treatment]
) -> list[Run]:
    pieces = plan.pieces(bucket_idx, own)
    runs = []
    for treatment_idx, begin, end in plan.runs(bucket_idx, own):
        used = sum(last - first for _, first, last in pieces if begin <= first and last <= end)
        part = slice(begin - own[0], end - own[0])
        runs.append(Run(part, treatments[treatment_idx], end - begin - used))
    return runs


def _pieces(
    plan: Any, bucket_idx: int, own: tuple[int, int], params: Sequence[TrainedParam]
) -> list[OwnPiece]:
    found = []
    for index, begin, end in plan.pieces(bucket_idx, own):
        start = begin - plan.param_range(index)[0]
        part = slice(begin - own[0], end - own[0])
        found.append(OwnPiece(params[index], start, end - begin, part))
    return found
