"""The files of a Hugging Face directory: kinds, shards, damage, what is missing or written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from convert_cases import LLAMA as SIZES
from convert_cases import MemorySource, random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megacore.checkpoint.convert import core, hf
from megacore.checkpoint.convert.engine import convert
from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions
from megacore.checkpoint.convert.registry import detect
from megacore.errors import CheckpointError, UsageError
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights

ROWS = 37
ROTARY = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "group_query_attention": True,
    "add_bias_linear": False,
}
LLAMA = SIZES | ROTARY | {"swiglu": True}
GEMMA = LLAMA | {
    "swiglu": False,
    "geglu": True,
    "openai_gelu": True,
    "apply_layernorm_1p": True,
    "scale_embeddings": True,
    "untie_embeddings_and_output_weights": False,
}


def written(path, *, model=None, options=None, **changes):
    """A Llama written to `path`; its tensors by name."""
    source = MemorySource(model or random_model(ROWS), vocab_size=ROWS, **changes)
    convert(source, hf.make_target(options), path)
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def rewrite(path, tensors):
    """Replaces the tensors of a directory."""
    for file in path.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, path / "model.safetensors")


def same(first, second):
    """Two sources have bitwise the same tensors."""
    assert first.names() == second.names()
    return all(torch.equal(first.read(name), second.read(name)) for name in first.names())


def test_one_file_and_many_are_the_same(tmp_path):
    whole = written(tmp_path / "one")
    parts = written(tmp_path / "many", options=TargetOptions(max_shard_bytes=4000))
    assert whole.keys() == parts.keys()
    assert same(hf.open_source(tmp_path / "one"), hf.open_source(tmp_path / "many"))
    assert detect(tmp_path / "many") == "hf"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    total = sum(t.numel() * t.element_size() for t in whole.values())
    assert index["metadata"]["total_size"] == total
    names = {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == names
    assert len(names) > 5
    for name in names:
        with safe_open(tmp_path / "many" / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            held = [key for key, there in index["weight_map"].items() if there == name]
            assert sorted(file.keys()) == sorted(held)
            sizes = [whole[key].numel() * 4 for key in held]
            # Over the limit only where one tensor is.
            assert sum(sizes) <= 4000 or len(sizes) == 1


def test_files_of_pytorch_are_read(tmp_path):
    tensors = written(tmp_path / "safe")
    for name in ("single", "indexed", "nested"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((tmp_path / "safe" / "config.json").read_bytes())
    torch.save(tensors, tmp_path / "single" / "pytorch_model.bin")
    torch.save({"state_dict": tensors}, tmp_path / "nested" / "pytorch_model.bin")
    halves = [dict(list(tensors.items())[k::2]) for k in range(2)]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(half, tmp_path / "indexed" / file)
        weight_map |= dict.fromkeys(half, file)
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "indexed" / "pytorch_model.bin.index.json").write_text(index)
    expected = hf.open_source(tmp_path / "safe")
    for name in ("single", "indexed", "nested"):
        assert same(hf.open_source(tmp_path / name), expected)


def test_files_of_the_model_without_its_output_layer(tmp_path):
    tied = {"untie_embeddings_and_output_weights": False}
    tensors = written(tmp_path / "a", model=random_model(ROWS, **tied), **tied)
    expected = hf.open_source(tmp_path / "a")
    names = expected.names()
    before = [expected.read(name).clone() for name in names]
    rewrite(tmp_path / "a", {k.removeprefix("model."): v for k, v in tensors.items()})
    source = hf.open_source(tmp_path / "a")
    assert source.origins("decoder.final_layernorm.weight") == ("norm.weight",)
    assert source.unmapped() == {}
    for name, tensor in zip(names, before, strict=True):
        assert torch.equal(source.read(name), tensor)


def test_what_is_missing_or_has_another_shape_is_listed_at_once(tmp_path):
    tensors = written(tmp_path / "a")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.zeros(25)
    tensors["lm_head.weight"] = torch.zeros(ROWS, 24, dtype=torch.int8)
    rewrite(tmp_path / "a", tensors)
    with pytest.raises(CheckpointError) as caught:
        hf.open_source(tmp_path / "a")
    for text in (
        "missing: model.layers.1.mlp.up_proj.weight [40, 24]",
        "model.norm.weight: expected shape [24], found [25]",
        "lm_head.weight: dtype int8: is it quantised?",
    ):
        assert text in str(caught.value)


def test_tensors_that_nobody_asked_for(tmp_path):
    tied = {"untie_embeddings_and_output_weights": False}
    tensors = written(tmp_path / "a", model=random_model(ROWS, **tied), **tied)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    rewrite(tmp_path / "a", tensors)
    unmapped = hf.open_source(tmp_path / "a").unmapped()
    assert set(unmapped) == set(tensors) - set(
        written(tmp_path / "b", model=random_model(ROWS, **tied), **tied)
    )
    assert all(unmapped.values())
    tensors["model.layers.0.self_attn.extra.weight"] = torch.zeros(4)
    rewrite(tmp_path / "a", tensors)
    source = hf.open_source(tmp_path / "a")
    assert source.unmapped()["model.layers.0.self_attn.extra.weight"] == ""
    with pytest.raises(CheckpointError, match=r"not known: model\.layers\.0\.self_attn\.extra"):
        convert(source, hf.make_target(), tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(tmp_path, dtype):
    model = random_model(ROWS, dtype=dtype)
    tensors = written(tmp_path / "a", model=model)
    assert {t.dtype for t in tensors.values()} == {dtype}
    source = hf.open_source(tmp_path / "a")
    assert source.description.dtype == dtype
    for name, parameter in model.named_parameters():
        assert torch.equal(source.read(name), parameter)


def test_several_dtypes_become_the_one_that_holds_all(tmp_path):
    tensors = written(tmp_path / "a", model=random_model(ROWS, dtype=torch.bfloat16))
    tensors["model.norm.weight"] = torch.full((24,), 1 / 3)
    rewrite(tmp_path / "a", tensors)
    source = hf.open_source(tmp_path / "a")
    assert source.description.dtype == torch.float32
    assert "several dtypes" in " ".join(source.description.remarks)
    assert torch.equal(source.read("decoder.final_layernorm.weight"), torch.full((24,), 1 / 3))
    embedding = source.read("embedding.word_embeddings.weight")
    assert torch.equal(embedding, tensors["model.embed_tokens.weight"].float())


def test_padding_is_cut_and_the_true_size_recorded(tmp_path):
    model = random_model(64)
    source = MemorySource(model, vocab_size=ROWS)
    convert(source, hf.make_target(), tmp_path / "a")
    found = hf.open_source(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["vocab_size"] == ROWS
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert torch.equal(found.read(name), source.tensors[name][:ROWS])
    assert found.description.vocab_size == found.description.padded_vocab_size == ROWS
    known = hf.open_source(tmp_path / "a", SourceOptions(vocab_size=30))
    assert (known.description.vocab_size, known.description.padded_vocab_size) == (30, ROWS)


def test_tokens_tokenizer_and_generation_travel(tmp_path):
    written(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config |= {"bos_token_id": 1, "eos_token_id": [2, 3], "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "generation_config.json").write_text('{"temperature": 0.6}')
    (tmp_path / "a" / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    convert(hf.open_source(tmp_path / "a"), hf.make_target(), tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.6}


def test_special_tokens_are_those_of_the_tokenizer_or_none(tmp_path):
    source = MemorySource(random_model(ROWS), vocab_size=ROWS)
    convert(source, hf.make_target(), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert [config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [None] * 3
    added = [{"id": 35, "content": "<s>"}, {"id": 36, "content": "</s>"}]
    files = {
        "tokenizer.json": json.dumps({"added_tokens": added}).encode(),
        "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
    }
    source.description = replace(source.description, tokenizer_files=files)
    convert(source, hf.make_target(), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert [config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [35, 36, None]


@pytest.mark.parametrize("family", ["gemma", "qwen2", "gpt2"])
def test_a_core_checkpoint_in_between_loses_nothing(tmp_path, family):
    """Padding, two ranks, and back: the same tensors, configuration and generation."""
    settings = {
        "gemma": GEMMA,
        "qwen2": LLAMA | {"add_qkv_bias": True},
        "gpt2": {name: LLAMA[name] for name in ("num_layers", "hidden_size", "ffn_hidden_size")}
        | {"num_attention_heads": 4, "max_position_embeddings": 32},
    }[family]
    source = MemorySource(random_model(ROWS), vocab_size=ROWS)
    config = ModelConfig(**settings).resolved()
    model = GPTModel(config, padded_vocab_size=ROWS)
    init_weights(model, config, seed=3)
    source.tensors = {name: p.detach() for name, p in model.named_parameters()}
    source.description = replace(source.description, config=config)
    convert(source, hf.make_target(), tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": 2}')
    options = TargetOptions(tensor=2, ckpt_format="torch", make_vocab_size_divisible_by=32)
    convert(hf.open_source(tmp_path / "hf"), core.make_target(options), tmp_path / "core")
    between = core.open_source(tmp_path / "core", SourceOptions())
    assert between.description.padded_vocab_size == 64
    convert(between, hf.make_target(), tmp_path / "back")
    assert same(hf.open_source(tmp_path / "hf"), hf.open_source(tmp_path / "back"))
    for name in ("config.json", "generation_config.json"):
        first, second = (
            json.loads((tmp_path / folder / name).read_text()) for folder in ("hf", "back")
        )
        assert first == second
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == family


def test_the_family_can_be_chosen(tmp_path):
    written(tmp_path / "a", options=TargetOptions(family="mistral"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["model_type"], config["sliding_window"]) == ("mistral", None)
    with pytest.raises(CheckpointError, match=r"a qwen3 cannot be this model:\n *qk_layernorm"):
        written(tmp_path / "b", options=TargetOptions(family="qwen3"))
    with pytest.raises(UsageError, match="no Hugging Face family 'gpt5'"):
        hf.make_target(TargetOptions(family="gpt5"))


BROKEN = [
    ("model.safetensors", b"", "cannot be read"),
    ("model.safetensors", b"\xff" * 100, "cannot be read"),
    ("config.json", b"{", "not valid JSON"),
    ("config.json", b"[]", "not a JSON object"),
    ("config.json", b'{"model_type": "llama"}', "num_hidden_layers is missing"),
]


@pytest.mark.parametrize(("name", "content", "text"), BROKEN)
def test_damaged_files_are_named(tmp_path, name, content, text):
    written(tmp_path / "a")
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        hf.open_source(tmp_path / "a")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "text"),
    [
        ({"a": "../secret.safetensors"}, "not the name of a file of weights"),
        ({"a": "/etc/passwd"}, "not the name of a file of weights"),
        ({"a": "model.py"}, "not the name of a file of weights"),
        ({"a": "model-00009-of-00009.safetensors"}, "files of the index are missing"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_names_files_beside_it(tmp_path, weight_map, text):
    written(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=text):
        hf.open_source(tmp_path / "a")


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path):
    written(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        hf.open_source(tmp_path / "a")
