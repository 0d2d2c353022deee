"""`megacore schedule`: pictures, traces, CSV files, comparison, messages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest

from megacore._C import pipeline
from megacore.cli import main
from megacore.planning.config import ScheduleConfig, ShareCosts

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["schedule", *words]) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["schedule", *words]) == 2
    return capsys.readouterr().err


def test_text_of_1f1b(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--pipeline-model-parallel-size", "2", "--num-microbatches", "3")
    out = output_of(capsys, "1f1b", *size)
    lines = out.splitlines()
    assert lines[0] == "rank 0 |F0-F1-      B0====F2-B1====   B2===="
    assert lines[1] == "rank 1 |   F0-B0====F1-B1====F2-B2===="
    assert "step 12 us, idle 25.0%, activations of at most 2 microbatches on a rank" in out


def test_text_comes_in_bands(capsys: pytest.CaptureFixture[str]) -> None:
    out = output_of(capsys, "zb-v", "--width", "60", "--num-microbatches", "12")
    picture = out.split("zb-v: 4 ranks")[0].rstrip()
    assert all(len(line) <= 60 for line in picture.splitlines())
    rows = {}
    for line in picture.splitlines():
        if line:
            head, _, row = line.partition("|")
            rows[head] = rows.get(head, "") + f"{row:<52}"
    # Steps of a rank's second stage are written small.
    assert sorted(rows) == ["rank 0 ", "rank 1 ", "rank 2 ", "rank 3 "]
    for row in rows.values():
        for letter in "FIWfiw":
            assert len(re.findall(rf"{letter}\d+", row)) == 12


def test_svg_has_a_box_for_each_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.svg"
    output_of(capsys, "zb-v", "--svg", str(path))
    root = ElementTree.parse(path).getroot()
    boxes = [
        rect for rect in root.iter(f"{SVG}rect") if rect.get("fill") not in ("#ffffff", "#f3f4f6")
    ]
    coloured = [rect for rect in boxes if rect.get("height") == "22"]
    assert len(coloured) == 4 * 2 * 8 * 3
    words = [word.text for word in root.iter(f"{SVG}text")]
    assert words.count("7") == 4 * 2 * 3
    assert "rank 3" in words


def test_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.png"
    output_of(capsys, "1f1b", "--png", str(path), "--communication")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_trace_is_json_with_matching_arrows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    output_of(capsys, "zb-v", "--trace", str(path), "--communication", "--costs", "10,12,8,2")
    events = json.loads(path.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert sum(event["tid"] == 0 for event in slices) == 4 * 2 * 8 * 3
    ways: dict[int, list[dict[str, object]]] = {}
    for event in events:
        if event["ph"] in "stf":
            ways.setdefault(event["id"], []).append(event)
    # Six of the seven borders between stages are between ranks, in both directions.
    assert len(ways) == 2 * 6 * 8
    for way in ways.values():
        assert [event["ph"] for event in way] == ["s", "t", "t", "f"]
    for pid in range(4):
        for tid in {event["tid"] for event in slices if event["pid"] == pid}:
            line = sorted(
                (event["ts"], event["dur"])
                for event in slices
                if event["pid"] == pid and event["tid"] == tid
            )
            for (start, duration), (after, _) in pairwise(line):
                assert start + duration <= after + 1e-3


def test_recorded_run_beside_its_simulation() -> None:
    schedule = pipeline.make_schedule("1f1b", num_ranks=2, num_microbatches=2)
    simulation = pipeline.simulate(schedule, pipeline.Costs())
    recorded = [
        [(action, 1e6 + 1.5 * start, 1e6 + 1.5 * end) for action, start, end in events]
        for events in simulation.timeline
    ]
    text = pipeline.trace_json(schedule.placement, {"simulated": simulation, "measured": recorded})
    events = json.loads(text)["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert sorted(names) == [
        "measured rank 0",
        "measured rank 1",
        "simulated rank 0",
        "simulated rank 1",
    ]
    ends = {
        pid: max(e["ts"] + e["dur"] for e in events if e["ph"] == "X" and e["pid"] == pid)
        for pid in range(4)
    }
    assert ends == {0: 9.0, 1: 13.5, 2: 7.0, 3: 10.5}


def test_csv_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in pipeline.schedule_names():
        for more in ([], ["--communication"]):
            path = tmp_path / f"{name}.csv"
            first = output_of(capsys, name, "--csv", str(path), *more)
            assert first.splitlines()[1] in output_of(capsys, "--file", str(path))
            again = tmp_path / "again.csv"
            output_of(capsys, "--file", str(path), "--csv", str(again))
            assert again.read_text() == path.read_text()


def test_csv_is_that_of_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    path = tmp_path / "plan.csv"
    output_of(capsys, "zb-v", "--csv", str(path))
    order = pipeline.parse_csv(path.read_text(), str(path)).ranks
    for row, steps in zip(path.read_text().splitlines(), order, strict=True):
        theirs = [schedules._Action.from_str(cell) for cell in row.split(",")]
        assert [str(action) for action in theirs] == [str(action) for action in steps]


def test_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.csv"
    line = ["search", "--memory-limit", "3", "--costs", "10,13,9,1", "--csv", str(path)]
    out = output_of(capsys, *line)
    peak = re.search(r"at most ([\d.]+) microbatches", out)
    assert peak
    assert float(peak[1]) <= 3
    pipeline.validate(pipeline.parse_csv(path.read_text(), "found.csv"))
    assert "fits into memory for 0.5" in error_of(capsys, "search", "--memory-limit", "0.5")


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of(capsys, "--compare", "--pipeline-model-parallel-size", "3").splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line and line[0] in "gizv1ds"}
    assert rows["1f1b"][1:] == ["30", "30", "20.0%", "3", "1"]
    assert "not possible" in " ".join(rows["dualpipe"])
    assert float(rows["search"][3]) <= float(rows["zb-v"][1])


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("0F0,0B0\n1F0,1Q0\n")
    crossed = tmp_path / "crossed.csv"
    crossed.write_text("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n")
    svg = str(tmp_path / "no" / "such.svg")
    for words, part in (
        ([], "which one?"),
        (["1f1c"], "there is no schedule '1f1c'; expected one of gpipe"),
        (["--file", str(broken)], f"{broken}, row 2 (rank 1), column 2: expected a step"),
        (["--file", str(crossed)], "deadlock"),
        (["--file", str(tmp_path / "none.csv")], "none.csv: cannot be read"),
        (["1f1b", "--file", str(broken)], "not both"),
        (["1f1b", "--costs", "1,2"], "--costs 1,2: expected F,I,W"),
        (["1f1b", "--costs", "1,2,nan"], "expected F,I,W"),
        (["1f1b", "--costs", "0,0,0,1"], "not all 0"),
        (["1f1b", "--chunks", "3"], "only interleaved"),
        (["1f1b", "--svg", svg], "such.svg: cannot be written"),
        (["search"], "--memory-limit"),
        (["1f1b", "--memory-limit", "3"], "for search"),
        (["1f1b", "--compare"], "takes no name"),
        (["--compare", "--svg", svg], "draws no --svg"),
        (["1f1b", "--num-microbatches", "0"], "MC0005"),
    ):
        assert part in error_of(capsys, *words), words


def test_costs_of_the_command_line() -> None:
    assert ScheduleConfig(costs="10, 13,9").share_costs() == ShareCosts(10, 13, 9, 0)
    assert ScheduleConfig(costs="1,2,3,0.5").share_costs() == ShareCosts(1, 2, 3, 0.5)


def test_script_takes_the_same_words() -> None:
    line = [sys.executable, str(ROOT / "tools" / "show_schedule.py"), "gpipe"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "gpipe: 4 ranks, 4 stages, 8 microbatches" in done.stdout


def test_a_plan_for_16384_ranks_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--pipeline-model-parallel-size", "64", "--num-microbatches", "512"]
    path = tmp_path / "plan.csv"
    out = output_of(capsys, "interleaved", *size, "--csv", str(path), "--communication")
    assert "64 ranks, 128 stages, 512 microbatches" in out
    assert len(path.read_text().splitlines()) == 64
