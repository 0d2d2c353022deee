"""GGUF models: the same logits as transformers, exact tensors, and nothing read out of bounds."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from gguf_writer import (
    ARRAY,
    BF16,
    BOOL,
    F16,
    F32,
    FLOAT32,
    INT32,
    Q8_0,
    STRING,
    UINT32,
    encode,
    gguf,
)
from llama_peers import LLAMA3, peer_logits, random_llama, renamed

from megacore.checkpoint.convert import gguf as gguf_format
from megacore.checkpoint.convert.gguf_file import GgufFile
from megacore.checkpoint.convert.model_stream import SourceOptions
from megacore.checkpoint.convert.registry import detect
from megacore.checkpoint.convert.streamed import streamed_logits
from megacore.errors import CheckpointError
from megacore.testing.tolerance import expect_close

TOKENS = torch.tensor([[5, 0, 66, 31, 2, 2, 17, 40, 8]])


def metadata_of(config, *more):
    return [
        ("general.architecture", STRING, "llama"),
        ("llama.block_count", UINT32, config.num_hidden_layers),
        ("llama.context_length", UINT32, config.max_position_embeddings),
        ("llama.embedding_length", UINT32, config.hidden_size),
        ("llama.feed_forward_length", UINT32, config.intermediate_size),
        ("llama.attention.head_count", UINT32, config.num_attention_heads),
        ("llama.attention.head_count_kv", UINT32, config.num_key_value_heads),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, config.rms_norm_eps),
        ("llama.attention.key_length", UINT32, config.head_dim),
        ("llama.rope.dimension_count", UINT32, config.head_dim),
        ("llama.rope.freq_base", FLOAT32, config.rope_parameters["rope_theta"]),
        *more,
    ]


def entries(weights, kind_of=lambda name, array: F32):
    result = []
    for name, tensor in weights.items():
        array = tensor.float().numpy()
        kind = kind_of(name, array)
        result.append((name, array.shape, kind, encode(array, kind)))
    return result


def written(path, model, *more, tensors=None, **options):
    tensors = entries(renamed(model, 0)) if tensors is None else tensors
    path.write_bytes(gguf(metadata_of(model.config, *more), tensors, **options))
    return path


def opened(path):
    return gguf_format.open_source(path, SourceOptions())


def logits_of(source):
    return streamed_logits(source.description, source.read, TOKENS, dtype=torch.float64)


def scaled(model):
    return {"rope_freqs.weight": 1 / model.model.rotary_emb.inv_freq * plain(model.config)}


def plain(config):
    lanes = torch.arange(0, config.head_dim, 2) / config.head_dim
    return 1 / config.rope_parameters["rope_theta"] ** lanes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 12, "num_key_value_heads": 8},
        {"attention_bias": True, "bias_of_output": False},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "head_dim": 128},
    ],
    ids=["plain", "tied", "wide-heads", "bias", "theta", "linear", "llama3"],
)
def test_logits_are_those_of_transformers(tmp_path, changes) -> None:
    changes = dict(changes)
    without_output_bias = changes.pop("bias_of_output", True) is False
    model = random_llama(**changes)
    weights, more = renamed(model, 0), []
    if without_output_bias:
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias = None
        weights = renamed(model, 0)
    kind = model.config.rope_parameters["rope_type"]
    if kind == "llama3":
        weights |= scaled(model)
    if kind == "linear":
        more = [("llama.rope.scaling.type", STRING, "linear")]
        more += [("llama.rope.scaling.factor", FLOAT32, 4.0)]
    source = opened(written(tmp_path / "m.gguf", model, *more, tensors=entries(weights)))
    reference = peer_logits(model, TOKENS)
    # transformers keeps rotary angles in float32 whatever the dtype.
    expect_close(logits_of(source), reference, bound=2e-6 * reference.abs().max().item())
    assert source.description.padded_vocab_size == 67
    assert all(source.unmapped().values())
    assert detect(tmp_path) == detect(tmp_path / "m.gguf") == "gguf"


@pytest.mark.parametrize(("version", "alignment"), [(2, 32), (3, 8), (3, 4096)])
def test_versions_and_alignments(tmp_path, version, alignment) -> None:
    model = random_llama()
    path = written(tmp_path / "m.gguf", model, version=version, alignment=alignment)
    assert torch.equal(opened(path).read("output_layer.weight"), model.lm_head.weight.detach())


@pytest.mark.parametrize(("kind", "dtype"), [(F16, torch.float16), (BF16, torch.bfloat16)])
def test_half_precision_is_kept_when_the_vectors_have_it_too(tmp_path, kind, dtype) -> None:
    model = random_llama().to(dtype)
    half = entries(renamed(model, 0), lambda name, array: F32 if array.ndim == 1 else kind)
    source = opened(written(tmp_path / "a.gguf", model, tensors=half))
    assert source.description.dtype == dtype
    assert source.info("decoder.final_layernorm.weight").dtype == dtype
    assert torch.equal(source.read("decoder.final_layernorm.weight"), model.model.norm.weight)
    model.float().model.norm.weight.data[3] = 1.0000001
    finer = entries(renamed(model, 0), lambda name, array: F32 if array.ndim == 1 else kind)
    source = opened(written(tmp_path / "b.gguf", model, tensors=finer))
    assert source.description.dtype == torch.float32
    assert source.read("decoder.final_layernorm.weight")[3].item() == np.float32(1.0000001)


def test_quantised_matrices_become_float32(tmp_path) -> None:
    model = random_llama()
    tensors, expected = [], None
    for name, shape, kind, content in entries(renamed(model, 0)):
        if name == "blk.1.ffn_down.weight":
            codes = np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)
            scale = np.float16(0.0123)
            blocks = codes.reshape(-1, 32)
            content = b"".join(scale.tobytes() + block.tobytes() for block in blocks)
            kind, expected = Q8_0, np.float32(scale) * codes.astype(np.float32)
        tensors.append((name, shape, kind, content))
    source = opened(written(tmp_path / "m.gguf", model, tensors=tensors))
    assert source.description.source_format == "GGUF 3 llama, F32, Q8_0"
    found = source.read("decoder.layers.1.mlp.linear_fc2.weight")
    assert torch.equal(found, torch.from_numpy(expected))


def test_a_scale_that_is_not_finite_is_damage(tmp_path) -> None:
    model = random_llama()
    blocks = (struct.pack("<e", float("inf")) + b"\1" * 32) * (64 * 96 // 32)
    tensors = [
        (name, shape, Q8_0, blocks) if name == "blk.0.ffn_up.weight" else (name, shape, kind, data)
        for name, shape, kind, data in entries(renamed(model, 0))
    ]
    source = opened(written(tmp_path / "m.gguf", model, tensors=tensors))
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight is damaged.*not finite"):
        source.read("decoder.layers.0.mlp.linear_fc1.weight")


def test_parts_of_a_split_model(tmp_path) -> None:
    model = random_llama()
    tensors = entries(renamed(model, 0))
    first = gguf([*metadata_of(model.config), ("split.count", UINT32, 2)], tensors[:7])
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first)
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf"):
        opened(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(gguf([], tensors[7:]))
    for path in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        source = opened(path)
        assert torch.equal(source.read("output_layer.weight"), model.lm_head.weight.detach())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([("llama.attention.scale", FLOAT32, 0.1)], "llama.attention.scale"),
        ([("llama.expert_count", UINT32, 8)], "8 experts"),
        ([("llama.rope.scaling.type", STRING, "longrope")], "longrope"),
        ([("llama.attention.value_length", UINT32, 4)], "different width"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, more, message) -> None:
    path = written(tmp_path / "m.gguf", random_llama(), *more)
    with pytest.raises(CheckpointError, match=message):
        opened(path)


def test_other_architectures_and_factors_are_refused(tmp_path) -> None:
    model = random_llama()
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([("general.architecture", STRING, "mamba")], []))
    with pytest.raises(CheckpointError, match="architecture 'mamba'"):
        opened(path)
    strange = entries({**renamed(model, 0), "rope_freqs.weight": torch.tensor([1.0, 2, 3, 9])})
    with pytest.raises(CheckpointError, match=r"not the scaling of Llama 3\.1"):
        opened(written(path, model, tensors=strange))
    extra = [*entries(renamed(model, 0)), ("blk.0.attn_sinks.weight", (8,), F32, bytes(32))]
    assert opened(written(path, model, tensors=extra)).unmapped() == {"blk.0.attn_sinks.weight": ""}


def test_a_file_cut_anywhere_is_refused(tmp_path) -> None:
    model = random_llama(num_hidden_layers=1)
    words = ("tokenizer.ggml.tokens", (ARRAY, STRING), ["<unk>", "a", "b"])
    scores = ("tokenizer.ggml.scores", (ARRAY, FLOAT32), [0.0, -1.0, -2.0])
    whole = written(tmp_path / "m.gguf", model, words, scores).read_bytes()
    header = whole.index(b"\0" * 8, whole.index(b"output_norm.weight"))
    path = tmp_path / "cut.gguf"
    for length in [*range(0, header, 3), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            GgufFile(path)


@pytest.mark.parametrize("position", [8, 16])
@pytest.mark.parametrize("number", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_counts_larger_than_the_file_are_refused_at_once(tmp_path, position, number) -> None:
    content = bytearray(gguf([("a", (ARRAY, INT32), [1, 2])], []))
    content[position : position + 8] = struct.pack("<Q", number)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError):
        GgufFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [STRING, INT32, BOOL])
def test_arrays_longer_than_the_file_are_refused(tmp_path, kind) -> None:
    content = gguf([("key", (ARRAY, kind), [])], [])
    place = content.index(b"key") + 3 + 4 + 4
    huge = content[:place] + struct.pack("<Q", 1 << 61) + content[place + 8 :]
    (tmp_path / "m.gguf").write_bytes(huge)
    with pytest.raises(CheckpointError, match="more than the file"):
        GgufFile(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (("t", (2, 5), Q8_0, b""), "multiples of 32"),
        (("t", (2, 5), 23, b""), "type 23"),
        (("t", (1, 1, 1, 1, 1), F32, b"abcd"), "5 dimensions"),
        (("t", (1 << 40, 1 << 40), F32, b"abcd"), "do not lie inside"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path, tensor, message) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf([], [tensor]))
    with pytest.raises(CheckpointError, match=message):
        GgufFile(tmp_path / "m.gguf")


def test_files_that_contradict_themselves_are_refused(tmp_path) -> None:
    path = tmp_path / "m.gguf"
    for content, message in [
        (gguf([("a", INT32, 1), ("a", INT32, 2)], []), "key a is there twice"),
        (gguf([], [("t", (1,), F32, b"1234")] * 2), "tensor t is there twice"),
        (gguf([], [], alignment=12), "multiple of 8"),
        (b"GGUF\0\0\0\3" + bytes(16), "big-endian"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1"),
        (gguf([("a", STRING, "x")], []).replace(b"x", b"\xff"), "not UTF-8"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            GgufFile(path)


def test_random_damage_of_the_header_never_reads_out_of_bounds(tmp_path) -> None:
    model = random_llama(num_hidden_layers=1)
    words = ("tokenizer.ggml.tokens", (ARRAY, STRING), ["<unk>", "a", "b"])
    whole = written(tmp_path / "m.gguf", model, words).read_bytes()
    header = whole.index(b"output_norm.weight")
    generator = np.random.default_rng(0)
    path, refused = tmp_path / "d.gguf", 0
    for _ in range(400):
        content = bytearray(whole)
        content[generator.integers(4, header)] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(content)
        try:
            file = GgufFile(path)
            for name in file.tensors:
                file.read(name)
        except CheckpointError:
            refused += 1
    assert refused > 200
