"""Llama as Meta distributes it: params.json and consolidated.NN.pth, one file per model-parallel
process; and Mistral in the same layout, also as consolidated.safetensors.

Source: the layout of Meta's reference code (llama/model.py: the parallel layers and how the inner
width of the feed-forward layer follows from `multiple_of` and `ffn_dim_multiplier`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megacore.checkpoint.convert.interleaved_llama import (
    InterleavedLlama,
    LlamaNames,
    llama_config,
)
from megacore.checkpoint.convert.meta_tokenizer import meta_tokenizer
from megacore.checkpoint.convert.model_stream import ModelDescription, SourceOptions, TensorInfo
from megacore.checkpoint.torch_files import read_torch_file
from megacore.errors import CheckpointError

_NAMES = LlamaNames(
    embedding="tok_embeddings.weight",
    final_norm="norm.weight",
    output="output.weight",
    attention_norm="layers.{}.attention_norm.weight",
    query="layers.{}.attention.wq.weight",
    key="layers.{}.attention.wk.weight",
    value="layers.{}.attention.wv.weight",
    projection="layers.{}.attention.wo.weight",
    mlp_norm="layers.{}.ffn_norm.weight",
    gate="layers.{}.feed_forward.w1.weight",
    up="layers.{}.feed_forward.w3.weight",
    down="layers.{}.feed_forward.w2.weight",
)
# Cut along columns; the others are cut along rows, norms are not cut.
_COLUMNS = (".attention.wo.weight", ".feed_forward.w2.weight")
_KNOWN = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "use_scaled_rope",
    "rope_scaling_factor",
    "rope_high_freq_factor",
    "sliding_window",
    "max_seq_len",
    "max_batch_size",
    "model_parallel_size",
}
# Positions of Meta's releases, which params.json does not tell: by rope_theta. Those of Mistral,
# whose params.json has hidden_dim, all have 32768.
_POSITIONS = {10000: 4096, 1000000: 16384, 500000: 8192}


def matches(path: Path) -> bool:
    """Whether a directory is a release of Meta."""
    return (path / "params.json").is_file() and next(path.glob("consolidated.*"), None) is not None


def open_source(path: Path, options: SourceOptions) -> MetaLlamaSource:
    """Opens a release.

    Raises:
        CheckpointError: Something is missing, damaged or not known.
    """
    return MetaLlamaSource(path)


class MetaLlamaSource:
    """A Llama in Meta's files, put together over the model-parallel processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        values = _params(path / "params.json")
        self._shards = [_weights(file) for file in _files(path)]
        self._check_shards()
        heads = self._number(values, "n_heads")
        hidden = self._hidden = self._number(values, "dim")
        width = values.get("head_dim") or hidden // heads
        rows = self._full_shape(_NAMES.embedding, hidden)[0]
        true_size = values.get("vocab_size", -1)
        tokenizer, remarks = meta_tokenizer(
            path, rows, later_names=bool(values.get("use_scaled_rope"))
        )
        config = llama_config(
            num_layers=self._number(values, "n_layers"),
            hidden_size=hidden,
            ffn_hidden_size=_inner_width(values, hidden),
            num_attention_heads=heads,
            num_query_groups=values.get("n_kv_heads") or heads,
            kv_channels=width,
            norm_epsilon=float(values.get("norm_eps", 1e-5)),
            untie_embeddings_and_output_weights=not self._is_tied(),
            **self._positions(values, remarks),
        )
        dtypes = {tensor.dtype for shard in self._shards for tensor in shard.values()}
        self.description = ModelDescription(
            config=config,
            padded_vocab_size=rows,
            vocab_size=true_size if isinstance(true_size, int) and true_size > 0 else rows,
            dtype=self._shards[0][_NAMES.embedding].dtype if len(dtypes) > 1 else dtypes.pop(),
            source_format=f"Meta Llama, {len(self._shards)} files",
            tokenizer=tokenizer.values,
            tokenizer_files=tokenizer.files,
            arguments={"seq_length": config.max_position_embeddings},
            remarks=tuple(remarks),
        )
        self._tensors = InterleavedLlama(
            _NAMES, self._shards[0], config, info=self._source_info, read=self._source_read
        )

    def names(self) -> list[str]:
        """Canonical names of all tensors that can be read."""
        return self._tensors.names()

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a canonical tensor."""
        return self._tensors.info(name)

    def read(self, name: str) -> Tensor:
        """A canonical tensor."""
        return self._tensors.read(name)

    def origins(self, name: str) -> tuple[str, ...]:
        """Names in the files of the tensors that a canonical one is made of."""
        return self._tensors.origins(name)

    def unmapped(self) -> dict[str, str]:
        """Tensors of the files that are not part of the model -> why, or "" when not known."""
        used = self._tensors.used()
        reasons = {
            "rope.freqs": "rotary frequencies, which are computed",
            _NAMES.output: f"equal to {_NAMES.embedding}, which is used for both",
        }
        return {name: reasons.get(name, "") for name in self._shards[0] if name not in used}

    def close(self) -> None:
        """Nothing to do: the maps of the files end with the tensors that view them."""

    def _is_tied(self) -> bool:
        """Whether one weight is embedding and output: the small Llamas store it under both names,
        and params.json does not say so."""
        if _NAMES.output not in self._shards[0]:
            return True
        return torch.equal(self._source_read(_NAMES.output), self._source_read(_NAMES.embedding))

    def _check_shards(self) -> None:
        for number, shard in enumerate(self._shards):
            if shard.keys() != self._shards[0].keys():
                differ = sorted(shard.keys() ^ self._shards[0].keys())
                raise CheckpointError(
                    f"{self._path}: files 0 and {number} hold different tensors: "
                    + ", ".join(differ[:20])
                )
            for name, tensor in shard.items():
                if tensor.shape != self._shards[0][name].shape:
                    raise CheckpointError(
                        f"{self._path}: tensor {name} has shape {list(tensor.shape)} in file "
                        f"{number} and {list(self._shards[0][name].shape)} in file 0"
                    )
        if _NAMES.embedding not in self._shards[0]:
            raise CheckpointError(f"{self._path}: no tensor {_NAMES.embedding}")

    def _number(self, values: Mapping[str, Any], key: str) -> int:
        value = values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{self._path / 'params.json'}: {key} must be a positive whole number, "
                f"found {value!r}"
            )
        return value

    def _positions(self, values: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
        base = float(values.get("rope_theta", 10000.0))
        if base != int(base):
            raise CheckpointError(f"{self._path}: rope_theta {base} is not an integer")
        settings: dict[str, Any] = {"rotary_base": int(base)}
        if values.get("use_scaled_rope"):
            factor = values.get("rope_scaling_factor")
            if factor is None:
                remarks.append(
                    "params.json says use_scaled_rope without a factor: 8 is taken, as in Llama "
                    "3.1; Llama 3.2 was released with 32"
                )
            settings |= {
                "rope_scaling_type": "llama3",
                "rope_scaling_factor": float(factor or 8),
                "rope_scaling_high_freq_factor": float(values.get("rope_high_freq_factor") or 4),
                "rope_scaling_original_length": 8192,
            }
        window = values.get("sliding_window")
        if window is not None:
            settings["window_size"] = f"{window - 1},0"
        length = values.get("max_seq_len")
        if length is None:
            length = 131072 if "rope_scaling_type" in settings else _POSITIONS.get(int(base), 4096)
            if "hidden_dim" in values:
                length = 32768
            remarks.append(
                f"params.json does not say how long sequences may be: {length} positions are taken"
            )
        return {**settings, "max_position_embeddings": length}

    def _cut(self, name: str, hidden: int) -> int | None:
        """The dimension along which a tensor is cut over the files."""
        shape = self._shards[0][name].shape
        if len(shape) < 2 or len(self._shards) == 1:
            return None
        if name == _NAMES.embedding:
            # Llama 1 and 2 cut the width of the embedding, Llama 3 the vocabulary.
            return 0 if shape[1] == hidden else 1
        return 1 if name.endswith(_COLUMNS) else 0

    def _full_shape(self, name: str, hidden: int) -> tuple[int, ...]:
        shape = list(self._shards[0][name].shape)
        dim = self._cut(name, hidden)
        if dim is not None:
            shape[dim] *= len(self._shards)
        return tuple(shape)

    def _source_info(self, name: str) -> TensorInfo:
        return TensorInfo(self._full_shape(name, self._hidden), self._shards[0][name].dtype)

    def _source_read(self, name: str) -> Tensor:
        dim = self._cut(name, self._hidden)
        if dim is None:
            return self._shards[0][name]
        return torch.cat([shard[name] for shard in self._shards], dim=dim)


def _params(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON object expected")
    unknown = [f"{key} = {values[key]!r}" for key in values if key not in _KNOWN]
    if unknown:
        raise CheckpointError(f"{path}: values that are not known: {', '.join(unknown)}")
    return values


def _files(path: Path) -> list[Path]:
    if (path / "consolidated.safetensors").is_file():
        return [path / "consolidated.safetensors"]
    files = sorted(path.glob("consolidated.*.pth"))
    names = [file.name for file in files]
    wanted = [f"consolidated.{number:02d}.pth" for number in range(len(files))]
    if not files or names != wanted:
        raise CheckpointError(
            f"{path}: expected consolidated.00.pth, consolidated.01.pth, ... without a gap, found "
            + (", ".join(names) or "none")
        )
    return files


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)  # a view of the mapped file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a dictionary of tensors expected")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path}: not tensors: {', '.join(strange[:20])}")
    return {str(name): tensor for name, tensor in content.items()}


def _inner_width(values: Mapping[str, Any], hidden: int) -> int:
    if values.get("hidden_dim"):
        return int(values["hidden_dim"])
    width = int(2 * 4 * hidden / 3)
    if values.get("ffn_dim_multiplier") is not None:
        width = int(values["ffn_dim_multiplier"] * width)
    multiple = int(values.get("multiple_of", 256))
    return multiple * -(-width // multiple)
