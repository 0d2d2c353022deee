"""`megacore convert`, and tools/checkpoint/convert.py."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from megacore.checkpoint.convert.config import ConvertConfig
from megacore.checkpoint.convert.tool_config import ConvertToolConfig
from megacore.config.faults import fault
from megacore.config.parser import parse
from megacore.config.settings import refuse
from megacore.errors import EXIT_OK, EXIT_SIGTERM, CheckpointError, ConfigError, DataError

# torch takes a second to import; faults of the command line are reported before that.
if TYPE_CHECKING:
    from megacore.checkpoint.convert.model_stream import ModelDescription
    from megacore.checkpoint.convert.request import Request


def main(argv: Sequence[str] | None = None) -> int:
    """Converts a model from a command line; returns the exit code."""
    parsed = parse(
        [ConvertConfig],
        sys.argv[1:] if argv is None else argv,
        prog="megacore convert",
        description="Convert a model between formats: megacore convert SRC DST.",
        abbreviations=True,
    )
    config: ConvertConfig = parsed.configs[ConvertConfig]
    return _run(_request(config))


def tool_main(argv: Sequence[str] | None = None) -> int:
    """The same in the words of Megatron-LM's script; returns the exit code."""
    parsed = parse(
        [ConvertToolConfig],
        sys.argv[1:] if argv is None else argv,
        prog="convert.py",
        description="Convert a model between formats and layouts of processes.",
        abbreviations=True,
    )
    config: ConvertToolConfig = parsed.configs[ConvertToolConfig]
    return _run(_tool_request(config))


