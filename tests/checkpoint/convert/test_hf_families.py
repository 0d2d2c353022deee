"""Small random models of every family: logits as in transformers, tensors back bitwise."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers
from hf_cases import CASES, VOCAB, hf_model, tokens
from safetensors.torch import load_file

from megacore.checkpoint.convert import hf
from megacore.checkpoint.convert.engine import convert
from megacore.checkpoint.convert.hf.families import FAMILIES
from megacore.checkpoint.convert.model_stream import TargetOptions
from megacore.layers.kv_cache import KVCache
from megacore.models.gpt import GPTModel
from megacore.testing.tolerance import expect_close, rms_error

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


# Values of the configuration that are written out where the default means the same: 4 * n_embd, a
# window that no layer has, factors of attention, the length that a missing scaling starts from.
SAY_NOTHING = {
    "gpt2": {"n_inner"},
    "llama-yarn": {"rope_parameters"},
    "qwen2": {"max_window_layers"},
    "qwen3": {"max_window_layers"},
    "qwen3-yarn": {"max_window_layers", "rope_parameters"},
    "phi3": {"original_max_position_embeddings"},
    "phi3-window-partial": {"original_max_position_embeddings"},
    "phi3-longrope-short": {"rope_parameters"},
    "phi3-longrope-long": {"rope_parameters"},
}

# They have cases of their own: test_hf_encoders.py.
ENCODERS = {"bert", "megatron-bert", "t5"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Directory of a case, written by transformers in several files."""

    @cache
    def make(name):
        path = tmp_path_factory.mktemp(name)
        hf_model(name).save_pretrained(path, max_shard_size="60KB")
        assert len(list(path.glob("model-*.safetensors"))) > 1
        return path

    return make


def loaded(source, dtype=torch.float32):
    """The model of a source."""
    model = GPTModel(
        source.description.config,
        padded_vocab_size=source.description.padded_vocab_size,
        dtype=dtype,
    )
    model.load_state_dict({name: source.read(name) for name in source.names()}, strict=True)
    return model.eval()


def test_every_family_has_a_case():
    families = {hf_model(name).config.model_type for name in CASES}
    assert families == set(FAMILIES) - ENCODERS


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, directory):
    """Error against float64 at most twice that of transformers, root mean squares of the logits."""
    source, model = hf.open_source(directory(name)), hf_model(name)
    assert source.unmapped() == {}
    assert source.description.vocab_size == VOCAB
    exact_model, ours = copy.deepcopy(model).double(), loaded(source)
    with torch.no_grad():
        low = model(tokens(), use_cache=False).logits
        exact = exact_model(tokens(), use_cache=False).logits
        found = ours(tokens())
    assert rms_error(found, exact) <= 2 * rms_error(low, exact)
    # Not only rounding: the largest difference is that of rounding too.
    expect_close(found, exact, bound=4 * (low - exact).abs().max().item(), name=name)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama-3.1", "qwen2-windows", "gemma2", "gemma3", "phi3", "gpt-neox"]
)
def test_gradients_are_those_of_transformers(name, directory):
    source, model = hf.open_source(directory(name)), hf_model(name)
    ours = loaded(source)
    config = source.description.config
    rules = FAMILIES[model.config.model_type].rules(config)
    batch, labels = tokens(4), tokens(4, seed=4)

    def gradients(other):
        logits = other(batch, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        grads = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
        # GPT-NeoX calls its output layer otherwise in files than in memory.
        grads["embed_out.weight"] = grads.get("lm_head.weight")
        return {n: rule.join([grads[part] for part in rule.theirs]) for n, rule in rules.items()}

    low, exact = gradients(model), gradients(copy.deepcopy(model).double())
    ours(batch, labels=labels).mean().backward()
    for key, parameter in ours.named_parameters():
        # A bias of the keys has a gradient of zero: errors are compared on the scale of its rows.
        limit = 2 * rms_error(low[key], exact[key])
        assert rms_error(parameter.grad, exact[key]) <= limit, key


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_bitwise_the_same(name, directory, tmp_path):
    source = hf.open_source(directory(name))
    target = hf.make_target(TargetOptions(max_shard_bytes=50_000))
    convert(source, target, tmp_path / "out")
    before, after = stored(directory(name)), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    # transformers takes it for the same model, up to what says nothing about logits.
    config, again = (
        transformers.AutoConfig.from_pretrained(path).to_dict()
        for path in (directory(name), tmp_path / "out")
    )
    different = {key: (v, again.get(key)) for key, v in config.items() if again.get(key) != v}
    assert set(different) <= SAY_NOTHING.get(name, set()) | {"_name_or_path"}, different
    other = type(hf_model(name)).from_pretrained(tmp_path / "out", attn_implementation="eager")
    with torch.no_grad():
        expected = hf_model(name)(tokens(), use_cache=False).logits
        assert torch.equal(other(tokens(), use_cache=False).logits, expected)


def stored(path):
    """All tensors of a directory."""
    return {
        key: tensor
        for file in sorted(path.glob("*.safetensors"))
        for key, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_generation_with_a_cache_equals_a_full_pass(name, directory):
    model = loaded(hf.open_source(directory(name)), torch.float64)
    batch = tokens(3)
    length = batch.shape[1]
    with torch.inference_mode():
        full = model(batch)
        cache = KVCache(model.spec, batch_size=3, capacity=length, dtype=torch.float64)
        start = 0
        for count in (5, 1, 1, 13, 1, length - 21):
            logits = model(batch[:, start : start + count], cache=cache)
            cache.advance([count] * 3)
            expect_close(logits, full[:, start : start + count], bound=1e-9, name=f"{start}")
            start += count
        # Rows of different lengths, padded on the right.
        lengths = [4, 19, 11]
        cache = KVCache(model.spec, batch_size=3, capacity=length, dtype=torch.float64)
        model(batch[:, :19], cache=cache)
        cache.advance(lengths)
        rows = torch.arange(3)
        logits = model(batch[rows, torch.tensor(lengths)][:, None], cache=cache)[:, 0]
        expect_close(logits, full[rows, torch.tensor(lengths)], bound=1e-9, name="rows")
