"""Random number states through a checkpoint file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from megacore.checkpoint import gather_rng, load_checkpoint, restore_rng, save_checkpoint
from megacore.errors import CheckpointError


@pytest.fixture(autouse=True)
def _leave_the_generators_alone() -> object:
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def draw(extra: torch.Generator) -> list[object]:
    """From every generator, also those that keep half a pair of normals back."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.normal(size=1).tolist(),
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
        torch.randn(5, generator=extra).tolist(),
    ]


@pytest.mark.parametrize("warm", [0, 1, 2])
def test_all_generators_go_on_where_they_were(tmp_path: Path, warm: int) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    extra = torch.Generator().manual_seed(4)
    for _ in range(warm):
        draw(extra)
    tensors, values = gather_rng({"extra": extra})
    save_checkpoint(tmp_path, 1, tensors={"rng": tensors}, values={"rng": values})
    expected = [draw(extra) for _ in range(3)]
    checkpoint = load_checkpoint(tmp_path)
    other = torch.Generator()
    restore_rng(checkpoint.tensors("rng"), checkpoint.values["rng"], {"extra": other})
    assert [draw(other) for _ in range(3)] == expected


def test_a_missing_state_is_named() -> None:
    tensors, values = gather_rng()
    with pytest.raises(CheckpointError, match=r"lacks generator\.extra"):
        restore_rng(tensors, values, {"extra": torch.Generator()})
    del tensors["numpy"]
    with pytest.raises(CheckpointError, match="lacks numpy"):
        restore_rng(tensors, values)


def test_an_unusable_state_is_named() -> None:
    tensors, values = gather_rng()
    tensors["torch_cpu"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        restore_rng(tensors, values)