def _run(request: Request) -> int:
    from megacore.checkpoint.convert.request import carry_out

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        carry_out(request, out=sys.stdout, log=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    return EXIT_OK


def _stop(number: int, frame: FrameType | None) -> None:
    # Leaves through the context managers, which remove what is not published.
    raise SystemExit(EXIT_SIGTERM)


def _request(config: ConvertConfig) -> Request:
    import torch

    from megacore.checkpoint.convert import tokenizer_files
    from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions
    from megacore.checkpoint.convert.request import Request

    loader, source = config.source
    saver, destination = config.destination
    tokenizer = None
    if config.tokenizer_model is not None:
        tokenizer = tokenizer_files.of_model(Path(config.tokenizer_model))
    elif config.vocab_file is not None:
        tokenizer = tokenizer_files.of_vocabulary(Path(config.vocab_file), _path(config.merge_file))
    layout = (
        config.target_tensor_parallel_size,
        config.target_pipeline_parallel_size,
        config.target_num_virtual_stages,
        config.target_norms,
    )
    is_cut = saver == "legacy" or any(one is not None for one in layout)

    def check(description: ModelDescription, saver: str) -> tuple[str, ...]:
        refuse(config.target_faults(saver))
        return ()

    return Request(
        source=Path(source),
        destination=Path(destination),
        loader=loader,
        saver=saver,
        source_options=SourceOptions(step=config.ckpt_step),
        target_options=TargetOptions(
            tensor=config.target_tensor_parallel_size,
            pipeline=config.target_pipeline_parallel_size,
            virtual=config.target_num_virtual_stages,
            expert=config.target_expert_parallel_size,
            ckpt_format=config.target_ckpt_format or ("torch" if is_cut else "torch_dist"),
            fused_norms=None if config.target_norms is None else config.target_norms == "fused",
            max_shard_bytes=int(config.max_shard_size * 1e9),
            family=config.family,
            make_vocab_size_divisible_by=config.make_vocab_size_divisible_by,
        ),
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        vocab_size=config.true_vocab_size,
        tokenizer=tokenizer,
        overwrite=config.overwrite,
        report=_path(config.report),
        verify=config.verify,
        prompt=config.verify_prompt,
        tokens=config.verify_tokens,
        check=check,
    )


def _tool_request(config: ConvertToolConfig) -> Request:
    import torch

    from megacore.checkpoint.convert import tokenizer_files
    from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions
    from megacore.checkpoint.convert.request import Request

    loader = config.loader_name
    if loader == "llama_mistral":
        loader = "meta" if config.checkpoint_type == "meta" else "hf"
    tokenizer = None
    if config.tokenizer_model is not None:
        tokenizer = tokenizer_files.of_model(Path(config.tokenizer_model))
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    fused = config.saver_transformer_impl
    in_any_layout = config.model_type == "BERT" and config.saver_name == "core"
    return Request(
        source=Path(config.load_dir or ""),
        destination=Path(config.save_dir or ""),
        loader=loader,
        saver=config.saver_name,
        source_options=SourceOptions(position_embedding_type=config.position_embedding_type),
        target_options=TargetOptions(
            tensor=config.target_tensor_parallel_size,
            pipeline=config.target_pipeline_parallel_size,
            expert=config.target_expert_parallel_size,
            # torch_dist is for every layout, and the only one that holds other models than GPTs.
            ckpt_format="torch_dist" if in_any_layout else "torch",
            fused_norms=None if fused is None else fused == "transformer_engine",
        ),
        dtype=dtype,
        vocab_size=_true_size(config),
        tokenizer=tokenizer,
        allow_unknown=not config.checking,
        overwrite=config.overwrite,
        report=_path(config.report),
        verify=config.verify,
        notes=_accepted(config),
        check=lambda description, saver: _compared(config, description),
    )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _accepted(config: ConvertToolConfig) -> tuple[str, ...]:
    reasons = {
        "--megatron-path": (config.megatron_path, "no code of Megatron-LM is needed"),
        "--max-queue-size": (config.max_queue_size, "there is no queue of tensors"),
        "--loader-transformer-impl": (
            config.loader_transformer_impl,
            "which layers wrote the checkpoint is seen in it",
        ),
    }
    return tuple(
        f"{name} has no effect: {why}"
        for name, (value, why) in reasons.items()
        if value is not None
    )


def _compared(config: ConvertToolConfig, description: ModelDescription) -> tuple[str, ...]:
    """Notes on what the command line says about the model, against what the checkpoint says.

    Raises:
        CheckpointError: They contradict each other.
    """
    model = description.config
    if config.model_type is not None and config.model_type.lower() != model.model_family:
        raise CheckpointError(
            f"--model-type {config.model_type}: the model in {config.load_dir} is a "
            f"{model.model_family.upper()}"
        )
    asked = config.position_embedding_type
    if asked is not None and asked != model.position_embedding_type:
        raise CheckpointError(
            f"--position-embedding-type {asked}: the checkpoint says "
            f"{model.position_embedding_type}; leave the flag out"
        )
    if config.model_size is None:
        return ()
    return (
        f"--model-size {config.model_size}: the sizes come from the checkpoint, which has "
        f"{model.num_layers} layers of width {model.hidden_size}",
    )


def _true_size(config: ConvertToolConfig) -> int | None:
    """The true vocabulary size that the command line tells.

    Raises:
        ConfigError: Its two ways to tell it differ.
        DataError: The vocabulary file cannot be read.
    """
    if config.vocab_file is None:
        return config.true_vocab_size
    entries = _count_entries(Path(config.vocab_file))
    if config.true_vocab_size not in (None, entries):
        given = {
            "--true-vocab-size": config.true_vocab_size,
            "--vocab-file": f"{config.vocab_file} ({entries} entries)",
        }
        raise ConfigError([fault("MC1006", given)])
    return entries


def _count_entries(path: Path) -> int:
    """Tokens of a vocab.json (a JSON object), or lines of a vocab.txt."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the vocabulary cannot be read: {error}") from error
    if path.suffix != ".json":
        return len(text.splitlines())
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise DataError(f"{path}: a JSON object of token and id expected")
    return len(entries)
