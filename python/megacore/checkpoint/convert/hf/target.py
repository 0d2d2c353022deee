"""A Hugging Face directory being written: safetensors of bounded size, index, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from megacore.checkpoint.convert.hf.families import family_for, family_named
from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.files import SAFETENSORS, SAFETENSORS_INDEX
from megacore.checkpoint.convert.hf.origin import Origin
from megacore.checkpoint.convert.hf.rules import Rule
from megacore.checkpoint.convert.hf.safetensors_file import SafetensorsFile, num_bytes
from megacore.checkpoint.convert.hf.source import GENERATION
from megacore.checkpoint.convert.model_stream import ModelDescription, TargetOptions, TensorInfo
from megacore.durable import write_file
from megacore.errors import CheckpointError

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass
class _Shard:
    """What goes into one file."""

    name: str = ""
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    num_bytes: int = 0


class HuggingFaceTarget:
    """A model of a family that can express it; the family of the source, if it came from one.

    Args:
        options: Family and size of files.

    Attributes:
        format_name: For people.
        tokenizer_folder: Tokenizer files lie beside the weights.
    """

    def __init__(self, options: TargetOptions) -> None:
        self.format_name = "Hugging Face"
        self.tokenizer_folder = ""
        self._options = options
        self._shards: list[_Shard] = []
        self._places: dict[str, _Shard] = {}
        self._files: dict[str, SafetensorsFile] = {}
        self._rules: dict[str, Rule] = {}
        self._directory = Path()
        if options.family is not None:
            family_named(options.family)
        if (options.max_shard_bytes or 1) < 1:
            raise CheckpointError("the largest size of a file must be at least one byte")

    def vocabulary_rows(self, description: ModelDescription) -> int:
        """The true size: files of this kind have no padding."""
        self._family(description).express(description.config)
        return description.vocab_size or description.padded_vocab_size

    def begin(
        self, directory: Path, description: ModelDescription, tensors: Mapping[str, TensorInfo]
    ) -> None:
        """Writes the configuration and makes files of the right size.

        Args:
            directory: Existing directory to write into.
            description: The model.
            tensors: Every canonical tensor, in the order of `write`.

        Raises:
            CheckpointError: No family, or not the one that was asked for, can be this model.
        """
        family = self._family(description)
        self.format_name = f"Hugging Face {family.name}"
        self._directory = directory
        self._rules = family.rules(description.config)
        values = family.express(description.config)
        values |= {"vocab_size": description.padded_vocab_size, "use_cache": True}
        values["torch_dtype"] = str(description.dtype).removeprefix("torch.")
        origin = Origin.of_description(description)
        _write_json(directory / "config.json", values | dict(origin.config))
        if origin.generation is not None:
            _write_json(directory / GENERATION, origin.generation)
        self._plan(tensors)
        self._files = {
            shard.name: SafetensorsFile(directory / shard.name, shard.tensors)
            for shard in self._shards
        }

    def write(self, name: str, tensor: Tensor) -> None:
        """Puts what a canonical tensor becomes where it belongs."""
        rule = self._rules[name]
        for part, value in zip(rule.theirs, rule.split(tensor), strict=True):
            self._files[self._places[part].name].write(part, value)

    def destinations(self, name: str) -> tuple[str, ...]:
        """Names of what a canonical tensor becomes."""
        return self._rules[name].theirs

    def finish(self) -> None:
        """Flushes all files and writes the index, if there are several."""
        for file in self._files.values():
            file.close()
        if len(self._shards) > 1:
            total = sum(shard.num_bytes for shard in self._shards)
            weight_map = {name: shard.name for name, shard in self._places.items()}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(self._directory / SAFETENSORS_INDEX, index)

    def _family(self, description: ModelDescription) -> Family:
        if self._options.family is not None:
            return family_named(self._options.family)
        return family_for(description.config, Origin.of_description(description).family)

    def _plan(self, tensors: Mapping[str, TensorInfo]) -> None:
        limit = self._options.max_shard_bytes or DEFAULT_SHARD_BYTES
        for name, info in tensors.items():
            rule = self._rules[name]
            for part, shape in zip(rule.theirs, rule.their_shapes(info.shape), strict=True):
                part_info = TensorInfo(shape, info.dtype)
                size = num_bytes(part_info)
                if not self._shards or self._shards[-1].num_bytes + size > limit:
                    self._shards.append(_Shard())
                shard = self._shards[-1]
                shard.tensors[part] = part_info
                shard.num_bytes += size
                self._places[part] = shard
        count = len(self._shards)
        for number, shard in enumerate(self._shards, 1):
            shard.name = SAFETENSORS
            if count > 1:
                shard.name = f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_file(path, text.encode())
