"""Finetuning tasks end to end: accuracy against single rows, resume, predictions, bad settings."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from task_fixtures import train_word_pieces, write_mnli

from megacore import cli
from megacore.checkpoint import Checkpoint, find_checkpoint, save_checkpoint
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import build_tokenizer
from megacore.errors import CheckpointError
from megacore.evaluation.examples import read_mnli, read_race
from megacore.evaluation.finetuning import finetune
from megacore.evaluation.settings import parse_task
from megacore.models.classification import ClassificationModel
from megacore.models.config import ModelConfig
from megacore.models.multiple_choice import MultipleChoiceModel
from megacore.training.live_view import Screen

NAMES = ("dev-matched", "dev-mismatched")
SIZES = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 2 --seq-length 24 "
    "--max-position-embeddings 24 --tokenizer-type BertWordPieceLowerCase --num-workers 0 "
    "--micro-batch-size 8 --lr 3e-3 --eval-iters 1 --eval-interval 5 --log-interval 4 --seed 7 "
    "--init-method-std 0.1 --peak-tflops 1"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a vocabulary and data."""
    directory = tmp_path_factory.mktemp("tasks")
    train_word_pieces(directory)
    write_mnli(directory / "train.tsv", 61, seed=1)
    write_mnli(directory / "dev_matched.tsv", 21, seed=2)
    write_mnli(directory / "dev_mismatched.tsv", 5, seed=3)
    return directory


def words(home, more, *, data="--train-data {0}/train.tsv --valid-data {0}/dev_matched.tsv "
          "{0}/dev_mismatched.tsv", task="MNLI"):  # fmt: skip
    return f"--task {task} {SIZES} --vocab-file {home}/vocab.txt {data.format(home)} {more}".split()


def run(home, more, **kinds):
    """What a run prints."""
    stream = io.StringIO()
    evaluation = parse_task(words(home, more, **kinds))
    assert finetune(evaluation, screen=Screen(live=False, stream=stream)) == 0
    return stream.getvalue()


def accuracies(printed):
    """(epoch, name) -> (correct, total)."""
    pattern = (
        r"^ > \|epoch: (-?\d+)\| metrics for (\S+): correct / total = (\d+) / (\d+) = [0-9.]+ %, "
        r"elapsed time \(sec\): [0-9.]+$"
    )
    found = re.findall(pattern, printed, re.M)
    overall = re.findall(
        r"^ >> \|epoch: (-?\d+)\| overall: correct / total = (\d+) / (\d+) = [0-9.]+ %$",
        printed,
        re.M,
    )
    rows = {(int(e), name): (int(c), int(t)) for e, name, c, t in found}
    return rows | {(int(e), "overall"): (int(c), int(t)) for e, c, t in overall}


def stored(directory):
    return Checkpoint(find_checkpoint(directory))


def rows_alone(checkpoint, model, home, file):
    """Number of examples that a model gets right, each row alone and without padding."""
    tensors = checkpoint.tensors("model")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    model.eval()
    tokenizer = build_tokenizer(
        TokenizerConfig(tokenizer_type="BertWordPieceLowerCase", vocab_file=str(home / "vocab.txt"))
    )
    correct = 0
    for example in file.examples:
        second = tokenizer.tokenize(example.second)
        scores = []
        for text in example.firsts:
            first = tokenizer.tokenize(text)
            ids = [tokenizer.cls, *first, tokenizer.sep, *second]
            types = [0] * (len(first) + 2) + [1] * len(second)
            ids, types = [*ids[:23], tokenizer.sep], [*types[:23], 1]
            hidden = model.encode(torch.tensor([ids]), None, types=torch.tensor([types]))
            head = "multichoice_head" if len(example.firsts) > 1 else "classification_head"
            scores.append(model.get_submodule(head)(model.pooler(hidden))[0])
        correct += int(torch.cat(scores).argmax()) == example.label
    return correct


def architecture():
    return ModelConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=24,
        model_family="bert",
    ).resolved()


@pytest.fixture(scope="module")
def finished(home):
    """Printed lines and directory of a run of three epochs."""
    directory = home / "finished"
    return run(home, f"--epochs 3 --save {directory} --load {directory}"), directory


def test_accuracy_is_that_of_rows_alone(home, finished):
    printed, directory = finished
    found = accuracies(printed)
    assert {epoch for epoch, _ in found} == {0, 1, 2}
    checkpoint = stored(directory)
    assert checkpoint.iteration == 21
    model = ClassificationModel(architecture(), num_classes=3, padded_vocab_size=768)
    for name, count in (("dev_matched", 21), ("dev_mismatched", 5)):
        file = read_mnli(str(home / f"{name}.tsv"))
        expected = rows_alone(checkpoint, model, home, file)
        assert found[2, name.replace("_", "-")] == (expected, count)
    assert found[2, "overall"] == tuple(map(sum, zip(*(found[2, n] for n in NAMES), strict=True)))


def test_a_tiny_model_learns(home, tmp_path):
    write_mnli(home / "many.tsv", 400, seed=4)
    data = "--train-data {0}/many.tsv --valid-data {0}/dev_matched.tsv {0}/dev_mismatched.tsv"
    printed = run(home, "--epochs 4 --lr 1e-2", data=data)
    correct, total = accuracies(printed)[3, "overall"]
    # Chance is a third.
    assert correct > 0.7 * total


