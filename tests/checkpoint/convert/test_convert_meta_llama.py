"""Meta's Llama files: the same logits as transformers, over any number of model-parallel files."""

from __future__ import annotations

import base64
import json

import pytest
import torch
from llama_peers import LLAMA3, peer_logits, random_llama, renamed
from safetensors.torch import save_file
from tokenizers import Tokenizer

from megacore.checkpoint.convert import meta_llama
from megacore.checkpoint.convert.engine import expected_tensors
from megacore.checkpoint.convert.meta_tokenizer import meta_tokenizer
from megacore.checkpoint.convert.model_stream import SourceOptions
from megacore.checkpoint.convert.registry import detect
from megacore.checkpoint.convert.streamed import streamed_logits
from megacore.checkpoint.convert.tokenizer_files import of_model
from megacore.errors import CheckpointError, MegacoreError
from megacore.testing.tolerance import expect_close

TOKENS = torch.tensor([[5, 0, 66, 31, 2, 2, 17, 40, 8]])
# 2/3 of 4 * 64 is 170; the multiple of 32 above it is 192.
WIDTH = {"intermediate_size": 192, "num_key_value_heads": 4, "vocab_size": 68}


def params_of(config, **changes):
    values = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "multiple_of": 32,
    }
    return {**values, **changes}


def written(directory, model, *, shards=1, embedding_dim=1, params=None, dtype=torch.float32):
    """A release, cut as the parallel layers of Meta's reference code cut it."""
    directory.mkdir(exist_ok=True)
    (directory / "params.json").write_text(json.dumps(params or params_of(model.config)))
    files = [{} for _ in range(shards)]
    for name, tensor in renamed(model, 1).items():
        dim = 1 if ".wo." in name or ".w2." in name else 0
        if "tok_embeddings" in name:
            dim = embedding_dim
        parts = [tensor] * shards if tensor.ndim == 1 else tensor.chunk(shards, dim=dim)
        for file, part in zip(files, parts, strict=True):
            file[name] = part.to(dtype).clone()
    for number, file in enumerate(files):
        file["rope.freqs"] = torch.ones(4)
        torch.save(file, directory / f"consolidated.{number:02d}.pth")
    return directory


def opened(directory):
    return meta_llama.open_source(directory, SourceOptions())


@pytest.mark.parametrize(
    ("shards", "embedding_dim"), [(1, 1), (2, 1), (4, 0)], ids=["one", "width", "vocabulary"]
)
def test_logits_are_those_of_transformers(tmp_path, shards, embedding_dim) -> None:
    model = random_llama(**WIDTH)
    source = opened(written(tmp_path / "m", model, shards=shards, embedding_dim=embedding_dim))
    infos = {name: source.info(name).shape for name in source.names()}
    assert infos == expected_tensors(source.description)
    reference = peer_logits(model, TOKENS)
    found = streamed_logits(source.description, source.read, TOKENS, dtype=torch.float64)
    expect_close(found, reference, bound=2e-6 * reference.abs().max().item())
    assert source.unmapped() == {"rope.freqs": "rotary frequencies, which are computed"}
    assert detect(tmp_path / "m") == "meta"
    assert source.description.config.max_position_embeddings == 4096
    assert "4096 positions are taken" in source.description.remarks[-1]


