"""What a checkpoint holds: settings, layout, tensors and the files that they are in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megacore.checkpoint import layout
from megacore.checkpoint.load import Checkpoint
from megacore.checkpoint.open import open_checkpoint

# Settings that say how the processes were arranged that wrote a checkpoint.
_LAYOUT = (
    "world_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "context_parallel_size",
    "expert_model_parallel_size",
    "data_parallel_size",
    "sequence_parallel",
    "use_distributed_optimizer",
    "data_parallel_sharding_strategy",
)


@dataclass(frozen=True)
class TensorSummary:
    """One tensor.

    Attributes:
        group: "model", "optimizer" or "rng".
        name: Its name.
        dtype: Of its elements.
        shape: Its full shape.
        num_bytes: Of all elements.
        num_chunks: Pieces that it is stored in.
        files: Names of the files that hold them; empty for files of whole ranks.
    """

    group: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    num_chunks: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What a checkpoint holds.

    Attributes:
        path: Its directory.
        format: "torch_dist" or "torch".
        written_by: "megacore" or "another program".
        iteration: Completed iterations.
        layout: Name -> value of the settings that arranged the processes.
        settings: Name -> value of all settings.
        values: Everything else that is not a tensor: counters, schedule, ...
        files: File name -> bytes.
        tensors: The tensors.
    """

    path: str
    format: str
    written_by: str
    iteration: int
    layout: Mapping[str, Any]
    settings: Mapping[str, Any]
    values: Mapping[str, Any]
    files: Mapping[str, int]
    tensors: tuple[TensorSummary, ...]

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def summarize(path: Path) -> Summary:
    """Reads what describes a checkpoint; of `torch_dist` no tensor is read.

    Args:
        path: Directory with its files.

    Raises:
        CheckpointError: It is damaged or not complete.
    """
    checkpoint = open_checkpoint(path)
    values = dict(checkpoint.values)
    settings = values.pop("args", None)
    settings = settings if isinstance(settings, dict) else {}
    return Summary(
        path=str(path),
        format="torch" if layout.has_rank_files(path) else "torch_dist",
        written_by="megacore" if checkpoint.is_own else "another program",
        iteration=checkpoint.iteration,
        layout={name: settings[name] for name in _LAYOUT if name in settings},
        settings=settings,
        values=values,
        files={
            str(file.relative_to(path)): os.stat(file).st_size
            for file in sorted(path.rglob("*"))
            if file.is_file()
        },
        tensors=tuple(_tensors(checkpoint)),
    )


def _tensors(checkpoint: Checkpoint) -> list[TensorSummary]:
    found = []
    for group in checkpoint.groups:
        for name, stored in checkpoint.stored(group).items():
            files = dict.fromkeys(chunk.span.file for chunk in stored.chunks if chunk.span.file)
            num_bytes = stored.dtype.itemsize
            for size in stored.shape:
                num_bytes *= size
            found.append(
                TensorSummary(
                    group=group,
                    name=name,
                    dtype=str(stored.dtype).removeprefix("torch."),
                    shape=stored.shape,
                    num_bytes=num_bytes,
                    num_chunks=len(stored.chunks),
                    files=tuple(files),
                )
            )
    return found


def format_summary(summary: Summary, *, settings: bool = False) -> str:
    """A summary as text.

    Args:
        summary: What to show.
        settings: Also list all settings.
    """
    total = sum(summary.files.values())
    lines = [
        f"{summary.path}: {summary.format}, written by {summary.written_by}",
        f"  iteration  {summary.iteration}",
        f"  size       {size_text(total)} in {len(summary.files)} files",
    ]
    if summary.layout:
        shown = ", ".join(f"{name} {value}" for name, value in summary.layout.items() if value)
        lines.append(f"  layout     {shown}")
    counters = summary.values.get("counters")
    if isinstance(counters, Mapping):
        shown = ", ".join(f"{name} {value}" for name, value in counters.items())
        lines.append(f"  counters   {shown}")
    if settings:
        lines += [f"  {name} = {value}" for name, value in sorted(summary.settings.items())]
    for group in dict.fromkeys(tensor.group for tensor in summary.tensors):
        own = [tensor for tensor in summary.tensors if tensor.group == group]
        size = size_text(sum(tensor.num_bytes for tensor in own))
        lines += ["", f"{group}: {len(own)} tensors, {size}"]
        width = max(len(tensor.name) for tensor in own)
        shapes = [str(list(tensor.shape)) for tensor in own]
        shape_width = max(map(len, shapes))
        for tensor, shape in zip(own, shapes, strict=True):
            chunks = "1 chunk" if tensor.num_chunks == 1 else f"{tensor.num_chunks} chunks"
            lines.append(
                f"  {tensor.name:<{width}}  {tensor.dtype:<8}  {shape:<{shape_width}}  "
                f"{size_text(tensor.num_bytes):>11}  {chunks}"
                + (f" in {', '.join(tensor.files)}" if tensor.files else "")
            )
    return "\n".join(line.rstrip() for line in lines)


def size_text(num_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} TiB"
