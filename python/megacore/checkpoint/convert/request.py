"""Carrying out one conversion that a command line asks for, with progress and a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

import torch

from megacore.checkpoint.convert import registry, tokenizer_files
from megacore.checkpoint.convert.engine import Plan, Progress, convert
from megacore.checkpoint.convert.model_stream import (
    ModelDescription,
    Source,
    SourceOptions,
    TargetOptions,
)
from megacore.checkpoint.convert.report import dtype_name
from megacore.checkpoint.convert.tokenizer_files import TokenizerFiles
from megacore.checkpoint.convert.verify import Verification, check_prompt, verify
from megacore.durable import published
from megacore.errors import CheckpointError

_LINE_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One conversion.

    Attributes:
        source: Model to read.
        destination: Directory to make.
        loader: Name of its format, None to find it out.
        saver: Name of the format to write, None for hf from core or legacy, and core from others.
        source_options: What the source does not say itself.
        target_options: What the target is to look like.
        dtype: Dtype to convert to, None keeps each tensor's own.
        vocab_size: True vocabulary size instead of the source's.
        tokenizer: Tokenizer instead of the source's.
        allow_unknown: Leave out tensors that are not known, instead of refusing.
        overwrite: Replace a checkpoint at the destination.
        report: File for the table, as JSON.
        verify: Compare the logits of both sides.
        prompt: Text to verify with.
        tokens: Token ids to verify with.
        notes: Remarks on the command line.
        check: Called with the description of the source and the name of the saver before anything
            is written; raises if the command line does not fit them. Its result are more notes.
    """

    source: Path
    destination: Path
    loader: str | None = None
    saver: str | None = None
    source_options: SourceOptions = field(default_factory=SourceOptions)
    target_options: TargetOptions = field(default_factory=TargetOptions)
    dtype: torch.dtype | None = None
    vocab_size: int | None = None
    tokenizer: TokenizerFiles | None = None
    allow_unknown: bool = False
    overwrite: bool = False
    report: Path | None = None
    verify: bool = False
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    check: Callable[[ModelDescription, str], tuple[str, ...]] | None = None


def carry_out(request: Request, *, out: TextIO, log: TextIO) -> None:
    """Converts, verifies and reports.

    Args:
        request: What is asked for.
        out: For the result.
        log: For progress and remarks.

    Raises:
        CheckpointError: It does not fit, cannot be read or written, or was found wrong; nothing
            was published.
    """
    _refuse_overlap(request.source, request.destination)
    if request.report is not None and not request.report.absolute().parent.is_dir():
        raise CheckpointError(f"{request.report}: its directory does not exist")
    started = time.perf_counter()
    loader = request.loader or registry.detect(request.source)
    saver = request.saver or ("hf" if loader in ("core", "legacy") else "core")
    source = registry.open_source(request.source, request.source_options, name=loader)
    try:
        description = source.description
        notes = (*request.notes, *description.remarks)
        if request.check is not None:
            notes += request.check(description, saver)
        for note in notes:
            log.write(f"note: {note}\n")
        target = registry.make_target(saver, request.target_options)
        tokens = _prompt(request, description) if request.verify else None
        found: list[Verification] = []

        def checked(plan: Plan, scratch: Path) -> None:
            log.write("verifying\n")
            found.append(
                _verification(
                    request, plan, source, scratch, loader=loader, saver=saver, tokens=tokens
                )
            )
            if not found[0].passed:
                raise CheckpointError(
                    "the converted model does not compute what its source computes; nothing was "
                    "published:\n" + found[0].text()
                )

        plan = convert(
            source,
            target,
            request.destination,
            dtype=request.dtype,
            vocab_size=request.vocab_size,
            tokenizer=request.tokenizer,
            allow_unknown=request.allow_unknown,
            overwrite=request.overwrite,
            verify=checked if request.verify else None,
            progress=_progress(log),
        )
    finally:
        source.close()
    out.write(plan.table.text() + "\n")
    for one in found:
        out.write("verified: " + one.text() + "\n")
    if request.report is not None:
        _write_report(request, plan, target.format_name, found)
    elapsed = time.perf_counter() - started
    out.write(
        f"wrote {request.destination} ({target.format_name}): {len(plan.tensors)} tensors, "
        f"{plan.num_bytes / 1e6:.1f} MB in {elapsed:.1f} s, from {description.source_format}\n"
    )
    if not plan.description.tokenizer:
        out.write("no tokenizer files travelled along\n")


def _refuse_overlap(source: Path, destination: Path) -> None:
    here, there = source.resolve(), destination.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise CheckpointError(
            f"{destination}: the target must not be the source, hold it or lie inside of it"
        )


def _progress(log: TextIO) -> Progress:
    started = shown = time.perf_counter()
    terminal = log.isatty()

    def show(done: int, count: int, num_bytes: int, all_bytes: int, name: str) -> None:
        nonlocal shown
        now = time.perf_counter()
        if name and now - shown < (0.1 if terminal else _LINE_EVERY_S):
            return
        shown = now
        rate = num_bytes / max(now - started, 1e-9)
        line = (
            f"{done}/{count} tensors, {num_bytes / 1e6:.1f}/{all_bytes / 1e6:.1f} MB, "
            f"{rate / 1e6:.0f} MB/s  {name}"
        )
        log.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
        if terminal and not name:
            log.write("\n")
        log.flush()

    return show


def _verification(
    request: Request,
    plan: Plan,
    source: Source,
    scratch: Path,
    *,
    loader: str,
    saver: str,
    tokens: list[int] | None,
) -> Verification:
    target = registry.open_source(scratch, SourceOptions(), name=saver)
    try:
        return verify(
            plan,
            source,
            target,
            tokens=tokens,
            source_directory=request.source if loader == "hf" else None,
            target_directory=scratch if saver == "hf" else None,
        )
    finally:
        target.close()


def _prompt(request: Request, description: ModelDescription) -> list[int] | None:
    """The tokens to verify with, None for the default; checked before any work."""
    if request.prompt is not None:
        tokenizer = tokenizer_files.built(
            request.tokenizer or tokenizer_files.tokenizer_of(description)
        )
        tokens = tokenizer.tokenize(request.prompt)
    elif request.tokens is not None:
        tokens = list(request.tokens)
    else:
        return None
    check_prompt(tokens, description)
    return tokens


def _write_report(
    request: Request, plan: Plan, format_name: str, found: list[Verification]
) -> None:
    assert request.report is not None
    description = plan.description
    values: dict[str, Any] = {
        "source": str(request.source),
        "source_format": description.source_format,
        "target": str(request.destination),
        "target_format": format_name,
        "model_type": description.model_type,
        "config": {
            one.name: getattr(description.config, one.name) for one in fields(description.config)
        },
        "vocab_size": description.vocab_size,
        "padded_vocab_size": description.padded_vocab_size,
        "dtype": dtype_name(description.dtype),
        "iteration": description.iteration,
        **plan.table.values(),
    }
    if found:
        values["verification"] = {
            "tokens": found[0].tokens,
            "bound": found[0].bound,
            "largest_logit": found[0].largest,
            "comparisons": [vars(one) for one in found[0].comparisons],
            "remarks": found[0].remarks,
        }
    try:
        with published(request.report) as file:
            file.write(json.dumps(values, indent=1).encode() + b"\n")
    except OSError as error:
        raise CheckpointError(
            f"{request.report}: the report cannot be written ({error.strerror}); "
            f"{request.destination} is complete"
        ) from error
