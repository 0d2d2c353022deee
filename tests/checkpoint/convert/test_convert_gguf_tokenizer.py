"""Tokenizers inside GGUF files become files that give the ids of the original tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megacore.checkpoint.convert.gguf_tokenizer import gguf_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "In 2024, 1234567 foxes   said: \"it's fine\"\n\n\tdidn't they?",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 and  two spaces ",
    "",
]
CORPUS = [text for text in TEXTS if text] * 40
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def made_files(made, directory):
    for name, content in made.files.items():
        (directory / name).write_bytes(content)
    return directory


def test_sentence_pieces_give_the_same_ids(tmp_path) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    peer = SentencePieceProcessor(str(tmp_path / "spm.model"))
    count = peer.vocab_size()
    kinds = [
        2 if peer.is_unknown(i) else 3 if peer.is_control(i) else 6 if peer.is_byte(i) else 1
        for i in range(count)
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [peer.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": np.array([peer.get_score(i) for i in range(count)], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds),
        "tokenizer.ggml.unknown_token_id": peer.unk_id(),
        "tokenizer.ggml.bos_token_id": peer.bos_id(),
        "tokenizer.ggml.eos_token_id": peer.eos_id(),
    }
    made, size, remarks = gguf_tokenizer(metadata, count + 3, "x.gguf")
    assert (size, remarks) == (count, ())
    assert made.values["tokenizer_type"] == "Llama2Tokenizer"
    ours = SentencePieceProcessor(str(made_files(made, tmp_path) / "tokenizer.model"))
    for text in TEXTS:
        assert ours.encode(text) == peer.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id(), ours.eos_id(), ours.unk_id()) == (1, 2, 0)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "</s>")


def byte_level_peer(cut):
    """A byte-level BPE as transformers keeps it, trained here."""
    peer = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut == "gpt-2")
    if cut == "llama-bpe":
        split = pre_tokenizers.Split(Regex(LLAMA3_CUT), "isolated")
        peer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        peer.pre_tokenizer = level
    peer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=alphabet,
        special_tokens=["<|begin|>", "<|end|>"],
    )
    peer.train_from_iterator(CORPUS, trainer)
    return peer


@pytest.mark.parametrize("cut", ["gpt-2", "llama-bpe"])
def test_byte_level_pairs_give_the_same_ids(tmp_path, cut) -> None:
    peer = byte_level_peer(cut)
    model = json.loads(peer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.token_type": np.array([3 if t.startswith("<|") else 1 for t in tokens]),
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        "tokenizer.chat_template": "{{ messages }}",
    }
    made, size, remarks = gguf_tokenizer(metadata, len(tokens), "x.gguf")
    assert (size, remarks) == (len(tokens), ())
    directory = made_files(made, tmp_path)
    ours = Tokenizer.from_file(str(directory / "tokenizer.json"))
    begin = [tokens.index("<|begin|>")] if cut == "llama-bpe" else []
    for text in [*TEXTS, "one<|end|>two"]:
        assert ours.encode(text).ids == begin + peer.encode(text).ids
        assert ours.decode(peer.encode(text).ids) == peer.decode(peer.encode(text).ids)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|end|>"
    assert settings["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer.ggml.model": "t5"}, "kind 't5'"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken', is not known"),
        ({"tokenizer.ggml.merges": None}, "no merges"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "not consistent"),
        ({"tokenizer.ggml.token_type": np.array([1])}, "1 token types"),
        ({"tokenizer.ggml.model": "llama"}, "no scores"),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": np.zeros(3)},
            "not consistent",  # no unknown piece
        ),
    ],
)
def test_what_cannot_be_carried_over_is_said(changes, reason) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
        **changes,
    }
    made, size, remarks = gguf_tokenizer(metadata, 2, "x.gguf")
    assert (made.values, made.files, size) == ({}, {}, 2)
    assert reason in remarks[0]
    assert "--tokenizer-model" in remarks[0]


def test_a_file_without_tokenizer(tmp_path) -> None:
    made, size, remarks = gguf_tokenizer({"llama.vocab_size": 90}, 96, "x.gguf")
    assert (made.files, size, remarks) == ({}, 90, ("x.gguf holds no tokenizer",))
