"""A picture of a layout of processes: who is with whom on each axis, and what they divide.

One row per axis. On the left the machines; processes of one colour are a group, and the number is
the place in it. On the right what a group divides, each part in the shade of its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megacore.parallel.config import ParallelConfig
from megacore.planning.layout_text import AXES, AxisGroups
from megacore.planning.picture import FAINT, GREY, INK, Box, Line, Picture, Word

# Colours of neighbouring groups; they repeat.
_GROUPS = (
    "#2563eb",
    "#b45309",
    "#0f766e",
    "#be185d",
    "#6d28d9",
    "#4d7c0f",
    "#0369a1",
    "#b91c1c",
)
_CELL, _GAP = 26.0, 4.0
_MACHINES_IN_A_ROW, _ROWS_OF_MACHINES = 4, 3
_PART_WIDTH, _PART_HEIGHT = 250.0, 92.0
_MARGIN = 20.0
_ROW_OF_CELLS = 4
# Parts that are drawn; of more only the first ones.
_MOST_PARTS = 8


def draw_layout(
    parallel: ParallelConfig, axes: Sequence[AxisGroups], *, per_machine: int
) -> Picture:
    """One row for every axis that divides something.

    Args:
        parallel: Degrees and options.
        axes: Of that layout.
        per_machine: Processes of a machine.
    """
    shown = [axis for axis in axes if axis.size > 1] or list(axes[-1:])
    machines = -(-parallel.world_size // per_machine)
    columns = min(machines, _MACHINES_IN_A_ROW)
    rows = min(-(-machines // columns), _ROWS_OF_MACHINES)
    width, height = _machine_size(per_machine)
    left = columns * (width + 2 * _GAP)
    row_height = max(rows * (height + 2 * _GAP), _PART_HEIGHT) + 54
    picture = Picture(
        _MARGIN * 3 + max(left, 150) + _PART_WIDTH + 130, _MARGIN + row_height * len(shown)
    )
    for i, axis in enumerate(shown):
        top = _MARGIN + i * row_height
        title = f"{AXES[axis.axis]} parallel, {axis.size}"
        picture.words.append(Word(_MARGIN, top + 10, title, INK, 14.0))
        _draw_machines(picture, axis, top + 24, per_machine, columns, rows)
        hidden = machines - columns * rows
        if hidden > 0:
            bottom = top + 24 + rows * (height + 2 * _GAP) + 8
            picture.words.append(Word(_MARGIN, bottom, f"and {hidden} machines more", GREY))
        x = _MARGIN * 2 + max(left, 150)
        _PARTS[axis.axis](picture, parallel, axis.size, x, top + 24)
    return picture


def _machine_size(per_machine: int) -> tuple[float, float]:
    columns = min(per_machine, _ROW_OF_CELLS)
    rows = -(-per_machine // columns)
    return columns * (_CELL + 2) + 2 * _GAP, rows * (_CELL + 2) + 2 * _GAP


def _draw_machines(
    picture: Picture, axis: AxisGroups, top: float, per_machine: int, columns: int, rows: int
) -> None:
    width, height = _machine_size(per_machine)
    members = axis.members()
    for machine in range(columns * rows):
        ranks = [
            rank
            for rank in range(machine * per_machine, (machine + 1) * per_machine)
            if rank in members
        ]
        if not ranks:
            continue
        row, column = divmod(machine, columns)
        x = _MARGIN + column * (width + 2 * _GAP)
        y = top + row * (height + 2 * _GAP)
        picture.boxes.append(Box(x, y, width, height, FAINT))
        for slot, rank in enumerate(ranks):
            group, place = members[rank]
            cell_row, cell_column = divmod(slot, _ROW_OF_CELLS)
            cell_x = x + _GAP + cell_column * (_CELL + 2)
            cell_y = y + _GAP + cell_row * (_CELL + 2)
            picture.boxes.append(Box(cell_x, cell_y, _CELL, _CELL, _GROUPS[group % len(_GROUPS)]))
            middle = cell_x + _CELL / 2
            picture.words.append(
                Word(middle, cell_y + _CELL / 2 + 4, str(place), "#ffffff", 11.0, "middle")
            )


def shade(place: int, size: int) -> str:
    """Colour of a part: from dark to light blue along the axis."""
    share = place / max(1, size - 1)
    dark, light = (30, 64, 175), (191, 219, 254)
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip(dark, light, strict=True)
    )


def _bar(
    picture: Picture, x: float, y: float, width: float, height: float, owners: Sequence[int]
) -> None:
    """A bar of equal parts; each in the shade of the place that has it."""
    size = max(owners) + 1
    step = width / len(owners)
    for i, owner in enumerate(owners):
        picture.boxes.append(Box(x + i * step, y, step - 1, height, shade(owner, size)))


def _stack(
    picture: Picture, x: float, y: float, width: float, height: float, owners: Sequence[int]
) -> None:
    """The same as `_bar`, one part below the other."""
    size = max(owners) + 1
    step = height / len(owners)
    for i, owner in enumerate(owners):
        picture.boxes.append(Box(x, y + i * step, width, step - 1, shade(owner, size)))


def _draw_tensor(picture: Picture, parallel: ParallelConfig, size: int, x: float, y: float) -> None:
    size = min(size, _MOST_PARTS)
    parts = list(range(size))
    tokens = parts if parallel.sequence_parallel else [0]
    _stack(picture, x, y, 18, 70, tokens)
    _bar(picture, x + 44, y, 70, 70, parts)
    _stack(picture, x + 140, y, 70, 70, parts)
    _stack(picture, x + 236, y, 18, 70, tokens)
    split = "tokens" if parallel.sequence_parallel else "x"
    for left, width, text in (
        (x, 18, split),
        (x + 44, 70, "columns of W1"),
        (x + 140, 70, "rows of W2"),
        (x + 236, 18, split),
    ):
        picture.words.append(Word(left + width / 2, y + 84, text, GREY, 11.0, "middle"))
    for start in (x + 22, x + 118, x + 214):
        picture.lines.append(Line(((start, y + 35), (start + 18, y + 35)), GREY))


def _draw_context(
    picture: Picture, parallel: ParallelConfig, size: int, x: float, y: float
) -> None:
    size = min(size, _MOST_PARTS)
    owners = [*range(size), *reversed(range(size))]
    cell = 70 / len(owners)
    # Queries go down, keys to the right: the causal half, in the shade of who has the queries.
    for query, owner in enumerate(owners):
        for key in range(query + 1):
            picture.boxes.append(
                Box(x + key * cell, y + query * cell, cell - 0.5, cell - 0.5, shade(owner, size))
            )
    picture.words.append(Word(x, y + 84, "keys of each query, causal", GREY))
    _bar(picture, x + 160, y, 130, 18, owners)
    picture.words.append(Word(x + 160, y + 32, f"tokens, {len(owners)} chunks: equal work", GREY))
    how = "keys and values go round" if "p2p" in parallel.cp_comm_type else "heads for tokens"
    picture.words.append(Word(x + 160, y + 48, how, GREY))


def _draw_pipeline(
    picture: Picture, parallel: ParallelConfig, size: int, x: float, y: float
) -> None:
    size = min(size, _MOST_PARTS)
    schedule = parallel.schedule_name
    virtual = parallel.num_layers_per_virtual_pipeline_stage is not None
    once = list(range(size))
    if schedule in ("zb-v", "v-half", "v-min", "dualpipev"):
        owners = [*once, *reversed(once)]
    elif virtual or schedule == "interleaved":
        owners = once * 2
    else:
        owners = once
    _bar(picture, x, y, _PART_WIDTH, 34, owners)
    picture.words.append(Word(x, y + 48, "embedding, layers ..., output", GREY))
    picture.words.append(Word(x, y + 64, f"schedule {schedule}", GREY))


def _draw_data(picture: Picture, parallel: ParallelConfig, size: int, x: float, y: float) -> None:
    size = min(size, _MOST_PARTS)
    parts = list(range(size))
    strategy = parallel.data_parallel_sharding_strategy
    shards = {
        "samples": True,
        "optimizer": parallel.shards_optimizer,
        "gradients": strategy in ("optim_grads", "optim_grads_params"),
        "parameters": strategy == "optim_grads_params",
    }
    for i, (name, is_split) in enumerate(shards.items()):
        top = y + i * 22
        picture.words.append(Word(x, top + 12, name, GREY))
        if is_split:
            _bar(picture, x + 74, top, 150, 16, parts)
        else:
            picture.boxes.append(Box(x + 74, top, 149, 16, FAINT))
            picture.words.append(Word(x + 148, top + 12, "all of them", GREY, 11.0, "middle"))


_PARTS: dict[str, Callable[[Picture, ParallelConfig, int, float, float], None]] = {
    "tp": _draw_tensor,
    "cp": _draw_context,
    "pp": _draw_pipeline,
    "dp": _draw_data,
}
