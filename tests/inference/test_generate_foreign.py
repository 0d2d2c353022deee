"""Generation from models of other programs, converted or as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from megacore import cli
from megacore.inference.loading import load_model

PROMPT = "a small text"


def _run(capsys, *words):
    code = cli.run(cli.dispatch, [str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A Hugging Face directory, and the continuation that transformers gives greedily."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("peer") / "hf"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(place)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["</s>"],
        show_progress=False,
    )
    corpus = ["a small text for a small tokenizer of many words"] * 9
    tokenizer.train_from_iterator([*corpus, "zebra quick brown fox jumped over dogs"], trainer)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    eos = tokenizer.token_to_id("</s>")
    out = model.generate(
        ids, max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=eos
    )
    return place, out[0, ids.shape[1] :].tolist()


def _tokens(capsys, directory, *more):
    words = ["generate", "--load", directory, "--prompt", PROMPT, "--greedy", "--jsonl", *more]
    code, out, err = _run(capsys, *words, "--tokens-to-generate", "12")
    assert code == 0, err
    return json.loads(out)["tokens"]


def test_straight_from_hugging_face(peer, capsys) -> None:
    place, expected = peer
    assert _tokens(capsys, place) == expected


@pytest.mark.parametrize("words", ["", "--target-tensor-parallel-size 2", "--to legacy"])
def test_converted_it_needs_neither_flags_nor_the_source(peer, capsys, tmp_path, words) -> None:
    place, expected = peer
    source = tmp_path / "source"
    shutil.copytree(place, source)
    code, _, err = _run(capsys, "convert", source, tmp_path / "made", *words.split())
    assert code == 0, err
    shutil.rmtree(source)
    # It may also be moved: its tokenizer files travel inside.
    (tmp_path / "made").rename(tmp_path / "moved")
    assert _tokens(capsys, tmp_path / "moved") == expected


def test_without_a_tokenizer_one_can_be_named(peer, capsys, tmp_path) -> None:
    place, expected = peer
    bare = tmp_path / "bare"
    shutil.copytree(place, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    code, _, err = _run(capsys, "generate", "--load", bare, "--prompt", PROMPT)
    assert code == 1
    assert "holds no tokenizer; give --tokenizer-model" in err
    assert _tokens(capsys, bare, "--tokenizer-model", place) == expected


def test_what_does_not_fit_is_refused(peer, capsys, tmp_path) -> None:
    place, _ = peer
    code, _, err = _run(capsys, "generate", "--load", place, "--ckpt-step", "3", "--prompt", "a")
    assert code == 1
    assert "has no iterations" in err
    wrong = tmp_path / "wrong"
    shutil.copytree(place, wrong)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "intermediate_size": 65}))
    code, _, err = _run(capsys, "generate", "--load", wrong, "--prompt", "a")
    assert code == 1
    assert "expected shape [65, 48], found [64, 48]" in err


def test_dtype_is_the_models_unless_asked(peer) -> None:
    place, _ = peer
    model, _, config = load_model(Path(place))
    assert model.dtype == torch.float32
    assert config.num_query_groups == 2
    assert load_model(place, dtype="bfloat16")[0].dtype == torch.bfloat16
