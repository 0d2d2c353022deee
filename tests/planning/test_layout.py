"""`megacore layout`: groups of processes in words and pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from megacore.errors import UsageError
from megacore.parallel.config import ParallelConfig
from megacore.planning.layout_command import main
from megacore.planning.layout_picture import draw_layout, shade
from megacore.planning.layout_text import axis_groups, layout_text

SIZES = {
    "tensor_model_parallel_size": 2,
    "context_parallel_size": 3,
    "pipeline_model_parallel_size": 2,
}


def test_every_process_is_in_one_group_of_every_axis() -> None:
    axes = axis_groups(ParallelConfig(world_size=60, **SIZES))
    assert [axis.size for axis in axes] == [2, 3, 2, 5]
    for axis in axes:
        assert sorted(axis.members()) == list(range(60))
        assert all(len(group) == axis.size for group in axis.groups)
        for rank, (index, place) in axis.members().items():
            assert axis.groups[index][place] == rank


def test_whether_a_group_leaves_its_machine() -> None:
    axes = axis_groups(ParallelConfig(world_size=16, tensor_model_parallel_size=4))
    assert {axis.axis: axis.machines(8) for axis in axes} == {"tp": 1, "cp": 1, "pp": 1, "dp": 2}
    assert axes[0].machines(2) == 2
    text = layout_text(axes, 8)
    assert "tensor (tp)    4     4       0 1 2 3      inside a machine" in text
    assert "data (dp)      4     4       0 4 8 12     across 2 machines" in text
    assert text.splitlines()[2].endswith(" -")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        SIZES,
        {**SIZES, "sequence_parallel": True, "cp_comm_type": "a2a"},
        {"pipeline_model_parallel_size": 4, "pipeline_schedule": "zb-v"},
        {"pipeline_model_parallel_size": 4, "num_layers_per_virtual_pipeline_stage": 1},
        {"data_parallel_sharding_strategy": "optim_grads_params"},
        {"tensor_model_parallel_size": 12},
    ],
)
@pytest.mark.parametrize("per_machine", [1, 5, 8])
def test_all_that_is_drawn_lies_inside_of_the_picture(settings: dict, per_machine: int) -> None:
    parallel = ParallelConfig(world_size=48, **settings)
    picture = draw_layout(parallel, axis_groups(parallel), per_machine=per_machine)
    assert picture.boxes
    for box in picture.boxes:
        assert 0 <= box.x <= box.x + box.width <= picture.width
        assert 0 <= box.y <= box.y + box.height <= picture.height
    for word in picture.words:
        assert 0 <= word.x <= picture.width
        assert 0 <= word.y <= picture.height


def test_a_part_has_a_shade_of_its_own() -> None:
    shades = [shade(place, 8) for place in range(8)]
    assert len(set(shades)) == 8
    assert shades[0] == "#1e40af"
    assert shade(0, 1) == "#1e40af"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layout.svg"
    words = ["--world-size", "8", "--tensor-model-parallel-size", "2", "--svg", str(file)]
    assert main([*words, "--axis", "tp"]) == 0
    printed = capsys.readouterr().out
    assert "0 1" in printed
    assert "data" not in printed
    texts = [word.text for word in ElementTree.parse(file).iter() if word.text]
    assert "tensor parallel, 2" in texts
    assert texts.count("0") == texts.count("1") == 4


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a world of 12 is no multiple of tensor 8"):
        main(["--world-size", "12", "--tensor-model-parallel-size", "8"])
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        main(["--svg", str(tmp_path / "missing" / "layout.svg")])
