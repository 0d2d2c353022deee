"""`megacore plan`: inputs of every kind, what flags fix, commands that run, pictures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacore.cli import main
from megacore.errors import ConfigError
from megacore.planning.hardware import load_profile
from megacore.planning.plan_inputs import read_inputs
from megacore.planning.plan_run import flags_of
from megacore.planning.simulate_world import simulate_world
from megacore.training.run_config import parse_run

GPT = (
    "--num-layers 8 --hidden-size 1024 --num-attention-heads 16 --seq-length 1024 "
    "--vocab-size 32000 --global-batch-size 64 --bf16 --gpus 16 "
)
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def plan(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    assert main(["plan", *words.split(), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def faults_of(words: str) -> set[str]:
    with pytest.raises(ConfigError) as caught:
        read_inputs(words.split())
    return {one.id for one in caught.value.faults}


def test_the_best_plan_can_be_run_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, GPT + "--top 3")
    steps = [one["step_s"] for one in found["plans"]]
    assert len(steps) == 3
    assert steps == sorted(steps)
    best = found["plans"][0]
    assert sum(best["breakdown_s"].values()) == pytest.approx(best["step_s"])
    assert sum(best["memory"].values()) == pytest.approx(best["memory_bytes"])
    assert best["tokens_per_s"] == pytest.approx(64 * 1024 / best["step_s"])
    run, _ = parse_run([*best["flags"], "--simulate-world", "16"], environment={})
    report = simulate_world(run)
    layout = best["layout"]
    assert report.degrees == {axis: layout[axis] for axis in ("tp", "cp", "dp", "pp")}
    assert report.num_parameters == found["model"]["num_parameters"]
    assert report.num_microbatches == best["num_microbatches"]


def test_text_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *GPT.split(), "--explain"]) == 0
    out = capsys.readouterr().out
    for text in (
        "16 x h100-sxm",
        "best with another choice:",
        "cannot run or does not fit:",
        "matrix products",
        "fc1",
        "torchrun --nnodes 2 --nproc-per-node 8",
        "megacore train --simulate-world 16",
    ):
        assert text in out


def test_flags_of_the_layout_are_kept_unless_freed(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = (
        "--tensor-model-parallel-size 4 --pipeline-model-parallel-size 2 --micro-batch-size 2 "
        "--num-layers-per-virtual-pipeline-stage 2 --use-distributed-optimizer "
        "--recompute-activations --sequence-parallel "
    )
    layout = plan(capsys, GPT + fixed)["plans"][0]["layout"]
    assert (layout["tp"], layout["pp"], layout["dp"], layout["micro_batch"]) == (4, 2, 2, 2)
    assert (layout["schedule"], layout["virtual_stages"]) == ("interleaved", 2)
    assert (layout["sharding"], layout["recompute"]) == ("optim", "selective")
    assert layout["sequence_parallel"]
    free = plan(capsys, GPT + fixed + "--free")
    assert free["fixed"] == {}
    assert free["plans"][0] == plan(capsys, GPT)["plans"][0]
    some = plan(capsys, GPT + fixed + "--free tp recompute")
    assert set(some["fixed"]).isdisjoint({"tp", "recompute"})
    assert some["plans"][0]["layout"]["pp"] == 2


@pytest.mark.parametrize("as_file", [True, False])
def test_hugging_face_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_file: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    path = tmp_path / "config.json" if as_file else tmp_path
    words = f"--model {path} --seq-length 2048 --global-batch-size 32 --bf16 --gpus 8"
    inputs = read_inputs(words.split())
    model = inputs.model
    assert (model.num_layers, model.hidden_size, model.num_groups) == (4, 512, 2)
    assert (model.vocab_size, model.seq_length, model.gated) == (32000, 2048, True)
    # The printed flags make the same run again.
    again, _ = parse_run(flags_of(inputs.base), environment={})
    assert again == inputs.base.resolved()
    deeper = read_inputs([*words.split(), "--num-layers", "6"])
    assert deeper.model.num_layers == 6
    assert plan(capsys, words)["model"]["num_parameters"] == model.num_parameters()


def test_file_of_settings_and_memory_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "num-layers: 8\nhidden-size: 1024\nnum-attention-heads: 16\nseq-length: 1024\n"
        "vocab-size: 32000\nglobal-batch-size: 64\nbf16: true\ngpus: 16\n"
    )
    found = plan(capsys, f"--config {file}")
    assert found["plans"] == plan(capsys, GPT)["plans"]
    small = plan(capsys, f"--config {file} --memory-gib 7")
    assert all(one["memory_bytes"] <= 7 * 2**30 for one in small["plans"])
    assert main(["plan", *GPT.split(), "--memory-gib", "0.5"]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_hardware_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = load_profile("a100-80gb")
    file = tmp_path / "mine.toml"
    file.write_text(profile.to_toml())
    assert load_profile(str(file)).to_toml() == profile.to_toml()
    named = plan(capsys, GPT + "--gpu a100-80gb")["plans"]
    assert plan(capsys, GPT + f"--profile {file}")["plans"] == named
    assert plan(capsys, GPT + f"--hardware-profile={file}")["plans"] == named
    slow = plan(capsys, GPT + "--gpu a100-80gb --gpus-per-node 2 --link ethernet-10g")["plans"]
    assert slow[0]["step_s"] > named[0]["step_s"]


def test_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    bert = GPT + "--model-family bert "
    t5 = GPT + "--model-family t5 --decoder-seq-length 256 --vocab-extra-ids 100 "
    model = read_inputs(bert.split()).model
    assert (model.family, model.decoder_layers) == ("bert", 0)
    # Nothing is masked, so both ways of counting are the same.
    assert model.flops(8, "causal") == model.flops(8)
    model = read_inputs(t5.split()).model
    assert (model.family, model.decoder_layers, model.decoder_seq_length) == ("t5", 8, 256)
    assert main(["plan", *t5.split()]) == 0
    out = capsys.readouterr().out
    assert "pretrain_t5.py" in out
    assert "--simulate-world" not in out


def test_training_command_lines_are_understood() -> None:
    # Switches of the profiler, flags without effect, paths that are not on this machine.
    words = GPT + (
        "--profile --profile-step-start 5 --profile-step-end 7 --data-path /data/text "
        "--tokenizer-type GPT2BPETokenizer --vocab-file /data/vocab.json --merge-file /data/m.txt "
        "--lr 3e-4 --train-iters 500 --save /ckpt --save-interval 100 --use-mcore-models"
    )
    inputs = read_inputs(words.replace("--vocab-size 32000 ", "").split())
    assert inputs.model.vocab_size == 50257
    assert inputs.base.training.train_iters == 500
    assert not inputs.base.data.mock_data


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (GPT + "--gpu a100-80gb --hardware-profile x.toml", {"MC1420"}),
        (GPT + "--picture plan.pdf", {"MC1421"}),
        (
            GPT.replace(
                "--vocab-size 32000", "--tokenizer-type Llama2Tokenizer --tokenizer-model /nowhere"
            ),
            {"MC1422"},
        ),
        (GPT + "--num-layers-per-virtual-pipeline-stage 3", {"MC1423"}),
        (GPT.replace("--gpus 16", ""), {"MC0101"}),
        (GPT.replace("--global-batch-size 64", ""), {"MC0101"}),
        (GPT.replace("--num-layers 8", ""), {"MC0101"}),
        (GPT + "--tensor-model-parallel-size 0", {"MC0005"}),
        (GPT + "--free tp nonsense", {"MC0004"}),
    ],
)
def test_refusals(words: str, expected: set[str]) -> None:
    assert faults_of(words) == expected


def test_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (GPT + "--gpu h1000", GPT + "--link string", "calibrat", ""):
        assert main(["plan", *words.split()]) == 2
    assert "calibrate" in capsys.readouterr().err
    assert main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--gpus-per-node" in out
    assert "megacore plan goodput" in out


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(tmp_path / name) for name in ("plan.svg", "plan.png", "scaling.svg")]
    words = f"--pipeline-model-parallel-size 4 --picture {names[0]} {names[1]} --scaling {names[2]}"
    assert main(["plan", *GPT.split(), *words.split()]) == 0
    assert f"wrote {names[0]}" in capsys.readouterr().out
    text = Path(names[0]).read_text()
    for word in ("memory of the fullest process", "pipeline of the best", "matrix products"):
        assert word in text
    assert Path(names[1]).read_bytes().startswith(b"\x89PNG")
    assert "same batch of 64" in Path(names[2]).read_text()
    assert main(["plan", *GPT.split(), "--picture", str(tmp_path / "no" / "such.svg")]) == 2


def test_validate_and_goodput_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "published.svg"
    assert main(["plan", "validate", "--scaling", str(picture)]) == 0
    assert "rank correlation" in capsys.readouterr().out
    assert "strong scaling" in picture.read_text()
    assert main(["plan", "goodput", "--published", "llama3-405b", "--simulate"]) == 0
    out = capsys.readouterr().out
    assert "16,384 GPUs" in out
    assert "simulated 54 days" in out
    assert main(["plan", "goodput"]) == 2
    assert "MC1425" in capsys.readouterr().err
    words = ["--gpus", "8", "--interval-seconds", "10", "--write-seconds", "60"]
    assert main(["plan", "goodput", *words]) == 2
    assert "MC1426" in capsys.readouterr().err
    assert main(["plan", "goodput", "--gpus", "8", "--json", "--simulate", "--days", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"]["gpus"] == 8
