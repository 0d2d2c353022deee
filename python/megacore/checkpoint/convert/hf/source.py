"""A Hugging Face directory as a source of canonical tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.convert.hf.families import family_of
from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.files import DirectoryTensors, common_dtype, read_json
from megacore.checkpoint.convert.hf.origin import ARGUMENT, Origin
from megacore.checkpoint.convert.hf.rules import Rule
from megacore.checkpoint.convert.model_stream import (
    VOCABULARY_WEIGHTS,
    ModelDescription,
    SourceOptions,
    TensorInfo,
)
from megacore.checkpoint.convert.tokenizer_files import of_directory
from megacore.errors import CheckpointError
from megacore.models.config import ModelConfig
from megacore.models.select import parameter_shapes

GENERATION = "generation_config.json"
_MAX_FAULTS_SHOWN = 100
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class HuggingFaceSource:
    """A model of a known family. A model has one dtype: the one that holds all its tensors exactly.

    Args:
        directory: Where `config.json` is.
        options: How to open it.

    Raises:
        CheckpointError: The family is not known, the configuration cannot be expressed, a file
            cannot be read, or tensors are missing or have other shapes (all are listed).
    """

    def __init__(self, directory: Path, options: SourceOptions) -> None:
        self._directory = directory
        values = read_json(directory / "config.json")
        where = str(directory / "config.json")
        self._family = family_of(values, where)
        config, remarks = self._family.read(values, where)
        rows = values.get("vocab_size")
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
            raise CheckpointError(f"{where}: vocab_size must be a whole number, found {rows!r}")
        self._rules = self._family.rules(config)
        self._shapes = _shapes(config, rows)
        self._tensors = DirectoryTensors(directory)
        self._prefix = _added_prefix(self._family, list(self._rules.values()), self._tensors)
        self._refuse_misfits()
        used = {name: self._tensors.infos[name] for name in self._used()}
        self._dtype = common_dtype(used)
        if any(info.dtype != self._dtype for info in used.values()):
            remarks.append(f"tensors of several dtypes, all are read as {_short(self._dtype)}")
        tokenizer = of_directory(directory)
        self.description = ModelDescription(
            config=config,
            padded_vocab_size=rows,
            vocab_size=options.vocab_size or rows,
            dtype=self._dtype,
            source_format=f"Hugging Face {self._family.name}",
            tokenizer=tokenizer.values,
            tokenizer_files=tokenizer.files,
            arguments=self._arguments(values, config.max_position_embeddings),
            remarks=tuple(remarks),
        )

    def names(self) -> list[str]:
        """Canonical names of all tensors, in the order of the model."""
        return list(self._rules)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a canonical tensor."""
        return TensorInfo(self._shapes[name], self._dtype)

    def read(self, name: str) -> Tensor:
        """A full canonical tensor."""
        parts = [self._tensors.read(part) for part in self.origins(name)]
        return self._rules[name].join([part.to(self._dtype) for part in parts]).contiguous()

    def origins(self, name: str) -> tuple[str, ...]:
        """Names in the directory of the tensors that a canonical one is made of."""
        return tuple(self._stored(part) for part in self._rules[name].theirs)

    def unmapped(self) -> dict[str, str]:
        """Tensors of the directory that are not part of the model -> why, or "" if not known."""
        used = set(self._used())
        return {name: self._reason(name) for name in self._tensors.infos if name not in used}

    def close(self) -> None:
        """Forgets the open files."""
        self._tensors.close()

    def _stored(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def _used(self) -> list[str]:
        return [part for name in self._rules for part in self.origins(name)]

    def _reason(self, name: str) -> str:
        if self._family.is_computed(name):
            return "can be computed"
        table = self._family.table
        outputs = [row.theirs[0] for row in table if row.ours.endswith("output_layer.weight")]
        if name in outputs and not self.description.config.untie_embeddings_and_output_weights:
            return "the output layer is the word embedding (tie_word_embeddings)"
        return ""

    def _refuse_misfits(self) -> None:
        infos, faults = self._tensors.infos, []
        for name, rule in self._rules.items():
            shapes = rule.their_shapes(self._shapes[name])
            for part, shape in zip(self.origins(name), shapes, strict=True):
                if part not in infos:
                    faults.append(f"missing: {part} {list(shape)}")
                elif infos[part].shape != shape:
                    found = list(infos[part].shape)
                    faults.append(f"{part}: expected shape {list(shape)}, found {found}")
                elif infos[part].dtype not in _FLOATS:
                    faults.append(f"{part}: dtype {_short(infos[part].dtype)}: is it quantised?")
        if faults:
            more = len(faults) - _MAX_FAULTS_SHOWN
            shown = faults[:_MAX_FAULTS_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
            raise CheckpointError(
                f"{self._directory}: the tensors are not those of this {self._family.name}:\n  "
                + "\n  ".join(shown)
            )

    def _arguments(self, values: dict[str, Any], length: int | None) -> dict[str, Any]:
        path = self._directory / GENERATION
        generation = read_json(path) if path.is_file() else None
        origin = Origin.of_config(self._family.name, values, generation)
        return {"seq_length": length, ARGUMENT: origin.text()}


def _shapes(config: ModelConfig, rows: int) -> dict[str, tuple[int, ...]]:
    shapes = parameter_shapes(config, padded_vocab_size=1)
    for name in VOCABULARY_WEIGHTS:
        if name in shapes:
            shapes[name] = (rows, *shapes[name][1:])
    return shapes


def _added_prefix(family: Family, rules: Sequence[Rule], tensors: DirectoryTensors) -> str:
    """What stored names lack: files of the model without its output layer have no prefix."""
    first = rules[0].theirs[0]
    bare = first.removeprefix(family.prefix)
    return family.prefix if first not in tensors.infos and bare in tensors.infos else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
