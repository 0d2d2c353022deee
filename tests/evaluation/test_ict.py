"""Two encoders on the inverse cloze task: loss, start from a BERT, the way to retrieval."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from task_fixtures import english, train_word_pieces

from megacore import cli
from megacore.checkpoint import Checkpoint, find_checkpoint, save_checkpoint
from megacore.data.ict_config import IctConfig
from megacore.data.ict_dataset import IctBatch
from megacore.evaluation.retrieval.config import BiencoderConfig
from megacore.evaluation.retrieval.ict import parse_ict, train_ict
from megacore.evaluation.retrieval.ict_family import IctFamily
from megacore.models.bert import BertModel
from megacore.models.biencoder import BiencoderModel
from megacore.models.config import ModelConfig
from megacore.models.initialization import init_weights
from megacore.training.live_view import Screen
from megacore.training.log_line import parse_iteration

SIZES = {
    "num_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "init_method_std": 0.1,
    "model_family": "bert",
}
FLAGS = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 2 --seq-length 32 "
    "--max-position-embeddings 32 --num-workers 0 --micro-batch-size 8 --lr 2e-3 --eval-iters 1 "
    "--eval-interval 100 --log-interval 1 --init-method-std 0.1 --peak-tflops 1 --split 90,5,5 "
    "--retriever-report-topk-accuracies 1 5"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Vocabulary, and sentences with titles."""
    directory = tmp_path_factory.mktemp("ict")
    train_word_pieces(directory)
    paragraphs = [p for p in english()[:80_000].split("\n\n") if p.count(". ") > 1]
    lines = [json.dumps({"text": p, "title": " ".join(p.split()[:3])}) for p in paragraphs]
    (directory / "texts.jsonl").write_text("\n".join(lines) + "\n")
    words = ["preprocess", "--input", str(directory / "texts.jsonl"), "--workers", "1"]
    words += ["--tokenizer-type", "BertWordPieceLowerCase", "--split-sentences"]
    words += ["--vocab-file", str(directory / "vocab.txt"), "--output-prefix"]
    words += [str(directory / "ict"), "--json-keys", "text"]
    assert cli.run(cli.dispatch, words) == 0
    words = [word for word in words if word != "--split-sentences"][:-1]
    assert cli.run(cli.dispatch, [*words, "title"]) == 0
    return directory


def run(home, more):
    stream = io.StringIO()
    data = f"--data-path {home}/ict_text_sentence --titles-data-path {home}/ict_title_document"
    words = f"{FLAGS} --vocab-file {home}/vocab.txt {data} {more}".split()
    assert train_ict(parse_ict(words), screen=Screen(live=False, stream=stream)) == 0
    return stream.getvalue()


def losses(printed):
    return [r.losses for line in printed.splitlines() if (r := parse_iteration(line))]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_loss_is_that_of_a_softmax_over_the_batch(shared, scaled):
    config = ModelConfig(**SIZES).resolved()
    model = BiencoderModel(
        config, padded_vocab_size=50, shared=shared, projection=16, dtype=torch.float32
    ).eval()
    init_weights(model, config, seed=2)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 9, 5, 7], dtype=torch.int32)
    texts = [torch.randint(1, 50, (4, 9), generator=generator) for _ in range(2)]
    for rows in texts:
        for row, length in zip(rows, lengths.tolist(), strict=True):
            row[length:] = 0
    batch = IctBatch(texts[0], lengths, texts[1], lengths, torch.zeros(4, 4), torch.ones(4))
    settings = BiencoderConfig(
        biencoder_projection_dim=16,
        biencoder_shared_query_context_model=shared,
        retriever_score_scaling=scaled,
    )
    family = IctFamily(IctConfig(), settings, top=(1, 3))
    loss, *hits = family.losses(model, batch, None)
    # Each text alone and without padding.
    vectors = [
        torch.cat([tower(rows[i : i + 1, :n], None) for i, n in enumerate(lengths.tolist())])
        for tower, rows in zip((model.query_tower, model.context_tower), texts, strict=True)
    ]
    scores = vectors[0] @ vectors[1].T / (32**0.5 if scaled else 1.0)
    expected = -scores.log_softmax(1).diagonal().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    order = scores.argsort(1, descending=True)
    for k, hit in zip((1, 3), hits, strict=True):
        assert float(hit) == 100 * sum(i in order[i, :k].tolist() for i in range(4))
    assert family.loss_names == ("lm loss", "top1_acc", "top3_acc")


def test_encoders_learn_and_serve_retrieval(home, tmp_path, capsys):
    printed = run(home, f"--train-iters 30 --save {tmp_path} --save-interval 100")
    found = losses(printed)
    start, end = (sum(r["lm loss"] for r in part) / len(part) for part in (found[:5], found[-5:]))
    # Of 8 blocks one is right: log 8 = 2.08 by chance.
    assert end < start
    assert 0.0 <= found[-1]["top1_acc"] <= found[-1]["top5_acc"] <= 100.0
    assert re.search(r"top5_acc value: \d", printed)
    rows = ["id\ttext\ttitle", *(f"{i}\tsome text {i}\tname" for i in range(1, 12))]
    (tmp_path / "psgs.tsv").write_text("\n".join(rows) + "\n")
    words = f"index-evidence --load {tmp_path} --evidence-data-path {tmp_path}/psgs.tsv"
    words += f" --embedding-path {tmp_path}/index --retriever-seq-length 16"
    assert cli.run(cli.dispatch, words.split()) == 0
    assert "wrote" in capsys.readouterr().out


def test_both_encoders_start_from_a_bert_and_a_restart_does_not(home, tmp_path):
    config = ModelConfig(**SIZES).resolved()
    bert = BertModel(config, padded_vocab_size=768)
    init_weights(bert, config, seed=9)
    weights = dict(bert.named_parameters())
    save_checkpoint(tmp_path / "bert", 1, tensors={"model": weights}, values={"args": {**SIZES}})
    more = f"--bert-load {tmp_path}/bert --save {tmp_path}/ict --load {tmp_path}/ict"
    more += " --save-interval 1 --lr 1e-9"
    run(home, f"{more} --train-iters 1")
    tensors = Checkpoint(find_checkpoint(tmp_path / "ict")).tensors("model")
    for tower in ("query_model", "context_model"):
        own = {name for name in tensors if name.startswith(f"{tower}.")}
        assert len(own) == len(tensors) / 2
        for name in own:
            expected = weights[name.removeprefix(f"{tower}.language_model.")]
            torch.testing.assert_close(tensors[name], expected.detach(), rtol=0, atol=1e-6)
    again = run(home, f"{more} --train-iters 2 --override-opt_param-scheduler")
    assert "loaded the encoders from" not in again
    assert len(losses(again)) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--tensor-model-parallel-size 2", "MC1348"),
        ("--bert-load {0}/none", "no checkpoint found there"),
        ("--retriever-report-topk-accuracies 0", "MC0005"),
    ],
)
def test_what_cannot_be_done_is_said(home, capsys, more, said):
    data = f"--data-path {home}/ict_text_sentence --titles-data-path {home}/ict_title_document"
    words = f"train-ict {FLAGS} --train-iters 1 --vocab-file {home}/vocab.txt {data} {more}"
    assert cli.run(cli.dispatch, words.format(home).split()) in (1, 2)
    assert said in capsys.readouterr().err
