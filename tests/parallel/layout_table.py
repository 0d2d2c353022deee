"""Every layout of a small run on 2, 4 and 8 processes, and a small set that covers all pairs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

LAYERS, HEADS, QUERY_GROUPS = 8, 4, 2
MICROBATCHES = 8

SCHEDULES = (
    "1f1b",
    "gpipe",
    "interleaved",
    "zb-h1",
    "zb-h2",
    "zb-v",
    "v-half",
    "v-min",
    "dualpipev",
)
TWO_STAGES = ("interleaved", "zb-v", "v-half", "v-min", "dualpipev")
RECOMPUTE = {
    "none": "",
    "selective": "--recompute-granularity selective",
    "uniform": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "block": "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
    "distributed": "--recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1 --distribute-saved-activations",
}
SHARDING = {
    "none": "",
    "optim": "--use-distributed-optimizer",
    "grads": "--data-parallel-sharding-strategy optim_grads",
    "params": "--data-parallel-sharding-strategy optim_grads_params",
    "halves": "--use-distributed-optimizer --num-distributed-optimizer-instances 2",
    "params-halves": "--data-parallel-sharding-strategy optim_grads_params "
    "--num-distributed-optimizer-instances 2",
}
WHOLE_BACKWARD = ("none", "1f1b", "gpipe", "interleaved")
OVERLAP = {
    "none": "",
    "grads": "--overlap-grad-reduce --ddp-bucket-size 2000",
    "grads-params": "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 2000",
}
MODEL = {
    "tied": "",
    "untied": "--untie-embeddings-and-output-weights",
    "gqa": f"--group-query-attention --num-query-groups {QUERY_GROUPS} --swiglu "
    "--position-embedding-type rope --normalization RMSNorm --disable-bias-linear",
    "qk-norm": "--qk-layernorm --untie-embeddings-and-output-weights",
}
LOSS = {"means": "", "per-token": "--calculate-per-token-loss"}


@dataclass(frozen=True)
class Layout:
    """One layout, by the values of its axes."""

    tp: int
    tp_kind: str
    pp: int
    schedule: str
    cp: int
    cp_kind: str
    dp: int
    sharding: str
    overlap: str
    recompute: str
    model: str
    loss: str

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.tp * self.pp * self.cp * self.dp

    def __str__(self) -> str:
        parts = [f"{getattr(self, f.name)}" for f in fields(self)]
        return "tp{}-{}.pp{}-{}.cp{}-{}.dp{}-{}.{}.{}.{}.{}".format(*parts)

    @property
    def flags(self) -> str:
        """Its command line, without the model and the kind of loss, which the reference shares."""
        words = [
            f"--tensor-model-parallel-size {self.tp}",
            {"plain": "", "sp": "--sequence-parallel"}.get(
                self.tp_kind, "--sequence-parallel --tp-comm-overlap"
            ),
            f"--pipeline-model-parallel-size {self.pp}",
            f"--context-parallel-size {self.cp} --cp-comm-type {self.cp_kind}",
            SHARDING[self.sharding],
            OVERLAP[self.overlap],
            RECOMPUTE[self.recompute],
        ]
        if self.schedule == "interleaved":
            words.append(f"--num-layers-per-virtual-pipeline-stage {LAYERS // self.pp // 2}")
        elif self.schedule != "none":
            words.append(f"--pipeline-schedule {self.schedule}")
        return " ".join(word for word in words if word)

    @property
    def run_flags(self) -> str:
        """What the single-process run has to have too."""
        return f"{MODEL[self.model]} {LOSS[self.loss]}"

    @property
    def is_possible(self) -> bool:
        """Whether the rules of the flags, and the sizes of the model, allow it."""
        replicas, groups = self.dp * self.cp, QUERY_GROUPS if self.model == "gqa" else HEADS
        chunks = LAYERS // self.pp
        rules = (
            (self.tp > 1) or self.tp_kind == "plain",
            (self.pp > 1) == (self.schedule != "none"),
            self.cp > 1 or self.cp_kind == "p2p",
            self.cp_kind == "p2p" or (groups // self.tp) % self.cp == 0,
            groups % self.tp == 0,
            replicas > 1 or (self.sharding == "none" and self.overlap == "none"),
            self.overlap != "grads-params" or self.sharding != "none",
            self.sharding in ("none", "optim", "halves") or self.schedule in WHOLE_BACKWARD,
            "halves" not in self.sharding or replicas % 2 == 0,
            self.recompute != "distributed" or (self.tp > 1 and self.tp_kind == "plain"),
            self.schedule not in TWO_STAGES or chunks >= 2,
            MICROBATCHES % self.dp == 0,
            self.schedule != "interleaved" or (MICROBATCHES // self.dp) % self.pp == 0,
        )
        return all(rules)


AXES: dict[str, tuple[Any, ...]] = {
    "tp": (1, 2, 4),
    "tp_kind": ("plain", "sp", "sp-overlap"),
    "pp": (1, 2, 4),
    "schedule": ("none", *SCHEDULES),
    "cp": (1, 2, 4),
    "cp_kind": ("p2p", "a2a"),
    "dp": (1, 2, 4, 8),
    "sharding": tuple(SHARDING),
    "overlap": tuple(OVERLAP),
    "recompute": tuple(RECOMPUTE),
    "model": tuple(MODEL),
    "loss": tuple(LOSS),
}


def sample(size: int, count: int) -> list[Layout]:
    """Different possible layouts of `size` processes, drawn at random from a fixed seed."""
    draw = random.Random(size)
    degrees = [AXES[name] for name in ("tp", "pp", "cp", "dp")]
    grids = [grid for grid in itertools.product(*degrees) if math.prod(grid) == size]
    drawn: dict[Layout, None] = {}
    while len(drawn) < count:
        chosen = {name: draw.choice(values) for name, values in AXES.items()}
        chosen |= zip(("tp", "pp", "cp", "dp"), draw.choice(grids), strict=True)
        if chosen["pp"] == 1:
            chosen["schedule"] = "none"
        layout = Layout(**chosen)
        if layout.is_possible:
            drawn[layout] = None
    return list(drawn)


def _combinations(layout: Layout, strength: int) -> set[tuple[object, ...]]:
    values = [(f.name, getattr(layout, f.name)) for f in fields(layout)]
    return set(itertools.combinations(values, strength))


def covering(layouts: Iterable[Layout], *, strength: int, times: int = 1) -> list[Layout]:
    """Few of the layouts, in which every combination of values that any has still occurs.

    Greedy and in a fixed order; layouts of fewer processes are preferred.

    Args:
        layouts: To choose from.
        strength: Values in a combination: 1 for each value, 2 for each pair of values.
        times: How often each is to occur, if it occurs as often at all.
    """
    own = {layout: _combinations(layout, strength) for layout in layouts}
    left: dict[tuple[object, ...], int] = {}
    for combinations in own.values():
        for combination in combinations:
            left[combination] = min(times, left.get(combination, 0) + 1)
    candidates = sorted(own, key=lambda layout: (layout.size, str(layout)))
    chosen: list[Layout] = []
    while left:
        best = max(candidates, key=lambda layout: sum(c in left for c in own[layout]))
        chosen.append(best)
        candidates.remove(best)
        for combination in own[best] & left.keys():
            left[combination] -= 1
            if left[combination] == 0:
                del left[combination]
    return chosen
