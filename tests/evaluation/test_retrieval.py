"""Index and search of evidence: against a loop over passages, restarts, matching, bad files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from task_fixtures import english, train_word_pieces

from megacore import cli
from megacore.checkpoint import save_checkpoint
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import build_tokenizer
from megacore.errors import DataError
from megacore.evaluation.retrieval import store as store_module
from megacore.evaluation.retrieval.answers import has_answer
from megacore.evaluation.retrieval.evidence import read_evidence, read_questions
from megacore.evaluation.retrieval.store import EmbeddingStore
from megacore.models.biencoder import BiencoderModel
from megacore.models.config import ModelConfig
from megacore.models.initialization import init_weights

SIZES = {
    "num_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "init_method_std": 0.4,
    "model_family": "bert",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Vocabulary, evidence and questions made from a text, and encoders with random weights."""
    directory = tmp_path_factory.mktemp("retrieval")
    train_word_pieces(directory)
    (directory / "corpus.txt").write_text(english()[:60_000])
    words = ["make-task", "NQ", "--from", str(directory / "corpus.txt"), "--output"]
    assert cli.run(cli.dispatch, ["data", *words, str(directory)]) == 0
    return directory


@pytest.fixture(scope="module", params=["shared", "two", "projected"])
def encoders(home, request):
    """Directory of a checkpoint, and its model in float32."""
    config = ModelConfig(**SIZES).resolved()
    model = BiencoderModel(
        config,
        padded_vocab_size=768,
        shared=request.param == "shared",
        projection=24 if request.param == "projected" else 0,
    ).eval()
    init_weights(model, config, seed=5)
    tokenizer = {
        "tokenizer_type": "BertWordPieceLowerCase",
        "vocab_file": str(home / "vocab.txt"),
    }
    save_checkpoint(
        home / request.param,
        3,
        tensors={"model": dict(model.named_parameters())},
        values={"args": {**SIZES, **tokenizer, "padded_vocab_size": 768}},
    )
    return home / request.param, model


def index(home, directory, path, *more):
    words = ["index-evidence", "--load", directory, "--evidence-data-path", home / "NQ/psgs.tsv"]
    words += ["--embedding-path", path, "--retriever-seq-length", 32, "--indexer-batch-size", 7]
    return cli.run(cli.dispatch, [str(word) for word in [*words, *more]])


def vectors_alone(model, home):
    """Vector of every passage, each alone and without padding."""
    config = TokenizerConfig(
        tokenizer_type="BertWordPieceLowerCase", vocab_file=str(home / "vocab.txt")
    )
    tokenizer = build_tokenizer(config)
    rows = []
    for passage in read_evidence(str(home / "NQ/psgs.tsv")):
        title, text = tokenizer.tokenize(passage.title), tokenizer.tokenize(passage.text)
        ids = [tokenizer.cls, *title, tokenizer.sep, *text]
        ids = [*ids[:31], tokenizer.sep]
        with torch.no_grad():
            hidden = model.context_tower.language_model.encode(
                torch.tensor([ids]), None, types=torch.zeros(1, len(ids), dtype=torch.int64)
            )[0, 0]
            projection = model.context_tower.projection_enc
            rows.append(hidden if projection is None else projection(hidden))
    return torch.stack(rows)


def test_vectors_are_those_of_single_passages(home, encoders, tmp_path):
    directory, model = encoders
    assert index(home, directory, tmp_path / "index") == 0
    found = EmbeddingStore.load(tmp_path / "index")
    expected = vectors_alone(model, home)
    assert found.ids.tolist() == list(range(1, len(expected) + 1))
    assert found.vectors.dtype == np.float16
    difference = (torch.from_numpy(found.vectors.astype(np.float32)) - expected).abs()
    # float16 has 11 bits.
    assert float((difference / expected.abs().clamp(min=1.0)).max()) < 2.0**-10


def test_restart_uses_finished_pieces(home, encoders, tmp_path, capsys, monkeypatch):
    directory, _ = encoders
    path = tmp_path / "index"
    assert index(home, directory, tmp_path / "whole") == 0
    saved = EmbeddingStore.save
    written = []

    def fail_at_third(self, target):
        if len(written) == 2:
            raise DataError("the disk is full")
        written.append(target)
        saved(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddingStore, "save", fail_at_third)
        assert index(home, directory, path, "--indexer-log-interval", 1) == 1
    assert not path.exists()
    capsys.readouterr()
    assert index(home, directory, path, "--indexer-log-interval", 1) == 0
    assert capsys.readouterr().out.count("(done before)") == 2
    one, other = EmbeddingStore.load(path), EmbeddingStore.load(tmp_path / "whole")
    assert np.array_equal(one.ids, other.ids)
    np.testing.assert_allclose(
        one.vectors.astype(np.float32), other.vectors.astype(np.float32), rtol=2e-3, atol=2e-3
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("_tmp")] == []


