"""Initial weights of parts are bitwise those of the whole model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tensor_models import ROTARY, Case, build

from megacore.models import initialization
from megacore.models.initialization import init_weights
from megacore.parallel.groups import Group
from megacore.parallel.stages import StageLayers, cut_stage
from megacore.parallel.tensor import apply_tensor_parallel

LAST_STAGE = StageLayers(first=1, last=2, has_embedding=False, has_output=True)


@pytest.mark.parametrize("piece", [37, 60, 1000, 1 << 22])
@pytest.mark.parametrize("settings", [ROTARY, {}, {"init_method_xavier_uniform": True}])
def test_parts(monkeypatch: pytest.MonkeyPatch, piece: int, settings: dict[str, object]) -> None:
    case = Case(settings | {"num_layers": 1}, dtype=torch.float32)
    whole, config = build(case)
    init_weights(whole, config, seed=9)
    wanted = dict(whole.named_parameters())
    monkeypatch.setattr(initialization, "_PIECE", piece)
    for size in (1, 2, 4):
        for rank in range(size):
            part, _ = build(case, "meta")
            layouts = apply_tensor_parallel(part, Group("tp", tuple(range(size)), rank))
            part.to_empty(device="cpu")
            init_weights(part, config, seed=9, cuts=layouts)
            for name, parameter in part.named_parameters():
                assert parameter.shape == layouts[name].local_shape
                assert torch.equal(parameter, layouts[name].local(wanted[name])), name


def test_copy_of_the_word_embedding() -> None:
    case = dataclasses.replace(Case(), dtype=torch.bfloat16)
    whole, config = build(case)
    init_weights(whole, config, seed=2)
    assert whole.embedding is not None
    table = whole.embedding.word_embeddings.weight
    for rank in range(2):
        part, _ = build(case, "meta")
        cut_stage(part, LAST_STAGE)
        layouts = apply_tensor_parallel(part, Group("tp", (0, 1), rank))
        part.to_empty(device="cpu")
        init_weights(part, config, seed=2, cuts=layouts)
        layout = layouts["output_layer.weight"]
        assert (layout.name, layout.is_copy) == ("embedding.word_embeddings.weight", True)
        assert part.output_layer is not None
        assert torch.equal(part.output_layer.weight, layout.local(table))
