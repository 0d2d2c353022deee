"""The table of a conversion, for people."""

from __future__ import annotations

import pytest
import torch

from megacore.checkpoint.convert.model_stream import TensorInfo
from megacore.checkpoint.convert.report import Row, Table


@pytest.mark.parametrize(
    ("origins", "shown"),
    [
        (("a.0.q.weight", "a.0.k.weight", "a.0.v.weight"), "a.*.{q,k,v}.weight"),
        (("a.12.gate_proj", "a.12.gate"), "a.*.gate{_proj,}"),
        (("mp_rank_00_001: x", "mp_rank_01_001: x"), "mp_rank_*_*: x"),
        (("w1", "w2"), "w{1,2}"),
        (("linear_fc1.weight",), "linear_fc1.weight"),
        (("decoder.layers.3.mlp.linear_fc1.weight",), "="),
    ],
)
def test_names_of_parts_are_joined(origins, shown) -> None:
    info = TensorInfo((3, 4), torch.float32)
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    table = Table(rows=[Row(name, origins, info, info, ("t",))])
    assert table.text().splitlines()[1].split("  ")[0] == shown
    assert table.values()["tensors"][0]["source"] == list(origins)


def test_what_stays_behind_is_joined_by_layer_and_reason() -> None:
    table = Table(left_out={"a.0.rot": "computed", "a.1.rot": "computed", "b": "frequencies"})
    assert table.text().splitlines()[1:] == [
        "not converted: a.*.rot (2 tensors): computed",
        "not converted: b: frequencies",
    ]