@pytest.mark.parametrize(("shards", "embedding_dim"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("stored", ["twice", "once"])
def test_one_weight_for_embedding_and_output(tmp_path, shards, embedding_dim, stored) -> None:
    model = random_llama(**WIDTH, tie_word_embeddings=True)
    directory = written(tmp_path / "m", model, shards=shards, embedding_dim=embedding_dim)
    if stored == "twice":
        weight = model.get_input_embeddings().weight.detach()
        for number, part in enumerate(weight.chunk(shards)):
            path = directory / f"consolidated.{number:02d}.pth"
            torch.save({**torch.load(path), "output.weight": part.clone()}, path)
    source = opened(directory)
    assert not source.description.config.untie_embeddings_and_output_weights
    infos = {name: source.info(name).shape for name in source.names()}
    assert infos == expected_tensors(source.description)
    reference = peer_logits(model, TOKENS)
    found = streamed_logits(source.description, source.read, TOKENS, dtype=torch.float64)
    expect_close(found, reference, bound=2e-6 * reference.abs().max().item())
    assert ("output.weight" in source.unmapped()) == (stored == "twice")


def test_scaled_rotation_and_its_unsaid_factor(tmp_path) -> None:
    parameters = {**LLAMA3, "rope_theta": 500000.0}
    model = random_llama(**WIDTH, rope_parameters=parameters, head_dim=32)
    params = params_of(model.config, rope_theta=500000.0, use_scaled_rope=True, head_dim=32)
    source = opened(written(tmp_path / "m", model, params=params))
    reference = peer_logits(model, TOKENS)
    found = streamed_logits(source.description, source.read, TOKENS, dtype=torch.float64)
    expect_close(found, reference, bound=2e-6 * reference.abs().max().item())
    assert any("8 is taken" in remark for remark in source.description.remarks)
    assert source.description.config.max_position_embeddings == 131072
    params = {**params, "rope_scaling_factor": 32, "max_seq_len": 77}
    source = opened(written(tmp_path / "m", model, params=params))
    assert source.description.config.rope_scaling_factor == 32.0
    assert source.description.config.max_position_embeddings == 77


def test_mistral_in_one_safetensors_file(tmp_path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    # As a Llama it has no window; 4 of the 9 tokens are enough to see one.
    llama = random_llama(**WIDTH, head_dim=12)
    values = {**llama.config.to_dict(), "sliding_window": 4, "attn_implementation": "eager"}
    values = {k: v for k, v in values.items() if k not in ("model_type", "architectures")}
    model = MistralForCausalLM(MistralConfig(**values)).eval()
    model.load_state_dict(llama.state_dict())
    place = tmp_path / "m"
    place.mkdir()
    params = params_of(model.config, head_dim=12, hidden_dim=192, sliding_window=4)
    del params["multiple_of"]
    (place / "params.json").write_text(json.dumps(params))
    save_file(
        {k: v.contiguous() for k, v in renamed(model, 1).items()},
        place / "consolidated.safetensors",
    )
    source = opened(place)
    reference = peer_logits(model, TOKENS)
    assert not torch.allclose(reference, peer_logits(llama, TOKENS))
    found = streamed_logits(source.description, source.read, TOKENS, dtype=torch.float64)
    expect_close(found, reference, bound=2e-6 * reference.abs().max().item())
    assert source.description.config.max_position_embeddings == 32768
    (place / "consolidated.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match=r"consolidated\.safetensors: cannot be read"):
        opened(place)


@pytest.mark.parametrize(
    ("params", "width"),
    [
        ({"multiple_of": 256}, 11008),
        ({"multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),
        ({"multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 16384),
        ({"hidden_dim": 14336}, 14336),
    ],
    ids=["llama2-7B", "llama3-8B", "coarse", "mistral-7B"],
)
def test_inner_width_of_the_releases(params, width) -> None:
    assert meta_llama._inner_width(params, 4096) == width


def test_half_precision_is_kept(tmp_path) -> None:
    model = random_llama(**WIDTH)
    source = opened(written(tmp_path / "m", model, shards=2, dtype=torch.bfloat16))
    assert source.description.dtype == torch.bfloat16
    expected = model.lm_head.weight.detach().bfloat16()
    assert torch.equal(source.read("output_layer.weight"), expected)


def test_missing_damaged_and_strange_files_are_named(tmp_path) -> None:
    model = random_llama(**WIDTH)
    place = written(tmp_path / "m", model, shards=4)
    (place / "consolidated.02.pth").unlink()
    with pytest.raises(CheckpointError, match=r"without a gap, found consolidated\.00\.pth"):
        opened(place)
    place = written(tmp_path / "m", model, shards=2)
    for file in place.glob("consolidated.0[23].pth"):
        file.unlink()
    content = torch.load(place / "consolidated.01.pth")
    whole = dict(content)
    del content["norm.weight"]
    torch.save(content, place / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"different tensors: norm\.weight"):
        opened(place)
    torch.save({**whole, "norm.weight": torch.ones(3)}, place / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \[3\] in file 1"):
        opened(place)
    data = (place / "consolidated.00.pth").read_bytes()
    (place / "consolidated.00.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(MegacoreError, match=r"consolidated\.00\.pth"):
        opened(place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": {"num_experts": 8}}, "moe"),
        ({"quantization_args": {}}, "quantization_args"),
        ({"dim": 0}, "dim must be a positive whole number"),
        ({"rope_theta": 10000.5}, "not an integer"),
    ],
)
def test_values_that_are_not_known_are_refused(tmp_path, changes, message) -> None:
    model = random_llama(**WIDTH)
    place = written(tmp_path / "m", model, params=params_of(model.config, **changes))
    with pytest.raises(CheckpointError, match=message):
        opened(place)


TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "In 2024, 1234567 foxes   said: \"it's fine\"\n\n\tdidn't they?",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 and  two spaces ",
    "aaaaaaa ababab aabbaabb",
]


def trained_ranks(path, count):
    """A ranks file as tiktoken reads it, learned from the texts, and tiktoken's own encoding."""
    tiktoken = pytest.importorskip("tiktoken")
    educational = pytest.importorskip("tiktoken._educational")
    cut = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    ranks = educational.bpe_train(" ".join(TEXTS * 3), count, cut, visualise=None)
    lines = [base64.b64encode(t) + b" " + str(r).encode() for t, r in ranks.items()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return tiktoken.Encoding("peer", pat_str=cut, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("above", [False, True])
def test_ranks_become_a_tokenizer_with_the_same_ids(tmp_path, above) -> None:
    count = 330
    place = written(tmp_path / "m", random_llama(**{**WIDTH, "vocab_size": count + 256}))
    peer = trained_ranks((tmp_path if above else place) / "tokenizer.model", count)
    source = opened(place)
    files = source.description.tokenizer_files
    assert source.description.tokenizer["tokenizer_type"] == "HuggingFaceTokenizer"
    ours = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in TEXTS:
        assert ours.encode(text).ids == [count, *peer.encode(text)]
        assert ours.decode(peer.encode(text)) == text
    assert ours.token_to_id("<|eot_id|>") == count + 9
    assert ours.token_to_id("<|reserved_special_token_250|>") == count + 255
    later = meta_tokenizer(place, count + 256, later_names=True)[0].files["tokenizer.json"]
    assert Tokenizer.from_str(later.decode()).token_to_id("<|eot_id|>") == count + 9
    assert Tokenizer.from_str(later.decode()).token_to_id("<|python_tag|>") == count + 10
    assert Tokenizer.from_str(later.decode()).get_vocab_size() == count + 256
    # The reference's command line names the file itself.
    assert of_model((tmp_path if above else place) / "tokenizer.model").files == files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"YQ== 0\nYg==\n", "line 2"),
        (b"YQ== 0\nYg== 2\n", "not 0, 1, 2"),
        (b"YQ== 0\nYg== 1\n", "2 tokens and 256 special ones are not the 68 rows"),
        (b"\x00\x01", "not a tokenizer that can be recognised"),
    ],
)
def test_a_strange_tokenizer_stays_behind_and_is_said(tmp_path, content, reason) -> None:
    place = written(tmp_path / "m", random_llama(**WIDTH))
    (place / "tokenizer.model").write_bytes(content)
    description = opened(place).description
    assert description.tokenizer_files == {}
    assert reason in description.remarks[0]
    assert "give --tokenizer-model" in description.remarks[0]
