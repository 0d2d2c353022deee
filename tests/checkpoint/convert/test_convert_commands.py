"""`megacore convert` and tools/checkpoint/convert.py, from their command lines."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_writer import ARRAY, F32, FLOAT32, STRING, UINT32, encode, gguf
from llama_peers import random_llama, renamed
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megacore.checkpoint.convert import registry
from megacore.checkpoint.convert.cli import main, tool_main
from megacore.checkpoint.convert.config import ConvertConfig, split_prefix
from megacore.checkpoint.convert.model_stream import SourceOptions
from megacore.checkpoint.convert.registry import LOADERS, SAVERS, open_source
from megacore.checkpoint.convert.tool_config import ConvertToolConfig
from megacore.cli import dispatch, run
from megacore.config.parser import parse
from megacore.errors import ConfigError

ROOT = Path(__file__).parents[3]
TOOL = "--model-type GPT --load-dir a --save-dir b"
LLAMA = "--model-size llama2-7B --checkpoint-type hf --tokenizer-model t"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A Hugging Face directory of a small Llama, with a tokenizer of its own."""
    place = tmp_path_factory.mktemp("llama") / "hf"
    random_llama(vocab_size=300).save_pretrained(place)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["a small text for a small tokenizer"] * 9, trainer)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text('{"eos_token": "<s>", "bos_token": "<s>"}')
    return place


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_there_and_back_with_every_step_verified(llama, tmp_path, capsys) -> None:
    core, back, report = tmp_path / "core", tmp_path / "back", tmp_path / "report.json"
    words = f"{llama} core:{core} --target-tensor-parallel-size 2 --verify --verify-prompt small"
    words += f" --target-pipeline-parallel-size 2 --report {report}"
    assert run(dispatch, ["convert", *words.split()]) == 0
    shown = capsys.readouterr()
    assert "model.layers.*.self_attn.{q,k,v}_proj.weight" in shown.out
    assert "verified: source, run by transformers: max |difference|" in shown.out
    assert f"wrote {core} (Megatron core" in shown.out
    assert "15/15 tensors" in shown.err
    assert (core / "tokenizer/tokenizer.json").read_bytes() == (
        llama / "tokenizer.json"
    ).read_bytes()
    values = json.loads(report.read_text())
    assert len(values["tensors"]) == 15
    assert values["config"]["num_query_groups"] == 2
    assert (values["vocab_size"], values["padded_vocab_size"]) == (300, 512)
    assert len(values["verification"]["comparisons"]) == 2
    assert run(main, [str(core), str(back), "--verify", "--verify-tokens", "5", "299", "0"]) == 0
    assert same_weights(back, llama)
    assert (back / "tokenizer.json").exists()
    assert (back / "tokenizer_config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "core", "report.json"]


def test_the_tool_does_not_overrule_a_checkpoint(llama, tmp_path, capsys) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert run(main, [str(llama), f"legacy:{first}"]) == 0
    words = f"--model-type GPT --load-dir {first} --save-dir {second}"
    words += " --position-embedding-type learned_absolute"
    assert run(tool_main, words.split()) == 1
    assert "the checkpoint says rope; leave the flag out" in capsys.readouterr().err
    assert not second.exists()


def test_a_core_target_without_a_layout_is_for_every_layout(llama, tmp_path, capsys) -> None:
    made, back = tmp_path / "made", tmp_path / "back"
    assert run(main, [str(llama), str(made), "--verify"]) == 0
    assert "(megacore, torch_dist): 15 tensors" in capsys.readouterr().out
    assert run(main, [str(made), str(back)]) == 0
    assert same_weights(back, llama)


def test_the_llama_command_of_the_reference(llama, tmp_path, capsys) -> None:
    words = (
        f"--model-type GPT --loader llama_mistral --load-dir {llama} --model-size llama2-7B "
        f"--checkpoint-type hf --tokenizer-model {llama} --saver mcore "
        "--target-tensor-parallel-size 2 --target-pipeline-parallel-size 1 "
        f"--save-dir {tmp_path / 'core'} --bf16 --max-queue-size 20 --megatron-path nowhere"
    )
    command = [sys.executable, str(ROOT / "tools/checkpoint/convert.py"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "note: --max-queue-size has no effect: there is no queue of tensors" in done.stderr
    assert "note: --megatron-path has no effect" in done.stderr
    assert "which has 2 layers of width 64" in done.stderr
    source = open_source(tmp_path / "core", SourceOptions())
    assert source.description.dtype == torch.bfloat16
    assert source.description.source_layout.tensor == 2
    expected = load_file(llama / "model.safetensors")["lm_head.weight"].bfloat16()
    assert torch.equal(source.read("output_layer.weight")[:300], expected)


def test_the_resizing_command_of_the_reference(llama, tmp_path) -> None:
    first, second, back = tmp_path / "a", tmp_path / "b", tmp_path / "hf"
    assert run(main, [str(llama), f"legacy:{first}", "--target-tensor-parallel-size", "2"]) == 0
    words = (
        f"--model-type GPT --loader megatron --saver megatron --target-tensor-parallel-size 1 "
        f"--target-pipeline-parallel-size 2 --load-dir {first} --save-dir {second} "
        "--true-vocab-size 300 --loader-transformer-impl local --saver-transformer-impl local "
        "--position-embedding-type rope --no-checking"
    )
    assert run(tool_main, words.split()) == 0
    assert run(main, [str(second), str(back), "--true-vocab-size", "300"]) == 0
    assert same_weights(back, llama)


def test_gguf_to_hugging_face(tmp_path, capsys) -> None:
    model = random_llama()
    config = model.config
    metadata = [
        ("general.architecture", STRING, "llama"),
        ("llama.block_count", UINT32, 2),
        ("llama.context_length", UINT32, 64),
        ("llama.embedding_length", UINT32, 64),
        ("llama.feed_forward_length", UINT32, 96),
        ("llama.attention.head_count", UINT32, 8),
        ("llama.attention.head_count_kv", UINT32, config.num_key_value_heads),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
    ]
    tensors = [
        (name, tuple(value.shape), F32, encode(value.numpy(), F32))
        for name, value in renamed(model, 0).items()
    ]
    (tmp_path / "m.gguf").write_bytes(gguf(metadata, tensors))
    words = ["--to", "hf", "--family", "llama", "--max-shard-size", "0.0001", "--verify"]
    assert run(main, [str(tmp_path / "m.gguf"), str(tmp_path / "hf"), *words]) == 0
    found: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "hf").glob("model-*.safetensors"):
        found.update(load_file(file))
    expected = {name: value.detach() for name, value in model.named_parameters()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "holds no tokenizer" in capsys.readouterr().err


def test_a_gguf_file_brings_its_tokenizer_along(llama, tmp_path, capsys) -> None:
    model = json.loads((llama / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    peer = random_llama(vocab_size=len(tokens))
    metadata = [
        ("general.architecture", STRING, "llama"),
        ("llama.block_count", UINT32, 2),
        ("llama.context_length", UINT32, 64),
        ("llama.embedding_length", UINT32, 64),
        ("llama.feed_forward_length", UINT32, 96),
        ("llama.attention.head_count", UINT32, 8),
        ("llama.attention.head_count_kv", UINT32, 2),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.merges", (ARRAY, STRING), [" ".join(pair) for pair in model["merges"]]),
        ("tokenizer.ggml.eos_token_id", UINT32, tokens.index("<s>")),
    ]
    tensors = [
        (name, tuple(value.shape), F32, encode(value.numpy(), F32))
        for name, value in renamed(peer, 0).items()
    ]
    file, made = tmp_path / "m.gguf", tmp_path / "made"
    file.write_bytes(gguf(metadata, tensors))
    words = f"{file} {made} --target-pipeline-parallel-size 2 --verify --verify-prompt small"
    assert run(main, words.split()) == 0
    found = []
    for load in (file, made):
        capsys.readouterr()
        words = f"generate --load {load} --prompt small --greedy --jsonl --tokens-to-generate 9"
        assert run(dispatch, words.split()) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    ids = torch.tensor([Tokenizer.from_file(str(llama / "tokenizer.json")).encode("small").ids])
    with torch.no_grad():
        expected = peer(ids).logits[0, -1].argmax().item()
    assert found[0]["prompt_tokens"] == ids[0].tolist()
    assert found[0]["tokens"][0] == expected


def test_a_target_that_computes_something_else_is_not_published(
    llama, tmp_path, monkeypatch, capsys
) -> None:
    from megacore.checkpoint.convert.hf.target import HuggingFaceTarget

    write = HuggingFaceTarget.write

    def exchanging(self, name, tensor):
        write(self, name, tensor.flip(0) if name.endswith("0.mlp.linear_fc1.weight") else tensor)

    monkeypatch.setattr(HuggingFaceTarget, "write", exchanging)
    assert run(main, [str(llama), f"hf:{tmp_path / 'made'}", "--verify"]) == 1
    assert "does not compute what its source computes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "--to hf",
        "--to core --target-ckpt-format torch",
        "--to core --target-ckpt-format torch_dist",
    ],
)
def test_a_device_that_takes_no_more_is_one_message(llama, tmp_path, capsys, words) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40000, before[1]))
    try:
        code = run(main, [str(llama), str(tmp_path / "made"), *words.split()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "File too large; nothing was published" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--verify --verify-tokens 300", "needs tokens from 0 to 299, found [300]"),
        ("--report nowhere/at/all.json", "its directory does not exist"),
        ("--true-vocab-size 301", "301 is larger than the 300 rows"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    llama, tmp_path, capsys, monkeypatch, words, message
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, [str(llama), "made", *words.split()]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_needs_a_tokenizer(llama, tmp_path, capsys) -> None:
    words = f"{llama} {tmp_path / 'bare'} --to hf".split()
    assert run(main, words) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    words = f"{tmp_path / 'bare'} {tmp_path / 'made'} --verify --verify-prompt small".split()
    assert run(main, words) == 1
    assert "there is no tokenizer; give --tokenizer-model" in capsys.readouterr().err
    assert run(main, [*words, "--tokenizer-model", str(llama)]) == 0
    assert (tmp_path / "made/tokenizer/tokenizer.json").exists()


@pytest.mark.parametrize("place", ["", "inside", ".."])
def test_source_and_target_must_not_overlap(llama, capsys, place) -> None:
    before = sorted(llama.iterdir())
    assert run(main, [str(llama), f"hf:{llama / place}", "--overwrite"]) == 1
    assert "must not be the source" in capsys.readouterr().err
    assert sorted(llama.iterdir()) == before


def test_a_directory_with_a_model_in_several_formats_is_one_of_hugging_face(
    llama, tmp_path
) -> None:
    place = tmp_path / "several"
    shutil.copytree(llama, place)
    (place / "model.gguf").write_bytes(b"GGUF")
    (place / "params.json").write_text("{}")
    (place / "consolidated.safetensors").write_bytes(b"")
    assert registry.detect(place) == "hf"
    (place / "model.safetensors").unlink()
    assert registry.detect(place) == "gguf"
    (place / "model.gguf").unlink()
    assert registry.detect(place) == "meta"


def test_nothing_that_can_be_read(tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run(main, [str(tmp_path / "empty"), str(tmp_path / "made")]) == 1
    assert "the format is not recognised" in capsys.readouterr().err
    assert run(main, [str(tmp_path / "nowhere"), str(tmp_path / "made")]) == 1
    assert "no such file or directory" in capsys.readouterr().err


def faults_of(kind, words: str) -> list[str]:
    try:
        parse([kind], words.split(), prog="t", description="", abbreviations=True)
    except ConfigError as error:
        return [one.id for one in error.faults]
    return []


TOOL_FAULTS = [
    ("MC0101", "--loader core --saver core"),
    ("MC0101", f"{TOOL} --loader llama_mistral --saver core"),
    ("MC0004", f"{TOOL} --loader llama2_hf --saver core"),
    ("MC0004", f"{TOOL} --loader core --saver vllm"),
    ("MC1001", f"{TOOL} --loader core --saver core --model-size llama2-7B"),
    ("MC1001", f"{TOOL} --loader core --saver hf --target-tensor-parallel-size 2"),
    ("MC1001", f"{TOOL} --loader core --saver core --bf16"),
    ("MC1002", f"{TOOL} --loader mixtral_hf --saver mcore --tokenizer-model t"),
    ("MC1002", f"{TOOL} --loader core --saver core --target-expert-parallel-size 2"),
    ("MC0501", f"{TOOL} --loader llama_mistral --saver core {LLAMA} --bf16 --fp16"),
    ("MC0001", f"{TOOL} --loader core --saver core --target-context-parallel-size 2"),
]
FAULTS = [
    ("MC0101", "a"),
    ("MC0007", "a b c"),
    ("MC1002", "a b --target-expert-parallel-size 2"),
    ("MC1003", "a b --verify --verify-prompt x --verify-tokens 1 2"),
    ("MC1004", "a b --verify-tokens 1"),
    ("MC1007", "a b --tokenizer-model t --vocab-file v"),
    ("MC0101", "a b --merge-file m"),
    ("MC1005", "a hf:b --target-tensor-parallel-size 2"),
    ("MC1005", "a legacy:b --target-ckpt-format torch"),
    ("MC1005", "a core:b --max-shard-size 2"),
    ("MC0004", "a b --to vllm"),
]


@pytest.mark.parametrize(("fault_id", "words"), TOOL_FAULTS)
def test_faults_of_the_tool(fault_id, words) -> None:
    assert set(faults_of(ConvertToolConfig, words)) == {fault_id}


@pytest.mark.parametrize(("fault_id", "words"), FAULTS)
def test_faults_of_the_verb(fault_id, words) -> None:
    assert set(faults_of(ConvertConfig, words)) == {fault_id}


def test_a_flag_that_the_found_format_lacks_is_refused_before_anything(
    llama, tmp_path, capsys
) -> None:
    core = tmp_path / "core"
    assert run(main, [str(llama), str(core), "--target-tensor-parallel-size", "1"]) == 0
    # The target of a core model is a Hugging Face one by default, which has no layout.
    words = [str(core), str(tmp_path / "x"), "--target-tensor-parallel-size", "2"]
    assert run(main, words) == 2
    assert "MC1005" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("given", "file_size", "expected"), [(None, 3, 3), (3, 3, 3), (4, 3, "MC1006")]
)
def test_true_size_from_a_vocabulary_file(tmp_path, given, file_size, expected, capsys) -> None:
    from megacore.checkpoint.convert.cli import _true_size

    entries = {f"t{i}": i for i in range(file_size)}
    (tmp_path / "vocab.json").write_text(json.dumps(entries))
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n")
    for name in ("vocab.json", "vocab.txt"):
        config = ConvertToolConfig(true_vocab_size=given, vocab_file=str(tmp_path / name))
        if expected == "MC1006":
            with pytest.raises(ConfigError, match="MC1006"):
                _true_size(config)
        else:
            assert _true_size(config) == expected


LOADER_LINES = [
    f"{TOOL} --loader {name} --saver {saver} --true-vocab-size 5 --vocab-file v "
    "--megatron-path m --position-embedding-type rope --loader-transformer-impl local "
    "--target-tensor-parallel-size 2 --target-pipeline-parallel-size 2 "
    "--saver-transformer-impl transformer_engine --max-queue-size 3 --no-checking"
    for name in ("core", "mcore", "legacy", "megatron")
    for saver in ("core", "mcore", "legacy", "megatron")
]
LOADER_LINES += [
    f"{TOOL} --loader llama_mistral --saver mcore --model-size {size} --checkpoint-type {kind} "
    "--tokenizer-model t --bf16 --true-vocab-size 5 --vocab-file v --megatron-path m "
    "--loader-transformer-impl transformer_engine --target-expert-parallel-size 1"
    for size, kind in (("llama3-8B", "hf"), ("mistral-7Bf", "hf"), ("llama2-70B", "meta"))
]


@pytest.mark.parametrize("words", LOADER_LINES)
def test_every_flag_of_the_reference_is_read(words) -> None:
    parsed = parse([ConvertToolConfig], words.split(), prog="t", description="")
    config = parsed.configs[ConvertToolConfig]
    assert (config.true_vocab_size, config.vocab_file, config.megatron_path) == (5, "v", "m")
    assert (config.load_dir, config.save_dir, config.model_type) == ("a", "b", "GPT")
    assert config.checking is ("--no-checking" not in words)


def test_every_name_has_a_module() -> None:
    from importlib import import_module

    for name, module in LOADERS.items():
        assert callable(import_module(module).open_source), name
        looked_for = name in registry._LOOKED_FOR
        assert callable(getattr(import_module(module), "matches", None)) or not looked_for, name
    for name, module in SAVERS.items():
        assert callable(import_module(module).make_target), name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hf:a/b", ("hf", "a/b")),
        ("megatron:a", ("legacy", "a")),
        ("mcore:a", ("core", "a")),
        ("a:b", (None, "a:b")),
        ("hf", (None, "hf")),
    ],
)
def test_prefixes(path, expected) -> None:
    assert split_prefix(path) == expected


@pytest.mark.parametrize("words", ["a b --to hf", "--to hf a b", "a --to hf b", "a --verify b"])
def test_paths_may_stand_between_flags(words) -> None:
    parsed = parse([ConvertConfig], words.split(), prog="t", description="")
    assert parsed.configs[ConvertConfig].paths == ("a", "b")
