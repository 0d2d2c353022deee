"""Initial weights: distributions, and what they may depend on."""

import math

import pytest
import torch
from small_gpt import SIZES

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights


def _weights(*, seed=1, rows=128, dtype=torch.float32, num_threads=None, **changes):
    config = ModelConfig(**SIZES | changes)
    model = GPTModel(config, padded_vocab_size=rows, dtype=dtype)
    init_weights(model, config, seed=seed, num_threads=num_threads)
    return dict(model.named_parameters())


def _kind(name):
    if "norm" in name:
        return "norm bias" if name.endswith("bias") else "norm"
    return "bias" if name.endswith("bias") else "matrix"


@pytest.mark.parametrize("one_plus", [False, True])
def test_norms_and_biases(one_plus):
    weights = _weights(apply_layernorm_1p=one_plus, qk_layernorm=True)
    for name, weight in weights.items():
        wanted = {"norm": 0.0 if one_plus else 1.0, "norm bias": 0.0, "bias": 0.0}.get(_kind(name))
        if wanted is not None:
            assert torch.equal(weight, torch.full_like(weight, wanted)), name
    assert {_kind(name) for name in weights} == {"norm", "norm bias", "bias", "matrix"}


def test_normal_with_scaled_outputs():
    for name, weight in _weights(hidden_size=240, init_method_std=0.02).items():
        if _kind(name) != "matrix":
            continue
        scaled = "linear_proj" in name or "linear_fc2" in name
        std = 0.02 / math.sqrt(2 * 3) if scaled else 0.02
        count = weight.numel()
        # Five standard deviations of a sample's mean and standard deviation.
        assert abs(weight.mean().item()) <= 5 * std / math.sqrt(count), name
        assert abs(weight.std().item() / std - 1) <= 5 / math.sqrt(2 * count), name


def test_xavier_uniform():
    for name, weight in _weights(init_method_xavier_uniform=True).items():
        if _kind(name) == "matrix":
            bound = math.sqrt(6 / sum(weight.shape))
            assert weight.abs().max() <= bound, name
            assert weight.abs().max() >= 0.99 * bound, name
            spread = bound / math.sqrt(3)
            assert abs(weight.std().item() / spread - 1) <= 5 / math.sqrt(weight.numel()), name


def test_no_initialization_leaves_zeros():
    assert all((w == 0).all() for w in _weights(perform_initialization=False).values())


def test_depends_on_seed_and_name_only():
    base = _weights()
    for same in (_weights(num_threads=1), _weights(num_threads=5)):
        assert all(torch.equal(base[name], same[name]) for name in base)
    other = _weights(seed=2)
    matrices = [name for name in base if _kind(name) == "matrix"]
    assert not any(torch.equal(base[name], other[name]) for name in matrices)
    # Deeper stack, rotary positions: what both have is equal, but for the depth scaling.
    deeper = _weights(num_layers=4, position_embedding_type="rope")
    shared = [n for n in matrices if n in deeper and "proj" not in n and "fc2" not in n]
    assert len(shared) == 7
    assert all(torch.equal(base[name], deeper[name]) for name in shared)
    # No two matrices share their stream.
    assert len({base[name].flatten()[0].item() for name in matrices}) == len(matrices)


def test_vocabulary_rows_do_not_depend_on_padding():
    name = "embedding.word_embeddings.weight"
    assert torch.equal(_weights(rows=101)[name], _weights(rows=384)[name][:101])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_rounding_of_float32(dtype):
    low, full = _weights(dtype=dtype), _weights()
    assert all(torch.equal(low[name], full[name].to(dtype)) for name in full)


def test_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    _weights()
    assert torch.equal(before, torch.get_rng_state())
