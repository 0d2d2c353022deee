"""A timeline as text, for terminals and logs."""

from __future__ import annotations

from typing import Any

from megacore._C import pipeline

LETTERS = {
    pipeline.Kind.FORWARD: "F",
    pipeline.Kind.BACKWARD: "B",
    pipeline.Kind.INPUT_GRAD: "I",
    pipeline.Kind.WEIGHT_GRAD: "W",
}
FILL = {"F": "-", "B": "=", "I": "=", "W": "."}
MAX_COLUMNS = 100_000


def text_timeline(simulation: Any, placement: Any, width: int) -> str:
    """One row per rank, time from left to right, in as many bands as the width needs.

    A step is its letter and microbatch, filled up to its length: F with -, B and I with =, W with
    a dot. Letters of a rank's second and further stages are small.

    Args:
        simulation: `megacore._C.pipeline.Simulation`.
        placement: Placement of its schedule.
        width: Columns of a line.
    """
    timeline = simulation.timeline
    label = 1 + len(str(max(placement.num_microbatches - 1, 0)))
    shortest = min(
        (end - start for row in timeline for _, start, end in row if end > start), default=1.0
    )
    scale = min((label + 1) / shortest, MAX_COLUMNS / max(simulation.makespan_us, shortest))
    rows = []
    for rank, events in enumerate(timeline):
        first_stage = placement.stages_of(rank)[:1]
        row = [" "] * (round(simulation.makespan_us * scale) + 1)
        for action, start, end in events:
            if action.kind not in LETTERS:
                continue
            begin, stop = round(start * scale), round(end * scale)
            letter = LETTERS[action.kind]
            shown = letter if [action.stage] == first_stage else letter.lower()
            text = f"{shown}{action.number}"
            if len(text) > stop - begin:
                text = shown
            row[begin:stop] = f"{text:{FILL[letter]}<{stop - begin}}"[: stop - begin]
        rows.append("".join(row))
    head = len(f"rank {len(rows) - 1} |")
    columns = max(1, width - head)
    bands = []
    for begin in range(0, max(map(len, rows)), columns):
        band = [
            f"{f'rank {rank}':<{head - 1}}|{row[begin : begin + columns].rstrip()}"
            for rank, row in enumerate(rows)
        ]
        bands.append("\n".join(band))
    return "\n\n".join(bands)