def test_accuracy_of_the_retriever(home, encoders, tmp_path, capsys):
    directory, model = encoders
    assert index(home, directory, tmp_path / "index") == 0
    words = ["evaluate", "RETRIEVER-EVAL", "--load", directory, "--embedding-path"]
    words += [tmp_path / "index", "--evidence-data-path", home / "NQ/psgs.tsv", "--qa-data-test"]
    words += [home / "NQ/nq-test.csv", "--retriever-report-topk-accuracies", 1, 5, 20]
    words += ["--faiss-topk-retrievals", 20, "--retriever-seq-length", 32]
    capsys.readouterr()
    assert cli.run(cli.dispatch, [str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "TEST SET RESULTS"
    store = EmbeddingStore.load(tmp_path / "index")
    evidence = {p.number: p for p in read_evidence(str(home / "NQ/psgs.tsv"))}
    config = TokenizerConfig(
        tokenizer_type="BertWordPieceLowerCase", vocab_file=str(home / "vocab.txt")
    )
    tokenizer = build_tokenizer(config)
    questions = read_questions(str(home / "NQ/nq-test.csv"))
    hits = dict.fromkeys((1, 5, 20), 0)
    for question in questions:
        ids = [tokenizer.cls, *tokenizer.tokenize(question.text)[:30], tokenizer.sep]
        with torch.no_grad():
            query = model.query_tower(torch.tensor([ids]), None)[0].float().numpy()
        order = np.argsort(-(store.vectors.astype(np.float32) @ query), kind="stable")
        for k in hits:
            texts = [evidence[int(store.ids[place])].text.lower() for place in order[:k]]
            answer = question.answers[0].lower()
            hits[k] += any(answer in text.replace("-", " ").split() for text in texts) or any(
                has_answer(text, question.answers, match="string") for text in texts
            )
    expected = [f"top-{k} accuracy: {100 * n / len(questions):.2f} %" for k, n in hits.items()]
    assert lines[1:] == expected


@pytest.mark.parametrize("with_faiss", [False, True])
def test_search_is_exact_over_pieces(monkeypatch, with_faiss):
    if with_faiss:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(store_module, "_faiss", lambda: None)
    monkeypatch.setattr(store_module, "_ROWS_AT_ONCE", 7)
    random = np.random.default_rng(1)
    vectors = random.standard_normal((45, 8)).astype(np.float16)
    queries = random.standard_normal((5, 8)).astype(np.float32)
    store = EmbeddingStore(np.arange(100, 145), vectors)
    products = queries @ vectors.astype(np.float32).T
    for count in (1, 10, 45, 60):
        ids, scores = store.search(queries, count)
        order = np.argsort(-products, axis=1)[:, :count]
        assert np.array_equal(ids, order + 100)
        np.testing.assert_allclose(
            scores, np.take_along_axis(products, order, 1), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("text", "answers", "match", "found"),
    [
        ("In Paris, France.", ["paris"], "string", True),
        ("In Parish life.", ["Paris"], "string", False),
        ("The U.S. Army", ["u.s."], "string", True),
        ("Caf\u00e9 noir", ["cafe\u0301"], "string", True),
        ("one two three", ["two four", "two three"], "string", True),
        ("anything", [""], "string", False),
        ("born in 1984", [r"19\d\d"], "regex", True),
        ("born in 1884", [r"19\d\d"], "regex", False),
        ("In PARIS", ["par.s"], "regex", True),
    ],
)
def test_answers(text, answers, match, found):
    assert has_answer(text, answers, match=match) == found


def test_broken_pattern():
    with pytest.raises(DataError, match="is no pattern"):
        has_answer("text", ["("], match="regex")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id\ttext\ttitle\n1\ta\n", "line 2: expected id, text and title"),
        ("id\ttext\ttitle\nx\ta\tb\n", "line 2: expected id, text and title"),
        ("1\ta\tb\n1\tc\td\n", "line 2: id 1 has come before"),
        ("id\ttext\ttitle\n", "without rows"),
    ],
)
def test_broken_evidence(tmp_path, content, said):
    (tmp_path / "psgs.tsv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_evidence(str(tmp_path / "psgs.tsv"))


def test_quoted_evidence_and_questions(tmp_path):
    (tmp_path / "psgs.tsv").write_text('id\ttext\ttitle\n4\t"He said ""no""."\tHim\n')
    assert read_evidence(str(tmp_path / "psgs.tsv"))[0].text == 'He said "no".'
    (tmp_path / "nq.csv").write_text("who?\t['a', \"b's\"]\nwhat\t()\n")
    with pytest.raises(DataError, match="line 2: expected a question"):
        read_questions(str(tmp_path / "nq.csv"))
    (tmp_path / "nq.csv").write_text("who?\t['a', \"b's\"]\n")
    (question,) = read_questions(str(tmp_path / "nq.csv"))
    assert (question.text, question.answers) == ("who", ["a", "b's"])


def test_several_processes_are_refused(monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for words in ("evaluate RETRIEVER-EVAL --load x", "index-evidence --load x"):
        assert cli.run(cli.dispatch, words.split()) == 2
        assert "MC1347" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate RETRIEVER-EVAL --load x", "--embedding-path"),
        ("evaluate RETRIEVER-EVAL --load x", "--qa-data-dev"),
        ("index-evidence --load x", "--evidence-data-path"),
    ],
)
def test_missing_flags_are_said(capsys, words, said):
    assert cli.run(cli.dispatch, words.split()) == 2
    assert said in capsys.readouterr().err
