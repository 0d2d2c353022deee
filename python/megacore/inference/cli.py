"""`megacore generate`: continue prompts with a trained model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from megacore.config.faults import required
from megacore.config.parser import parse
from megacore.errors import ConfigError, DataError, UsageError
from megacore.inference.config import GenerateConfig


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Words after `megacore generate`.

    Returns:
        Exit code 0; failures are raised.
    """
    parsed = parse(
        [GenerateConfig],
        argv,
        prog="megacore generate",
        description="Continue prompts with a trained model.",
    )
    config: GenerateConfig = parsed.configs[GenerateConfig]
    if not config.load:
        raise ConfigError([required("--load")])
    prompts = _prompts(config)
    if not prompts:
        raise UsageError("megacore generate: give at least one --prompt, or --prompt-file FILE")
    if config.log_probs and not config.jsonl:
        raise UsageError("megacore generate: --log-probs needs --jsonl to have a place to go")
    if config.stream and config.jsonl:
        raise UsageError("megacore generate: --stream and --jsonl exclude each other")
    if config.greedy and (config.top_k > 1 or config.top_p > 0.0):
        raise UsageError("megacore generate: --greedy excludes --top-k and --top-p")
    _generate(config, config.load, prompts, sys.stdout)
    return 0


def _prompts(config: GenerateConfig) -> list[str]:
    prompts = list(config.prompt)
    if config.prompt_file == "-":
        prompts += _lines(sys.stdin.read())
    elif config.prompt_file is not None:
        try:
            prompts += _lines(Path(config.prompt_file).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{config.prompt_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{config.prompt_file}: not UTF-8: {error}") from error
    return prompts


def _lines(text: str) -> list[str]:
    # Only newlines end a prompt: str.splitlines would also cut at U+2028, form feeds and others.
    return text.removesuffix("\n").split("\n") if text else []


def _generate(config: GenerateConfig, directory: str, prompts: Sequence[str], out: TextIO) -> None:
    # torch takes a second to import; faults of the command line are reported before that.
    import torch

    from megacore.inference.engine import Engine
    from megacore.inference.loading import load_model
    from megacore.inference.sampling import SamplingParams

    params = SamplingParams(
        tokens_to_generate=config.tokens_to_generate,
        temperature=config.temperature,
        top_k=1 if config.greedy else config.top_k,
        top_p=config.top_p,
        seed=config.seed,
        stop=config.stop,
        log_probs=config.log_probs,
    )
    params.check()
    files = {
        name: value
        for name in ("vocab_file", "merge_file", "tokenizer_model")
        if (value := getattr(config, name)) is not None
    }
    model, tokenizer, model_config = load_model(
        directory,
        step=config.ckpt_step,
        dtype=config.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        tokenizer_files=files,
    )
    engine = Engine(
        model,
        tokenizer,
        max_length=model_config.max_position_embeddings,
        max_batch_size=1 if config.stream else config.max_batch_size,
    )
    printer = _Printer(prompts, out)
    started = time.perf_counter()
    results = engine.generate(prompts, params, on_text=printer.piece if config.stream else None)
    elapsed = time.perf_counter() - started
    if config.stream:
        printer.close()
    for result in results if not config.stream else ():
        if config.jsonl:
            record = {key: value for key, value in vars(result).items() if value is not None}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            out.write(f"{result.prompt}{result.text}\n\n")
    out.flush()
    count = sum(len(result.tokens) for result in results)
    sys.stderr.write(
        f"{count} tokens in {elapsed:.2f} s ({count / elapsed:.1f} tokens/s, "
        f"{len(prompts)} prompt{'s' if len(prompts) != 1 else ''}, "
        f"{str(model.dtype).removeprefix('torch.')} on {next(model.parameters()).device})\n"
    )


class _Printer:
    """Prints each prompt and its continuation as it grows; prompts come one after the other."""

    def __init__(self, prompts: Sequence[str], out: TextIO) -> None:
        self._prompts = prompts
        self._out = out
        self._shown = -1

    def piece(self, index: int, text: str) -> None:
        """Show the next piece of the continuation of prompt `index`."""
        self._show_prompts(index)
        self._out.write(text)
        self._out.flush()

    def close(self) -> None:
        """Show prompts that got no text, and end the last line."""
        self._show_prompts(len(self._prompts) - 1)
        self._out.write("\n")

    def _show_prompts(self, index: int) -> None:
        while self._shown < index:
            if self._shown >= 0:
                self._out.write("\n\n")
            self._shown += 1
            self._out.write(self._prompts[self._shown])
