"""`megacore generate` end to end on a small checkpoint."""

import json

import pytest
import torch

from megacore import cli
from megacore.checkpoint import save_checkpoint
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights

ARGS = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "init_method_std": 0.4,
}


@pytest.fixture
def checkpoint(tmp_path):
    """Checkpoints of iterations 3 and 7 of a model over the ids 0 to 49."""
    config = ModelConfig(**ARGS)
    for iteration in (3, 7):
        model = GPTModel(config, padded_vocab_size=128, dtype=torch.bfloat16)
        init_weights(model, config, seed=iteration)
        save_checkpoint(
            tmp_path / "run",
            iteration,
            tensors={"model": dict(model.named_parameters())},
            values={
                "args": {
                    **ARGS,
                    "bf16": True,
                    "tokenizer_type": "NullTokenizer",
                    "vocab_size": 49,
                    "padded_vocab_size": 128,
                    "unknown_to_generate": [1, 2],
                }
            },
        )
    return str(tmp_path / "run")


def _run(capsys, *words):
    code = cli.run(cli.dispatch, ["generate", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_text_and_summary(checkpoint, capsys):
    words = ["--load", checkpoint, "--tokens-to-generate", "5", "--greedy"]
    code, out, err = _run(capsys, *words, "--prompt", "1 2 3", "--prompt", "4")
    assert code == 0
    first, second = out.strip().split("\n\n")
    assert first.startswith("1 2 3 ")
    assert second.startswith("4 ")
    assert "tokens/s, 2 prompts, bfloat16" in err
    code, streamed, _ = _run(capsys, *words, "--stream", "--prompt", "1 2 3", "4")
    assert code == 0
    assert streamed.strip().split("\n\n") == [first, second]


def test_jsonl_and_prompt_file(checkpoint, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("5 6\n7\n")
    words = ["--load", checkpoint, "--prompt-file", str(file), "--jsonl", "--log-probs"]
    code, out, _ = _run(capsys, *words, "--tokens-to-generate", "4", "--dtype", "float32")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["prompt"] for r in records] == ["5 6", "7"]
    for record in records:
        assert record["prompt_tokens"] == [int(word) for word in record["prompt"].split()]
        assert len(record["log_probs"]) == len(record["tokens"]) <= 4
        assert max(record["log_probs"]) <= 0.0


def test_only_newlines_end_a_prompt(checkpoint, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    # Both are white space to the tokenizer and line ends to str.splitlines.
    file.write_text("5\u20286\x0c7\n8\n", encoding="utf-8")
    words = ["--load", checkpoint, "--prompt-file", str(file), "--jsonl"]
    code, out, _ = _run(capsys, *words, "--tokens-to-generate", "1")
    assert code == 0
    records = [json.loads(line) for line in out.removesuffix("\n").split("\n")]
    assert [r["prompt_tokens"] for r in records] == [[5, 6, 7], [8]]


def test_step_and_seed(checkpoint, capsys):
    words = ["--load", checkpoint, "--prompt", "1 2", "--tokens-to-generate", "12"]
    newest = _run(capsys, *words)[1]
    assert _run(capsys, *words, "--ckpt-step", "7")[1] == newest
    assert _run(capsys, *words, "--ckpt-step", "3")[1] != newest
    assert _run(capsys, *words, "--random-seed", "9")[1] != newest


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--prompt", "1"], 2, "--load"),
        (["--load", "{}"], 2, "--prompt"),
        (["--load", "{}", "--prompt", "1", "--top-p", "2"], 2, "--top-p"),
        (["--load", "{}", "--prompt", "1", "--top-p", "0.5", "--top-k", "2"], 2, "exclude"),
        (["--load", "{}", "--prompt", "1", "--greedy", "--top-k", "2"], 2, "--greedy"),
        (["--load", "{}", "--prompt", "1", "--log-probs"], 2, "--jsonl"),
        (["--load", "{}", "--prompt", "1", "--temperatur", "2"], 2, "--temperature"),
        (["--load", "{}", "--prompt", "1", "--tokens-to-generate", "50"], 2, "40 positions"),
        (["--load", "{}", "--prompt", "1", "--ckpt-step", "5"], 1, "5"),
        (["--load", "{}", "--prompt", "1 99"], 1, "99"),
        (["--load", "{}-missing", "--prompt", "1"], 1, "missing"),
        (["--load", "{}", "--prompt-file", "{}-none"], 1, "No such file"),
    ],
)
def test_failures_name_their_cause(checkpoint, capsys, words, code, text):
    found, out, err = _run(capsys, *(word.replace("{}", checkpoint) for word in words))
    assert found == code
    assert text in err
    assert out == ""


def test_checkpoint_without_settings(tmp_path, capsys):
    save_checkpoint(
        tmp_path, 1, tensors={"model": {"w": torch.zeros(1)}}, values={"args": {"lr": 1.0}}
    )
    code, _, err = _run(capsys, "--load", str(tmp_path), "--prompt", "1")
    assert code == 1
    assert "ModelConfig" in err
