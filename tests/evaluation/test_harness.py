"""The model of the lm-evaluation-harness against the harness's own one for Hugging Face."""

from __future__ import annotations

import json

import pytest
from task_fixtures import english, small_gpt2, train_vocabulary

from megacore import cli

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from megacore.errors import UsageError  # noqa: E402
from megacore.evaluation.harness_model import MegacoreLM  # noqa: E402

POSITIONS = 48
TEXTS = english().split("\n\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harness")
    train_vocabulary(directory)
    small_gpt2(directory, vocab_size=640, positions=POSITIONS)
    return directory


@pytest.fixture(scope="module")
def models(home):
    peer = HFLM(pretrained=str(home), device="cpu", dtype="float32", batch_size=4)
    return MegacoreLM(load=str(home), batch_size=3), peer


def instances(kind, arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=place)
        for place, args in enumerate(arguments)
    ]


def test_loglikelihood(models):
    pairs = [(text[:70], " " + text[71:95].strip()) for text in TEXTS[3:14]]
    pairs += [("", TEXTS[20][:40]), (TEXTS[21][:400], " the"), ("blank at the end ", "word")]
    requests = instances("loglikelihood", pairs)
    mine, theirs = (model.loglikelihood(requests) for model in models)
    for (score, greedy), (expected, expected_greedy) in zip(mine, theirs, strict=True):
        assert score == pytest.approx(expected, rel=1e-4)
        assert greedy == expected_greedy


def test_rolling(models):
    requests = instances("loglikelihood_rolling", [(t[:400],) for t in TEXTS[30:36]] + [("a",)])
    mine, theirs = (model.loglikelihood_rolling(requests) for model in models)
    assert mine == pytest.approx(theirs, rel=1e-4)


def test_generate_until(models):
    settings = {"until": ["e", "\n\n"], "max_gen_toks": 9, "do_sample": False}
    prompts = [text[:60] for text in TEXTS[40:46]] + [TEXTS[46][:600]]
    requests = instances("generate_until", [(prompt, settings) for prompt in prompts])
    mine, theirs = (model.generate_until(requests) for model in models)
    assert mine == theirs
    assert any(mine)


@pytest.mark.slow
def test_command_runs_a_local_task(home, tmp_path, capsys):
    questions = tmp_path / "questions.jsonl"
    rows = [{"text": text[:40], "options": [" the", " of"], "right": 0} for text in TEXTS[50:56]]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(
        "task: local_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {questions}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_target: "{{right}}"\ndoc_to_choice: "{{options}}"\n'
        "metric_list: [{metric: acc}]\n"
    )
    words = ["--model", "megacore", "--model_args", f"load={home}", "--tasks", "local_choice"]
    more = ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    assert cli.run(cli.dispatch, ["lm-eval", *words, *more]) == 0
    assert "local_choice" in capsys.readouterr().out
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert 0.0 <= json.loads(results.read_text())["results"]["local_choice"]["acc,none"] <= 1.0


def test_settings_that_are_not_known_are_refused(home):
    with pytest.raises(UsageError, match="has no setting pretrained"):
        MegacoreLM(load=str(home), pretrained="x")
    with pytest.raises(UsageError, match="load=CHECKPOINT"):
        MegacoreLM()