def test_checkpoints_of_every_epoch_and_nothing_is_done_again(home, finished):
    _, directory = finished
    assert sorted(path.name for path in directory.glob("iter_*")) == [
        f"iter_{iteration:07d}" for iteration in (7, 14, 21)
    ]
    assert not accuracies(run(home, f"--epochs 3 --save {directory} --load {directory}"))


def test_resumed_in_the_middle_of_an_epoch(home, finished, tmp_path):
    _, directory = finished
    more = f"--epochs 3 --save {tmp_path} --load {tmp_path}"
    first = run(home, f"{more} --exit-interval 10")
    assert {epoch for epoch, _ in accuracies(first)} == {0}
    second = run(home, more)
    assert {epoch for epoch, _ in accuracies(second)} == {1, 2}
    one, other = stored(directory), stored(tmp_path)
    assert one.iteration == other.iteration
    for group in one.groups:
        left, right = one.tensors(group), other.tensors(group)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert tensor.equal(right[name]), f"{group}: {name}"


def test_pretrained_weights_are_taken_and_the_head_is_new(home, tmp_path):
    base = home / "base"
    run(home, f"--epochs 1 --save {base} --no-save-optim --no-save-rng", task="MNLI")
    tuned = tmp_path / "tuned"
    more = f"--epochs 1 --pretrained-checkpoint {base} --save {tuned} --load {tuned} --lr 1e-9"
    qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    (home / "qqp.tsv").write_text(
        qqp + "".join(f"{i}\t1\t2\tthe list\tof names\t{i % 2}\n" for i in range(11))
    )
    data = "--train-data {0}/qqp.tsv --valid-data {0}/qqp.tsv"
    # Another number of classes does not fit, and is said.
    with pytest.raises(CheckpointError, match="classification_head"):
        run(home, more, task="QQP", data=data)
    race = home / "race"
    race.mkdir(exist_ok=True)
    record = {
        "article": "the list of names can be used in a module",
        "questions": ["the _ of names"] * 9,
        "options": [["list", "code", "class", "module"]] * 9,
        "answers": list("ABCDABCDA"),
    }
    (race / "1.txt").write_text(json.dumps(record) + "\n")
    data = "--train-data {0}/race --valid-data {0}/race"
    printed = run(home, f"{more} --keep-last", task="RACE", data=data)
    assert "multichoice_head" in printed
    before, after = stored(base).tensors("model"), stored(tuned).tensors("model")
    name = "encoder.layers.0.self_attention.linear_qkv.weight"
    name = name if name in before else next(n for n in before if n.endswith("linear_qkv.weight"))
    torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6)
    assert stored(tuned).iteration == 2
    model = MultipleChoiceModel(architecture(), num_alternatives=4, padded_vocab_size=768)
    expected = rows_alone(stored(tuned), model, home, read_race(str(race)))
    assert accuracies(printed)[0, "race"] == (expected, 9)


def test_scoring_only_writes_predictions(home, finished):
    printed, directory = finished
    only = run(home, f"--epochs 0 --load {directory}", data="--valid-data {0}/dev_matched.tsv")
    found = accuracies(only)
    assert found[-1, "dev-matched"] == accuracies(printed)[2, "dev-matched"]
    lines = (directory / "predictions_dev-matched.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["uid"] for record in records] == list(range(21))
    hits = 0
    for record in records:
        probabilities = record["probabilities"]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
        hits += probabilities.index(max(probabilities)) == record["label"]
    assert hits == found[-1, "dev-matched"][0]


def test_a_pretrained_model_of_another_kind_is_refused(home, tmp_path):
    sizes = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "model_family": "gpt"}
    save_checkpoint(
        tmp_path, 1, tensors={"model": {"x": torch.zeros(1)}}, values={"args": {**sizes}}
    )
    with pytest.raises(CheckpointError, match="model_family"):
        run(home, f"--epochs 1 --pretrained-checkpoint {tmp_path}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--epochs 1 --train-iters 5", "MC1344"),
        ("--epochs 1 --data-path x", "MC1344"),
        ("--epochs 1 --bert-no-binary-head", "MC1345"),
        ("--epochs 1 --pipeline-model-parallel-size 2", "MC1346"),
        ("--epochs 0", "--load"),
        ("", "--epochs"),
        ("--epochs 1 --micro-batch-size 64", "do not fill one batch of 64"),
        ("--epochs 1 --seq-length 25", "MC0603"),
        ("--epochs 1 --train-data {0}/test.tsv", "has no labels"),
        ("--epochs 1 --vocab-file {0}/plain.txt", "[CLS] is not in it"),
    ],
)
def test_what_cannot_be_done_is_said(home, capsys, more, said):
    ten = "\t".join(f"c{i}" for i in range(10))
    row = "\t".join(["3", *["x"] * 7, "a b", "c d"])
    vocabulary = (home / "vocab.txt").read_text()
    (home / "plain.txt").write_text(vocabulary.replace("[CLS]\n", ""))
    (home / "test.tsv").write_text(f"{ten}\n{row}\n")
    code = cli.run(cli.dispatch, ["evaluate", *words(home, more.format(home))])
    assert code in (1, 2)
    assert said in capsys.readouterr().err
