"""Finetuning on conversations: equal in every division of the batch, exact over restarts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from sft_runs import finetune_here
from worker_pool import WorkerPools

from megacore.checkpoint import load_checkpoint
from megacore.data.chat.template import load_template
from megacore.inference.engine import Engine
from megacore.inference.loading import load_model
from megacore.inference.sampling import SamplingParams

sys.path.append(str(Path(__file__).parents[1] / "data"))
from chat_cases import TEMPLATES, chat, write_lines, write_tokenizer

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "How many legs has a spider?": "Eight legs.",
    "Thank you!": "You are welcome. Goodbye!",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Flags for a tokenizer and a file of conversations of very different lengths."""
    where = tmp_path_factory.mktemp("sft")
    write_tokenizer(where / "tokenizer", TEMPLATES["llama3"])
    records = [
        {"messages": chat("Count!", " ".join(map(str, range(1 + i % 17)))) * (1 + i % 2)}
        for i in range(120)
    ]
    path = write_lines(where / "chat.jsonl", records)
    return f"--data-path {path} --tokenizer-model {where / 'tokenizer'} --split 9,1,0"


STEPS = "--train-iters 4 --lr-decay-iters 4 --global-batch-size 8"


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (1, "--micro-batch-size 1"),
        (1, "--micro-batch-size 8"),
        (2, "--micro-batch-size 2 --use-distributed-optimizer --overlap-grad-reduce"),
        (2, "--micro-batch-size 2 --context-parallel-size 2"),
        pytest.param(
            2, "--micro-batch-size 1 --pipeline-model-parallel-size 2", marks=pytest.mark.slow
        ),
        pytest.param(
            2,
            "--micro-batch-size 4 --tensor-model-parallel-size 2 --sequence-parallel",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_loss_is_the_mean_over_answer_tokens_however_the_batch_is_divided(
    world: WorkerPools, data: str, size: int, flags: str
) -> None:
    whole = finetune_here(None, f"{data} {STEPS} --micro-batch-size 4", "float64")
    command = f"{data} {STEPS} {flags}"
    if size == 1:
        found = [finetune_here(None, command, "float64")]
    else:
        found = world(size).run(finetune_here, command, "float64")
    for one in found:
        assert one.losses == pytest.approx(whole.losses, rel=1e-10)
        for name, weight in one.weights.items():
            # Compared where a process has the whole: a part would not be right by chance.
            if name in whole.weights and weight.shape == whole.weights[name].shape:
                assert torch.allclose(weight, whole.weights[name], rtol=1e-10, atol=1e-12), name


def test_restart_goes_on_with_the_next_sequence(data: str, tmp_path: Path) -> None:
    flags = f"{data} {STEPS} --micro-batch-size 2 --save {tmp_path} --save-interval 2"
    whole = finetune_here(None, flags.replace(f"--save {tmp_path} --save-interval 2", ""))
    stopped = finetune_here(None, f"{flags} --exit-interval 2")
    resumed = finetune_here(None, f"{flags} --load {tmp_path}")
    assert stopped.losses + resumed.losses == whole.losses
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight)


def test_text_that_is_not_an_answer_is_not_learned(data: str, tmp_path: Path) -> None:
    # Of all answers only the end of the turn is new each time: the loss tends to zero, which it
    # would not if the random questions counted.
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 10**6, (80,), generator=generator).tolist()
    records = [{"messages": chat(f"{number}", "ok")} for number in numbers]
    path = write_lines(tmp_path / "chat.jsonl", records)
    where = data.split("--data-path ")[1].split()[0]
    flags = data.replace(where, str(path))
    run = finetune_here(
        None, f"{flags} --train-iters 25 --micro-batch-size 4 --lr-decay-iters 25 --lr 1e-2"
    )
    assert run.losses[0] > 4.0
    assert run.losses[-1] < 0.2


@pytest.mark.parametrize("adapted", [False, True])
def test_model_answers_what_it_was_taught(tmp_path: Path, adapted: bool) -> None:
    directory = write_tokenizer(tmp_path / "tokenizer", TEMPLATES["chatml"])
    records = [{"messages": chat(question, answer)} for question, answer in QUESTIONS.items()]
    path = write_lines(tmp_path / "chat.jsonl", records * 4)
    flags = (
        f"--data-path {path} --tokenizer-model {directory} --split 1,0,0 --micro-batch-size 4 "
        "--position-embedding-type rope --normalization RMSNorm --swiglu --lr 1e-2 --min-lr 1e-4"
    )
    saved = tmp_path / "whole"
    iterations = 3 if adapted else 60
    finetune_here(None, f"{flags} --train-iters {iterations} --save {saved} --save-interval 1000")
    if adapted:
        base, saved = saved, tmp_path / "adapters"
        finetune_here(
            None,
            f"{flags} --lora-rank 16 --pretrained-checkpoint {base} --load {saved} --save {saved} "
            "--save-interval 1000 --train-iters 150 --lr 2e-2",
        )
        names = load_checkpoint(saved).describe("model")
        assert all(".adapter." in name for name in names)
    model, tokenizer, _ = load_model(saved)
    template = load_template(directory)
    prompts = [
        template.render(chat(question), add_generation_prompt=True).text for question in QUESTIONS
    ]
    params = SamplingParams(tokens_to_generate=20, top_k=1, stop=("<|im_end|>",))
    answers = Engine(model, tokenizer).generate(prompts, params)
    assert [one.text for one in answers] == list(QUESTIONS.values())
