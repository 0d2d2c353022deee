"""Hugging Face -> core or legacy in every layout that fits -> Hugging Face: bitwise the same.

Every step is verified, so this also shows that the bound of verification fits every family.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hf_cases import CASES, hf_model
from llama_peers import random_llama
from safetensors.torch import load_file

from megacore.checkpoint.convert.cli import main
from megacore.cli import run

TENSOR, PIPELINE = "--target-tensor-parallel-size", "--target-pipeline-parallel-size"
VIRTUAL = "--target-num-virtual-stages"
LAYOUTS = [
    f"--to {form} {TENSOR} {tensor} {PIPELINE} {pipeline} {VIRTUAL} {virtual}"
    for form in ("core", "legacy")
    for tensor in (1, 2, 4)
    for pipeline, virtual in ((1, 1), (2, 1), (4, 1), (2, 2))
]
# Heads of 2 groups are cut in two, 3 layers in three; what cannot be cut like that is below.
CUT = f"--to core {TENSOR} 2 {PIPELINE} 3"
OTHER_CUTS = {
    "gemma3": f"--to core {TENSOR} 2 {PIPELINE} 7",
    "gpt2-untied-erf": f"--to core {PIPELINE} 3",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    @cache
    def make(name: str) -> Path:
        path = tmp_path_factory.mktemp("hf") / name
        if name == "four layers":
            model = random_llama(num_hidden_layers=4, num_key_value_heads=4, vocab_size=301)
        else:
            model = hf_model(name)
        model.save_pretrained(path)
        return path

    return make


def there_and_back(source: Path, place: Path, words: str, *more: str) -> None:
    for start, end, flags in ((source, "there", words), (place / "there", "back", "--to hf")):
        assert run(main, [str(start), str(place / end), *flags.split(), *more]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (source, place / "back"))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("words", LAYOUTS)
def test_every_layout(directory, tmp_path, words) -> None:
    there_and_back(directory("four layers"), tmp_path, words)


@pytest.mark.parametrize("name", CASES)
def test_every_family_cut(directory, tmp_path, name) -> None:
    there_and_back(directory(name), tmp_path, OTHER_CUTS.get(name, CUT), "--verify")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_family_for_every_layout(directory, tmp_path, name) -> None:
    there_and_back(directory(name), tmp_path, "--to core", "--verify")
