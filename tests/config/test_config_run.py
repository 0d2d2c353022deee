"""The configuration of a run: derived values, rules between components, real command lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import small

from megacore.config.layers import Origin
from megacore.config.report import format_arguments, format_resume_table
from megacore.errors import ConfigError, Information
from megacore.models.config import ModelConfig
from megacore.training.run_config import RunConfig, parse_run, with_checkpoint


def run_of(extra: str = "", *, without: str = "") -> RunConfig:
    return parse_run(small(extra, without=without), environment={})[0]


def ids(words: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_run(words, environment={})
    return [one.id for one in caught.value.faults]


def shape(**settings: object) -> ModelConfig:
    base = {
        "num_layers": 2,
        "hidden_size": 96,
        "num_attention_heads": 6,
        "max_position_embeddings": 8,
    }
    return ModelConfig(**{**base, **settings}).resolved()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hidden", "swiglu", "expected"),
    [(96, False, 384), (96, True, 256), (1024, True, 2688), (4096, True, 10880), (24, True, 64)],
)
def test_feed_forward_width(hidden: int, swiglu: bool, expected: int) -> None:
    settings = {"hidden_size": hidden, "num_attention_heads": 4, "swiglu": swiglu}
    assert shape(**settings).ffn_hidden_size == expected
    assert shape(**settings, ffn_hidden_size=77).ffn_hidden_size == 77


def test_heads_and_groups() -> None:
    assert (shape().kv_channels, shape().num_query_groups) == (16, 6)
    assert shape(num_query_groups=3).num_query_groups == 6
    assert shape(group_query_attention=True, num_query_groups=3).num_query_groups == 3
    assert shape(group_query_attention=True).num_query_groups == 1
    assert shape(num_attention_heads=5, kv_channels=32).kv_channels == 32


def test_model_aliases_and_switches() -> None:
    assert shape(num_layers=None, encoder_num_layers=3).num_layers == 3
    assert shape(use_rotary_position_embeddings=True).position_embedding_type == "rope"
    assert shape().bias_gelu_fusion
    assert not shape(add_bias_linear=False).bias_gelu_fusion
    for settings in ({"rotary_interleaved": True}, {"squared_relu": True}):
        assert shape(position_embedding_type="rope", **settings).kv_channels == 16


def test_resolving_twice_changes_nothing() -> None:
    for extra in (
        "",
        "--swiglu --disable-bias-linear --group-query-attention --num-query-groups 2",
        "--use-rotary-position-embeddings --recompute-activations --bf16",
        "--fp16 --weight-decay-incr-style cosine --start-weight-decay 0 --end-weight-decay 0.1",
        "--global-batch-size 6 --data-path a b --split 90,10",
    ):
        without = "--mock-data" if "--data-path" in extra else ""
        run = run_of(extra, without=without)
        assert run.resolved() == run


def test_positions_default_to_the_sequence_without_a_table() -> None:
    for kind in ("rope", "none"):
        run = run_of(f"--position-embedding-type {kind}", without="--max-position-embeddings")
        assert run.model.max_position_embeddings == 64


def test_batch_and_training() -> None:
    assert run_of().batch.global_batch_size == 2
    assert run_of("--global-batch-size 8").batch.global_batch_size == 8
    odd = run_of("--global-batch-size 7 --decrease-batch-size-if-needed")
    assert odd.batch.global_batch_size == 7
    ramp = run_of(
        "--rampup-batch-size 2 2 100 --train-samples 1000 --global-batch-size 8",
        without="--train-iters",
    )
    assert ramp.batch.rampup_batch_size == (2, 2, 100)
    assert run_of("--skip-train", without="--train-iters --lr").schedule.lr == 0.0


def test_precision() -> None:
    assert not run_of("--fp16").training.check_for_nan_in_loss_and_grad
    assert run_of("--fp16 --loss-scale 128").training.check_for_nan_in_loss_and_grad
    assert not run_of("--fp16 --loss-scale 0").training.check_for_nan_in_loss_and_grad
    assert run_of("--bf16 --fp32-residual-connection").model.fp32_residual_connection


def test_weight_decay() -> None:
    optimizer = run_of("--weight-decay 0.25").optimizer
    assert (optimizer.start_weight_decay, optimizer.end_weight_decay) == (0.25, 0.25)
    growing = "--weight-decay-incr-style linear --start-weight-decay 0.01 --end-weight-decay 0.1"
    assert run_of(growing).optimizer.end_weight_decay == 0.1


def test_data_and_tokenizer() -> None:
    run = run_of("--data-path a", without="--mock-data")
    assert (run.data.split, run.data.dataloader_type) == ("969, 30, 1", "single")
    assert run_of().data.split is None
    assert run_of("--encoder-seq-length 32", without="--seq-length").data.seq_length == 32
    files = "--vocab-file v --merge-file m"
    assert run_of(files, without="--tokenizer-type").tokenizer.tokenizer_type == "GPT2BPETokenizer"
    for paths in ("1 a 2 b", "a b", "a b c", "0.5 a", "a"):
        words = f"--train-data-path {paths}"
        assert run_of(words, without="--mock-data").data.train_data_path == tuple(paths.split())


def test_wandb_directory() -> None:
    named = "--wandb-project p --wandb-exp-name e"
    assert run_of(named).logging.wandb_save_dir == "./wandb"
    assert run_of(f"{named} --save d --save-interval 5").logging.wandb_save_dir == "d/wandb"
    assert run_of(f"{named} --wandb-save-dir w").logging.wandb_save_dir == "w"
    assert run_of().logging.wandb_save_dir == ""


def test_notes_about_settings_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    run_of("--num-query-groups 2 --save-interval 10 --log-progress")
    text = caplog.text
    assert "--num-query-groups has no effect without --group-query-attention" in text
    assert "nothing will be saved" in text
    assert "--log-progress has no effect" in text


# ------------------------------------------------------------------------------ real scripts

GPT_345M = """
--num-layers 24 --hidden-size 1024 --num-attention-heads 16 --seq-length 1024
--max-position-embeddings 1024 --micro-batch-size 4 --global-batch-size 8 --lr 0.00015
--train-iters 500000 --lr-decay-iters 320000 --lr-decay-style cosine --min-lr 1.0e-5
--weight-decay 1e-2 --lr-warmup-fraction .01 --clip-grad 1.0 --fp16
--data-path corpus_text_document --vocab-file vocab.json --merge-file merges.txt
--split 949,50,1 --log-interval 100 --save-interval 10000 --eval-interval 1000 --eval-iters 10
--save checkpoints --load checkpoints --distributed-backend nccl
"""

GPT_175B = """
--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048
--max-position-embeddings 2048 --micro-batch-size 1 --global-batch-size 1536
--rampup-batch-size 16 16 5859375 --train-iters 500000 --weight-decay 0.1 --adam-beta1 0.9
--adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0 --fp16 --lr 6.0e-5
--lr-decay-style cosine --min-lr 6.0e-6 --lr-warmup-fraction .001 --lr-decay-iters 430000
--tensor-model-parallel-size 8 --pipeline-model-parallel-size 16
--data-path corpus_text_document --vocab-file vocab.json --merge-file merges.txt
--split 949,50,1 --log-interval 100 --save-interval 10000 --eval-interval 1000 --eval-iters 10
--save checkpoints --load checkpoints --tensorboard-dir logs
"""

LLAMA_STYLE = """
--use-mcore-models --transformer-impl transformer_engine --use-flash-attn --num-layers 4
--hidden-size 512 --num-attention-heads 8 --group-query-attention --num-query-groups 2
--ffn-hidden-size 1376 --position-embedding-type rope --rotary-base 500000 --rotary-percent 1.0
--use-rotary-position-embeddings --normalization RMSNorm --norm-epsilon 1e-5 --swiglu
--disable-bias-linear --untie-embeddings-and-output-weights --attention-dropout 0.0
--hidden-dropout 0.0 --no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion
--attention-softmax-in-fp32 --accumulate-allreduce-grads-in-fp32 --bf16
--seq-length 2048 --max-position-embeddings 4096 --micro-batch-size 1 --global-batch-size 16
--train-samples 1000000 --lr-decay-samples 900000 --lr-warmup-samples 10000 --lr 3e-4
--min-lr 3e-5 --lr-decay-style cosine --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95
--adam-eps 1e-8 --weight-decay 0.1 --clip-grad 1.0 --init-method-std 0.01
--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --context-parallel-size 1
--expert-model-parallel-size 1 --use-distributed-optimizer
--overlap-grad-reduce --overlap-param-gather --no-gradient-accumulation-fusion
--no-async-tensor-model-parallel-allreduce --distributed-timeout-minutes 60
--train-data-path 0.7 web 0.3 books --valid-data-path web_valid --dataloader-type cyclic
--tokenizer-type Llama2Tokenizer --tokenizer-model tokenizer.model --num-workers 8
--no-create-attention-mask-in-dataloader --eval-interval 500 --eval-iters 20 --save out
--save-interval 500 --load out --no-load-optim --no-load-rng --ckpt-fully-parallel-save
--log-throughput --log-progress --timing-log-level 2 --tensorboard-dir tb --no-one-logger
--manual-gc --manual-gc-interval 10 --exit-duration-in-mins 230 --exit-signal-handler
--make-vocab-size-divisible-by 128 --qk-layernorm --log-interval 1 --no-save-rng
--num-experts 0 --encoder-tensor-model-parallel-size 0 --straggler-minmax-count 1
"""


def test_345m_example_runs_on_one_process(caplog: pytest.LogCaptureFixture) -> None:
    run, origins = parse_run(GPT_345M.split(), environment={})
    assert run.model.ffn_hidden_size == 4096
    assert run.tokenizer.tokenizer_type == "GPT2BPETokenizer"
    assert run.schedule.lr_warmup_fraction == 0.01
    assert str(origins["num_layers"]) == "command line"
    assert caplog.messages == ["note: --distributed-backend has no effect: there is one process"]


def test_345m_example_under_a_launcher_of_one_process() -> None:
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "SLURM_NTASKS": "8"}
    assert parse_run(GPT_345M.split(), environment=one)[0].model.num_layers == 24


def test_175b_example_is_refused_with_every_reason() -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "1024", "LOCAL_RANK": "0"}
    with pytest.raises(ConfigError) as caught:
        parse_run(GPT_175B.split(), environment=environment)
    faults = [(one.id, next(iter(one.given))) for one in caught.value.faults]
    assert [one for one in faults if one[0] != "MC0011"] == [
        ("MC0204", "--rampup-batch-size"),
    ]
    assert "exactly this mistake" not in str(caught.value)


def test_175b_example_mended_and_on_one_process() -> None:
    words = " ".join(GPT_175B.split())
    for old, new in (
        ("--tensor-model-parallel-size 8 --pipeline-model-parallel-size 16", ""),
        ("--train-iters 500000", "--train-samples 146484375"),
        ("--lr-decay-iters 430000", "--lr-decay-samples 126953125"),
    ):
        assert old in words
        words = words.replace(old, new)
    run, _ = parse_run(words.split(), environment={})
    assert run.batch.rampup_batch_size == (16, 16, 5859375)


def test_llama_style_script_runs_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    run, _ = parse_run(LLAMA_STYLE.split(), environment={})
    assert run.model.num_query_groups == 2
    assert run.model.position_embedding_type == "rope"
    assert run.data.train_data_path == ("0.7", "web", "0.3", "books")
    noted = [message.split()[1] for message in caplog.messages]
    assert noted.count("--use-flash-attn") == 1
    assert "--num-experts" not in noted
    assert "--tensor-model-parallel-size" not in noted


def test_no_environment_variable_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_DEVICE_MAX_CONNECTIONS", "NCCL_ALGO", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    run, _ = parse_run(small("--overlap-grad-reduce --deterministic-mode"))
    assert run.training.deterministic_mode


# ------------------------------------------------------------------------ checkpoint layer


def stored() -> dict[str, object]:
    values = run_of("--swiglu --disable-bias-linear --normalization RMSNorm --rotary-base 77")
    return json.loads(json.dumps(values.values()))  # type: ignore[no-any-return]


def test_checkpoint_arguments_fill_and_decide() -> None:
    words = (
        "--load d --use-checkpoint-args --micro-batch-size 2 --train-iters 10 --lr 1e-3 "
        "--mock-data --vocab-size 100 --seq-length 32 --normalization LayerNorm"
    )
    run, origins = parse_run(words.split(), read_checkpoint=lambda run: stored(), environment={})
    assert (run.model.num_layers, run.model.hidden_size) == (2, 64)
    assert (run.model.swiglu, run.model.add_bias_linear, run.model.rotary_base) == (True, False, 77)
    assert run.tokenizer.tokenizer_type == "NullTokenizer"
    assert (run.data.seq_length, str(origins["seq_length"])) == (32, "command line")
    assert run.model.normalization == "RMSNorm"
    assert str(origins["normalization"]) == "checkpoint (command line said LayerNorm)"
    assert str(origins["num_layers"]) == "checkpoint"
    assert str(origins["lr"]) == "command line"


def test_explicit_sizes_win_over_the_checkpoint() -> None:
    run = RunConfig(model=ModelConfig(num_layers=9))
    run, origins = with_checkpoint(run, {"num_layers": Origin("command line")}, stored())
    assert run.model.num_layers == 9
    assert origins["num_layers"].kind == "command line"
    assert run.model.hidden_size == 64


def test_checkpoint_is_not_read_without_the_flag() -> None:
    def never(run: RunConfig) -> dict[str, object]:
        raise AssertionError("read")

    parse_run(small("--load d"), read_checkpoint=never, environment={})


@pytest.mark.parametrize(
    ("words", "world", "expected"),
    [
        ("", 8, (2, 2, 1)),
        ("", 2, (1, 1, None)),
        ("--tensor-model-parallel-size 4", 8, (4, 1, None)),
        ("--context-parallel-size 2", 8, (2, 2, 1)),
        ("--context-parallel-size 2", 4, (1, 1, None)),
    ],
)
def test_sizes_of_a_checkpoint_are_taken_where_they_fit(
    words: str, world: int, expected: tuple[int, int, int | None]
) -> None:
    sizes = {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "num_layers_per_virtual_pipeline_stage": 1,
    }
    environment = {"RANK": "0", "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
    run, origins = parse_run(
        small(f"--load d --use-checkpoint-args --global-batch-size 32 {words}"),
        read_checkpoint=lambda run: {**stored(), **sizes},
        environment=environment,
    )
    parallel = run.parallel
    found = (
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.num_layers_per_virtual_pipeline_stage,
    )
    assert found == expected
    taken = origins["tensor_model_parallel_size"].kind == "checkpoint"
    assert taken == (expected == (2, 2, 1))


def test_wrong_values_of_a_checkpoint_are_faults() -> None:
    bad = {**stored(), "normalization": "none", "norm_epsilon": -1.0}
    words = small("--load d --use-checkpoint-args")
    with pytest.raises(ConfigError) as caught:
        parse_run(words, read_checkpoint=lambda run: bad, environment={})
    assert [one.id for one in caught.value.faults] == ["MC0004", "MC0005"]


# ----------------------------------------------------------------------------- reports


def test_print_config_of_a_run_reads_back(tmp_path: Path) -> None:
    words = LLAMA_STYLE.split()
    run, _ = parse_run(words, environment={})
    with pytest.raises(Information) as caught:
        parse_run([*words, "--print-config"], environment={})
    (tmp_path / "run.yaml").write_text(str(caught.value))
    again, origins = parse_run(["--config", str(tmp_path / "run.yaml")], environment={})
    assert again == run
    assert {origin.kind for origin in origins.values()} == {"file"}
    assert "  num_layers: 4  # command line\n" in str(caught.value)
    assert "  encoder_num_layers: 4  # default (derived from other values)\n" in str(caught.value)


def test_file_may_hold_accepted_and_refused_flags(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("use-flash-attn: true\ndistributed:\n  ddp_bucket_size: 5\nnum_experts: 0\n")
    parse_run(small(f"--config {path}"), environment={})
    assert len(caplog.messages) == 2
    path.write_text("num_experts: 8\noutput_bert_embeddings: true\ntensor-model-parallel-size: 2\n")
    assert ids(small(f"--config {path}")) == ["MC0011", "MC0011", "MC0901"]


def test_arguments_are_listed_sorted_between_dashes() -> None:
    lines = format_arguments(run_of()).splitlines()
    assert lines[0] == "------------------------ arguments ------------------------"
    assert lines[-1].startswith("--------------------")
    names = [line.split()[0] for line in lines[1:-1]]
    assert names == sorted(names, key=str.lower)
    assert len(names) == len(run_of().values())
    assert "  hidden_size ..................................... 64" in lines
    assert all(line[2 + len(line.split()[0])] == " " for line in lines[1:-1])
    assert {line.index(" ", 3 + len(line.split()[0])) for line in lines[1:-1]} == {51}


def test_resume_table() -> None:
    rows = [("lr", 0.1, 1e-5, 0.1), ("min_lr", None, 3, 3)]
    lines = format_resume_table(rows).splitlines()
    assert lines[0].split() == ["setting", "checkpoint", "command", "line", "used"]
    assert [line.split() for line in lines[2:]] == [
        ["lr", "0.1", "1e-05", "0.1"],
        ["min_lr", "-", "3", "3"],
    ]
    assert (
        len({line.index(word) for line, word in zip(lines[2:], ("1e-05", "3"), strict=True)}) == 1
    )


def test_component_can_be_replaced_in_python() -> None:
    run = run_of()
    wider = replace(run, model=replace(run.model, hidden_size=128)).resolved()
    assert wider.model.hidden_size == 128
