"""What a resumed run takes from its checkpoint, in a table that nobody has to ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megacore.checkpoint import ResumePlan
from megacore.checkpoint.config import CheckpointConfig

Row = tuple[str, Any, Any, Any]

_AXES = ("tp", "cp", "pp", "dp")
_SIZES = {
    "layers": "num_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "sequence": "seq_length",
}


def layout_text(layout: Sequence[Sequence[int]]) -> str:
    """Sizes of the axes of a grid of processes: "tp 2, cp 1, pp 1, dp 4".

    Args:
        layout: Size (and stride) of the tensor, context, pipeline and data axis.
    """
    return ", ".join(f"{axis} {size[0]}" for axis, size in zip(_AXES, layout, strict=False))


def resume_rows(
    plan: ResumePlan,
    config: CheckpointConfig,
    *,
    iteration: int,
    values: Mapping[str, Any],
    settings: Mapping[str, Any],
    layout: Sequence[Sequence[int]],
    groups: Sequence[str],
) -> list[Row]:
    """What is loaded, and what is not: rows of setting, checkpoint, command line, used.

    Args:
        plan: What the run takes.
        config: What was asked for.
        iteration: Of the checkpoint.
        values: Everything in the checkpoint that is not a tensor.
        settings: Settings of this run.
        layout: Its grid of processes, as `rng_layout` gives it.
        groups: Groups of tensors in the checkpoint.
    """
    weights_only = "release, or --finetune" if plan.weights_only else None
    counters = _mapping(values, "counters")
    consumed = counters.get("consumed_train_samples")
    rows: list[Row] = [
        ("iteration", iteration, weights_only, plan.iteration),
        ("training samples seen", consumed, weights_only, 0 if plan.weights_only else consumed),
        ("model", _model(_mapping(values, "args")), _model(settings), _model(settings)),
    ]
    stored = values.get("rng_layout")
    if isinstance(stored, list):
        before, now = layout_text(stored), layout_text(layout)
        changed = f"{now} (changed)" if before != now else now
        rows.append(("layout of processes", before, now, changed))
    parts = (
        ("optimizer and schedule", "optimizer", plan.load_optimizer, "--no-load-optim"),
        ("random states", "rng", plan.load_rng, "--no-load-rng"),
    )
    for name, group, is_loaded, refused in parts:
        asked = weights_only or (None if is_loaded else refused)
        there = "stored" if group in groups else "not stored"
        rows.append((name, there, asked, "loaded" if is_loaded else "fresh"))
    if config.use_checkpoint_args:
        rows.append(("architecture", "stored", "--use-checkpoint-args", "of the checkpoint"))
    return rows


def _model(settings: Mapping[str, Any]) -> str | None:
    """The sizes of a model, in a few words."""
    known = [f"{name} {settings[key]}" for name, key in _SIZES.items() if settings.get(key)]
    return ", ".join(known) or None


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}
