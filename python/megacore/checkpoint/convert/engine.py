"""The engine of conversion: checks that everything fits, streams tensors, publishes at the end.

At any time at most one canonical tensor is held here (and its copy, when its rows or its dtype
change), besides what source and target keep for the pieces that they put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint.convert.model_stream import (
    VOCABULARY_WEIGHTS,
    ModelDescription,
    Source,
    Target,
    TensorInfo,
)
from megacore.checkpoint.convert.publish import Publication
from megacore.checkpoint.convert.report import Row, Table
from megacore.checkpoint.convert.tokenizer_files import (
    TokenizerFiles,
    copy_tokenizer,
    placed_tokenizer,
    tokenizer_of,
)
from megacore.errors import CheckpointError
from megacore.models.select import parameter_shapes

_MAX_FAULTS_SHOWN = 100

# Called with (number of tensors done, tensors in all, bytes done, bytes in all, name of the next).
Progress = Callable[[int, int, int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a conversion will do; nothing has been read or written yet.

    Attributes:
        description: The model as it will be written.
        tokenizer: Its tokenizer, with the files to copy.
        tensors: Canonical name -> shape and dtype as written, in the order of the model.
        table: Where every tensor comes from, and the tensors of the source that stay behind.
    """

    description: ModelDescription
    tokenizer: TokenizerFiles
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    table: Table = field(default_factory=Table)

    @property
    def num_elements(self) -> int:
        """Elements of all tensors as written."""
        return sum(math.prod(info.shape) for info in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as written."""
        return sum(math.prod(info.shape) * info.dtype.itemsize for info in self.tensors.values())


def expected_tensors(description: ModelDescription) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of everything that the described model consists of.

    Raises:
        CheckpointError: There is no such kind of model (yet).
        ConfigError: Its sizes do not fit together.
    """
    if description.model_type != "GPT":
        raise CheckpointError(
            f"models of type {description.model_type} cannot be converted: only GPT can"
        )
    return parameter_shapes(description.config, padded_vocab_size=description.padded_vocab_size)


def make_plan(
    source: Source,
    target: Target,
    *,
    dtype: torch.dtype | None = None,
    vocab_size: int | None = None,
    tokenizer: TokenizerFiles | None = None,
    allow_unknown: bool = False,
) -> Plan:
    """Compares what the source has with what its model needs, and decides sizes and dtypes.

    Args:
        source: Where the model comes from.
        target: Where it goes.
        dtype: Dtype to convert floating-point tensors to; None keeps each one's own.
        vocab_size: True vocabulary size instead of the source's.
        tokenizer: Tokenizer instead of the source's.
        allow_unknown: Leave out tensors that are not known, instead of refusing.

    Raises:
        CheckpointError: Tensors are missing, not known, or do not fit (all of them are listed),
            or the target cannot hold the model.
    """
    before = source.description
    if vocab_size is not None:
        before = replace(before, vocab_size=vocab_size)
    if tokenizer is None:
        tokenizer = tokenizer_of(before)
    expected = expected_tensors(before)
    left_out = source.unmapped()
    if allow_unknown:
        left_out = {name: reason or "not known" for name, reason in left_out.items()}
    _refuse_misfits(source, expected, left_out)
    rows = target.vocabulary_rows(before)
    _check_rows(rows, before)
    description = replace(
        before,
        padded_vocab_size=rows,
        dtype=dtype or before.dtype,
        tokenizer=placed_tokenizer(tokenizer, target.tokenizer_folder),
        tokenizer_files=tokenizer.files,
    )
    plan = Plan(description=description, tokenizer=tokenizer)
    for name, shape in expected.items():
        info = source.info(name)
        resized = (rows, *shape[1:]) if name in VOCABULARY_WEIGHTS else shape
        kept = info.dtype if dtype is None or not info.dtype.is_floating_point else dtype
        plan.tensors[name] = TensorInfo(resized, kept)
        plan.table.rows.append(
            Row(name=name, origins=source.origins(name), found=info, written=plan.tensors[name])
        )
    plan.table.left_out.update(left_out)
    return plan


def check_source(source: Source) -> None:
    """Refuses a source that does not have exactly the tensors of its model.

    Raises:
        CheckpointError: Tensors are missing, not known or do not fit; all of them are listed.
    """
    _refuse_misfits(source, expected_tensors(source.description), source.unmapped())


def _refuse_misfits(
    source: Source, expected: dict[str, tuple[int, ...]], left_out: dict[str, str]
) -> None:
    names = source.names()
    found = set(names)
    faults = [
        f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found
    ]
    faults += [f"not part of the model: {name}" for name in names if name not in expected]
    for name in names:
        if name in expected and source.info(name).shape != expected[name]:
            faults.append(
                f"{name}: expected shape {list(expected[name])}, "
                f"found {list(source.info(name).shape)} ({', '.join(source.origins(name))})"
            )
    faults += [f"not known: {name}" for name, reason in left_out.items() if not reason]
    if faults:
        more = len(faults) - _MAX_FAULTS_SHOWN
        shown = faults[:_MAX_FAULTS_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
        raise CheckpointError(
            f"the tensors of the source ({source.description.source_format}) are not those of its "
            "model:\n  " + "\n  ".join(shown)
        )


def _check_rows(rows: int, description: ModelDescription) -> None:
    known = description.vocab_size
    if known is not None and known > description.padded_vocab_size:
        raise CheckpointError(
            f"the true vocabulary size {known} is larger than the {description.padded_vocab_size} "
            "rows of the word embedding"
        )
    if known is None and rows < description.padded_vocab_size:
        raise CheckpointError(
            f"the target wants {rows} vocabulary rows, the source has "
            f"{description.padded_vocab_size} and does not say how many of them are padding: give "
            "--true-vocab-size"
        )
    if known is not None and rows < known:
        raise CheckpointError(
            f"the target wants {rows} vocabulary rows, fewer than the true size {known}"
        )


def prepared(plan: Plan, source: Source, name: str) -> Tensor:
    """A tensor of the source with the rows and the dtype that the plan says.

    Raises:
        CheckpointError: It is damaged, not as announced, or has values that the dtype cannot hold.
    """
    wanted = plan.tensors[name]
    tensor = source.read(name)
    if tuple(tensor.shape) != source.info(name).shape:
        raise CheckpointError(
            f"{name}: read with shape {list(tensor.shape)}, but the headers say "
            f"{list(source.info(name).shape)}"
        )
    if name in VOCABULARY_WEIGHTS and tensor.shape[0] != wanted.shape[0]:
        tensor = _with_rows(tensor, wanted.shape[0], plan.description.vocab_size)
    if tensor.dtype == wanted.dtype:
        return tensor
    cast = tensor.to(wanted.dtype)
    if torch.finfo(wanted.dtype).max < torch.finfo(tensor.dtype).max:
        lost = int((~cast.isfinite() & tensor.isfinite()).sum())
        if lost:
            raise CheckpointError(
                f"{name}: {lost} values are too large for "
                f"{str(wanted.dtype).removeprefix('torch.')}; choose another --dtype"
            )
    return cast


def _with_rows(tensor: Tensor, rows: int, vocab_size: int | None) -> Tensor:
    """Padding rows cut, or added as Megatron-LM does: copies of the last row that means something.

    Rows of padding that both sizes have are kept, so that a round trip changes nothing.
    """
    if rows <= tensor.shape[0]:
        return tensor[:rows]
    last = tensor[(vocab_size or tensor.shape[0]) - 1]
    return torch.cat([tensor, last.expand(rows - tensor.shape[0], *last.shape)])


def convert(
    source: Source,
    target: Target,
    destination: Path,
    *,
    dtype: torch.dtype | None = None,
    vocab_size: int | None = None,
    tokenizer: TokenizerFiles | None = None,
    allow_unknown: bool = False,
    overwrite: bool = False,
    verify: Callable[[Plan, Path], None] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Converts a model; `destination` appears complete, or nothing changes.

    Args:
        source: Where the model comes from; stays open.
        target: Where it goes; used once.
        destination: Directory to make.
        dtype: Dtype to convert to; None keeps each tensor's own.
        vocab_size: True vocabulary size instead of the source's.
        tokenizer: Tokenizer instead of the source's.
        allow_unknown: Leave out tensors that are not known, instead of refusing.
        overwrite: Replace a checkpoint that is there.
        verify: Called with the plan and the finished, not yet published directory; raises when
            that must not be published.
        progress: Called before every tensor and once at the end.

    Returns:
        What was done.

    Raises:
        CheckpointError: It does not fit, cannot be read or written, or was found wrong.
    """
    plan = make_plan(
        source,
        target,
        dtype=dtype,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        allow_unknown=allow_unknown,
    )
    with Publication(destination, overwrite=overwrite, num_bytes=plan.num_bytes) as scratch:
        copy_tokenizer(scratch, plan.tokenizer, target.tokenizer_folder)
        target.begin(scratch, plan.description, plan.tensors)
        done = num_bytes = 0
        for name in plan.tensors:
            if progress is not None:
                progress(done, len(plan.tensors), num_bytes, plan.num_bytes, name)
            tensor = prepared(plan, source, name)
            target.write(name, tensor)
            done, num_bytes = done + 1, num_bytes + tensor.numel() * tensor.element_size()
            del tensor
        target.finish()
        if progress is not None:
            progress(done, len(plan.tensors), num_bytes, plan.num_bytes, "")
        for row in plan.table.rows:
            row.destinations = target.destinations(row.name)
        if verify is not None:
            verify(plan, scratch)
    return plan
