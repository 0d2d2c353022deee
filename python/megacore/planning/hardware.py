"""Hardware profiles: the constants of the cost model, each with where it comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from megacore._C import planner as core
from megacore.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INSIDE, BETWEEN = 0, 1


@dataclass(frozen=True, kw_only=True)
class Link:
    """A level of the network.

    Attributes:
        level: 0 inside of a machine, 1 between machines.
        bytes_per_s: What one process can send, one direction, by the data sheet.
        latency_s: Of one step of a collective.
        efficiency: Share of `bytes_per_s` that large collectives reach.
        source: Where the numbers come from.
    """

    name: str
    level: int
    bytes_per_s: float
    latency_s: float
    efficiency: float = 1.0
    source: str = ""


def _between(name: str, gigabits: float, latency_us: float, efficiency: float) -> Link:
    return Link(
        name=name,
        level=BETWEEN,
        bytes_per_s=gigabits / 8 * 1e9,
        latency_s=latency_us * 1e-6,
        efficiency=efficiency,
        source=f"{gigabits:g} Gbit/s per process; share that collectives reach: assumed",
    )


LINKS = {
    link.name: link
    for link in (
        _between("infiniband-hdr", 200, 5, 0.85),
        _between("infiniband-ndr", 400, 5, 0.85),
        _between("infiniband-xdr", 800, 5, 0.85),
        _between("roce-400g", 400, 8, 0.8),
        _between("ethernet-200g", 200, 15, 0.75),
        _between("ethernet-100g", 100, 20, 0.7),
        _between("ethernet-25g", 25, 30, 0.7),
        _between("ethernet-10g", 10, 30, 0.7),
    )
}


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """A machine as the cost model sees it. Rates per second, times in seconds, sizes in bytes.

    Attributes:
        kind: "gpu" or "cpu".
        reserve_bytes: Taken by context, libraries and communication buffers.
        allocator_slack: Share of activations that the allocator loses to fragments.
        peak_flops: dtype -> operations per second by the data sheet.
        matmul_efficiency: Share of the peak that large products reach.
        matmul_half_k: Inner dimension at which the ends of the inner loop cost half of the rate.
        num_units: Multiprocessors, for the quantisation of tiles; 0 without tiles.
        tile_rows: Of the largest tile.
        tile_cols: Of the largest tile.
        weight_grad_efficiency: Of products that add to fp32 gradients, relative.
        attention_forward_efficiency: Share of the peak, flash attention.
        attention_backward_efficiency: Share of the peak, flash attention.
        batched_matmul_efficiency: Share of the peak, products of unfused attention.
        memory_rate: Bytes per second that kernels bound by memory reach.
        op_overhead_s: Of each kernel beside its work.
        step_overhead_s: Of each step.
        overlap_cost: Share of the time of hidden communication by which it slows compute.
        straggling: Share by which a step gets longer with each doubling of the machines.
        links: Inside of the machine, and between machines.
        sources: Constant -> where it comes from.
    """

    name: str
    kind: str = "gpu"
    gpus_per_node: int = 8
    memory_bytes: float
    reserve_bytes: float = 0.0
    allocator_slack: float = 0.0
    peak_flops: Mapping[str, float]
    matmul_efficiency: float
    matmul_half_k: float = 0.0
    num_units: int = 0
    tile_rows: int = 128
    tile_cols: int = 256
    weight_grad_efficiency: float = 1.0
    attention_forward_efficiency: float
    attention_backward_efficiency: float
    batched_matmul_efficiency: float = 0.3
    memory_rate: float
    op_overhead_s: float = 0.0
    step_overhead_s: float = 0.0
    overlap_cost: float = 0.0
    straggling: float = 0.0
    links: tuple[Link, Link]
    sources: Mapping[str, str] = field(default_factory=dict)

    def to_core(self, dtype: str) -> Any:
        """The same for the C++ core, with the peak of one dtype.

        Raises:
            UsageError: There is no such peak.
        """
        if dtype not in self.peak_flops:
            known = ", ".join(self.peak_flops)
            raise UsageError(f"profile {self.name}: no peak_flops for {dtype}; it has {known}")
        hardware = core.Hardware()
        hardware.peak_flops = self.peak_flops[dtype]
        for name in CONSTANTS:
            setattr(hardware, name, getattr(self, name))
        for place, link in zip(("inside", "between"), self.links, strict=True):
            target = core.Link()
            target.bytes_per_s = link.bytes_per_s
            target.efficiency = link.efficiency
            target.latency_s = link.latency_s
            setattr(hardware, place, target)
        return hardware

    def to_toml(self) -> str:
        """The profile as the text of a file that `load_profile` reads."""
        lines = [f"name = {_text(self.name)}", f"kind = {_text(self.kind)}", ""]
        for dtype, flops in self.peak_flops.items():
            lines += [f"[peak_flops.{dtype}]", f"value = {flops!r}"]
            lines += [f"source = {_text(self.sources.get('peak_flops.' + dtype, ''))}", ""]
        for name in CONSTANTS:
            lines += [f"[constants.{name}]", f"value = {getattr(self, name)!r}"]
            lines += [f"source = {_text(self.sources.get(name, ''))}", ""]
        for link in self.links:
            lines += ["[[links]]", f"name = {_text(link.name)}", f"level = {link.level}"]
            lines += [f"bytes_per_s = {link.bytes_per_s!r}", f"latency_s = {link.latency_s!r}"]
            lines += [f"efficiency = {link.efficiency!r}", f"source = {_text(link.source)}", ""]
        return "\n".join(lines)


CONSTANTS = (
    "gpus_per_node",
    "memory_bytes",
    "reserve_bytes",
    "allocator_slack",
    "matmul_efficiency",
    "matmul_half_k",
    "num_units",
    "tile_rows",
    "tile_cols",
    "weight_grad_efficiency",
    "attention_forward_efficiency",
    "attention_backward_efficiency",
    "batched_matmul_efficiency",
    "memory_rate",
    "op_overhead_s",
    "step_overhead_s",
    "overlap_cost",
    "straggling",
)
_WHOLE = ("gpus_per_node", "num_units", "tile_rows", "tile_cols")
_POSITIVE = (
    "gpus_per_node",
    "memory_bytes",
    "matmul_efficiency",
    "tile_rows",
    "tile_cols",
    "weight_grad_efficiency",
    "attention_forward_efficiency",
    "attention_backward_efficiency",
    "batched_matmul_efficiency",
    "memory_rate",
)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=True)


def profile_names() -> list[str]:
    """Names of the profiles that come with megacore."""
    folder = resources.files("megacore.planning") / "profiles"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml"))


def load_profile(name_or_path: str) -> HardwareProfile:
    """A profile by its name, or from a file.

    Args:
        name_or_path: One of `profile_names()`, or a file that ends in .toml or .json.

    Raises:
        UsageError: There is none, or the file does not hold one.
    """
    is_file = name_or_path.endswith((".toml", ".json"))
    if not is_file and name_or_path not in profile_names():
        known = ", ".join(profile_names())
        raise UsageError(
            f"there is no hardware profile {name_or_path}; expected one of {known}, or a file "
            "that ends in .toml or .json"
        )
    try:
        if is_file:
            text = Path(name_or_path).read_text(encoding="utf-8")
        else:
            folder = resources.files("megacore.planning") / "profiles"
            text = (folder / f"{name_or_path}.toml").read_text(encoding="utf-8")
        content = json.loads(text) if name_or_path.endswith(".json") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"hardware profile {name_or_path}: {error}") from error
    try:
        return _profile_of(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"hardware profile {name_or_path}: {what}") from error


def _profile_of(content: dict[str, Any]) -> HardwareProfile:
    unknown = set(content) - {"name", "kind", "peak_flops", "constants", "links"}
    unknown |= {f"constants.{name}" for name in set(content["constants"]) - set(CONSTANTS)}
    if unknown:
        raise ValueError(f"unknown entries {', '.join(sorted(unknown))}")
    sources: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for name, entry in content["constants"].items():
        value = float(entry["value"])
        if not 0 <= value < float("inf") or (name in _POSITIVE and value == 0):
            raise ValueError(f"constants.{name}: {entry['value']} is out of range")
        constants[name] = int(value) if name in _WHOLE else value
        sources[name] = str(entry["source"])
    peaks: dict[str, float] = {}
    for dtype, entry in content["peak_flops"].items():
        peaks[dtype] = float(entry["value"])
        sources[f"peak_flops.{dtype}"] = str(entry["source"])
    links = sorted((Link(**entry) for entry in content["links"]), key=lambda link: link.level)
    if [link.level for link in links] != [INSIDE, BETWEEN]:
        raise ValueError("links: expected one of level 0 and one of level 1")
    for link in links:
        if min(link.bytes_per_s, link.efficiency) <= 0 or link.latency_s < 0:
            raise ValueError(f"links: the numbers of {link.name} are out of range")
    return HardwareProfile(
        name=str(content["name"]),
        kind=str(content.get("kind", "gpu")),
        peak_flops=peaks,
        links=(links[0], links[1]),
        sources=sources,
        **constants,
    )


def with_link(profile: HardwareProfile, name: str) -> HardwareProfile:
    """The profile with another network between the machines.

    Args:
        profile: The machines.
        name: One of `LINKS`.

    Raises:
        UsageError: There is no such network.
    """
    if name not in LINKS:
        raise UsageError(f"there is no link {name}; expected one of {', '.join(LINKS)}")
    return replace(profile, links=(profile.links[INSIDE], LINKS[name]))
