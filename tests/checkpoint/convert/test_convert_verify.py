"""Verification: logits of both sides, with weights streamed, within a bound that is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from convert_cases import FolderTarget, MemorySource, random_model
from llama_peers import random_llama

from megacore.checkpoint.convert import hf
from megacore.checkpoint.convert import verify as verification
from megacore.checkpoint.convert.engine import convert, make_plan
from megacore.checkpoint.convert.streamed import streamed_logits
from megacore.checkpoint.convert.verify import default_prompt, verify
from megacore.errors import CheckpointError
from megacore.models.gpt import GPTModel

VARIANTS = [{}, {"untie_embeddings_and_output_weights": False}, {"qk_layernorm": True}]


@pytest.mark.parametrize("changes", VARIANTS, ids=["untied", "tied", "qk-norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streamed_logits_are_those_of_the_whole_model(changes, dtype) -> None:
    model = random_model(**changes)
    source = MemorySource(model, **changes)
    tokens = torch.tensor([[3, 36, 0, 12, 5], [1, 1, 2, 30, 9]])
    found = streamed_logits(source.description, source.read, tokens, dtype=dtype)
    whole = GPTModel(
        source.description.config, padded_vocab_size=model.padded_vocab_size, dtype=dtype
    ).eval()
    with torch.no_grad():
        for ours, theirs in zip(whole.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs)
        assert torch.equal(found, whole(tokens))


def test_one_part_of_the_model_is_in_memory_at_a_time() -> None:
    model = random_model(num_layers=5)
    source = MemorySource(model, num_layers=5)
    streamed_logits(source.description, source.read, torch.tensor([[1, 2]]), dtype=torch.float32)
    sizes: dict[str, int] = {}
    for name, tensor in source.tensors.items():
        part = ".".join(name.split(".")[:3])
        sizes[part] = sizes.get(part, 0) + tensor.numel() * tensor.element_size()
    assert source.most_bytes == max(sizes.values())
    assert source.alive == 0


def verified(source, made, **options):
    plan = make_plan(source, FolderTarget(), dtype=options.pop("dtype", None))
    return verify(plan, source, made, **options)


def test_the_same_weights_pass_and_padding_is_not_looked_at() -> None:
    source = MemorySource(random_model(rows=37), vocab_size=29)
    made = MemorySource(random_model(rows=37), vocab_size=29)
    made.tensors["output_layer.weight"] = made.tensors["output_layer.weight"].clone()
    made.tensors["output_layer.weight"][29:] = 1e6
    found = verified(source, made)
    assert found.passed
    assert [one.name for one in found.comparisons] == ["target, read back"]
    assert max(found.tokens) < 29
    assert found.comparisons[0].agreeing == len(found.tokens) == 24


@pytest.mark.parametrize("name", ["decoder.layers.1.mlp.linear_fc2.weight", "output_layer.weight"])
def test_one_wrong_row_fails(name) -> None:
    source, made = MemorySource(random_model()), MemorySource(random_model())
    changed = made.tensors[name].clone()
    changed[[4, 5]] = changed[[5, 4]]
    made.tensors[name] = changed
    found = verified(source, made)
    assert not found.passed
    assert found.comparisons[-1].difference > 1000 * found.bound


def test_gate_and_up_or_heads_exchanged_fail() -> None:
    # The classical mistakes of conversion: all shapes fit, and all values are somewhere.
    for name, parts in (("mlp.linear_fc1.weight", 2), ("self_attention.linear_qkv.weight", 2)):
        source, made = MemorySource(random_model()), MemorySource(random_model())
        key = f"decoder.layers.0.{name}"
        made.tensors[key] = torch.cat(made.tensors[key].chunk(parts)[::-1])
        assert not verified(source, made).passed


def test_not_a_number_fails() -> None:
    source, made = MemorySource(random_model()), MemorySource(random_model())
    made.tensors["decoder.final_layernorm.weight"] = torch.full((24,), float("nan"))
    found = verified(source, made)
    assert not found.passed
    assert found.comparisons[-1].difference == float("inf")


def test_an_intended_rounding_passes_and_a_missing_one_does_not() -> None:
    source = MemorySource(random_model())
    made = MemorySource(random_model(dtype=torch.bfloat16))
    assert verified(source, made, dtype=torch.bfloat16).passed
    assert not verified(source, made).passed


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "found none"), ([3, 37], r"found \[37\]"), ([-1], r"found \[-1\]"), ([1] * 33, "33")],
)
def test_prompts_that_the_model_cannot_take_are_refused(tokens, message) -> None:
    source = MemorySource(random_model())
    with pytest.raises(CheckpointError, match=message):
        verified(source, source, tokens=tokens)


def test_default_prompt_is_spread_and_fits() -> None:
    description = MemorySource(random_model()).description
    for size in (1, 2, 37, 50257):
        tokens = default_prompt(replace(description, vocab_size=size))
        assert len(tokens) == 24
        assert 0 <= min(tokens) <= max(tokens) < size
        assert len(set(tokens)) >= min(size, 18)
    short = replace(description.config, max_position_embeddings=5)
    assert len(default_prompt(replace(description, config=short))) == 5


@pytest.fixture(scope="module")
def peer_directory(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("peer") / "hf"
    random_llama().save_pretrained(place)
    return place


def test_transformers_runs_both_sides(peer_directory, tmp_path) -> None:
    source = hf.open_source(peer_directory)
    seen = []

    def check(plan, scratch):
        made = hf.open_source(scratch)
        seen.append(
            verify(plan, source, made, source_directory=peer_directory, target_directory=scratch)
        )

    convert(source, hf.make_target(), tmp_path / "made", dtype=torch.bfloat16, verify=check)
    assert seen[0].passed, seen[0].text()
    assert [one.name for one in seen[0].comparisons] == [
        "source, run by transformers",
        "target, run by transformers",
        "target, read back",
    ]


def test_a_model_too_large_for_memory_is_read_back_only(peer_directory, monkeypatch) -> None:
    monkeypatch.setattr(verification, "available_bytes", lambda: 1000.0)
    source = hf.open_source(peer_directory)
    found = verified(source, source, source_directory=peer_directory)
    assert found.passed
    assert [one.name for one in found.comparisons] == ["target, read back"]
    assert "not run by transformers: that takes about" in found.remarks[0]
