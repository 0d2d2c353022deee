"""GGUF models of the Llama family (Llama 1 to 3.x, Mistral, Yi), read.

Source: the names and metadata keys of the GGUF specification; the order of rows and the frequency
factors as llama.cpp's converter writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.convert.gguf_file import MAGIC, GgufFiles
from megacore.checkpoint.convert.gguf_tokenizer import gguf_tokenizer
from megacore.checkpoint.convert.interleaved_llama import (
    InterleavedLlama,
    LlamaNames,
    llama_config,
)
from megacore.checkpoint.convert.model_stream import ModelDescription, SourceOptions, TensorInfo
from megacore.errors import CheckpointError
from megacore.layers.rotary_scaling import Llama3Scaling, frequencies
from megacore.models.config import ModelConfig

_NAMES = LlamaNames(
    embedding="token_embd.weight",
    final_norm="output_norm.weight",
    output="output.weight",
    attention_norm="blk.{}.attn_norm.weight",
    query="blk.{}.attn_q.weight",
    key="blk.{}.attn_k.weight",
    value="blk.{}.attn_v.weight",
    projection="blk.{}.attn_output.weight",
    mlp_norm="blk.{}.ffn_norm.weight",
    gate="blk.{}.ffn_gate.weight",
    up="blk.{}.ffn_up.weight",
    down="blk.{}.ffn_down.weight",
)
_FACTORS = "rope_freqs.weight"
# Values of llama.* that are read below, or that change nothing.
_KNOWN = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "expert_count",
    "expert_used_count",
    "vocab_size",
    "tensor_data_layout",
}


def matches(path: Path) -> bool:
    """Whether `path` is a GGUF file, or a directory with one."""
    if path.is_dir():
        return next(path.glob("*.gguf"), None) is not None
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def open_source(path: Path, options: SourceOptions) -> GgufSource:
    """Opens a GGUF model.

    Raises:
        CheckpointError: It is damaged, or not of a kind that can be read.
    """
    return GgufSource(path)


class GgufSource:
    """A Llama in GGUF. Quantised tensors are read as float32.

    All tensors have one dtype. When the matrices are float16 or bfloat16 and the vectors, which
    GGUF keeps in float32, have only values of that dtype, it is that one; otherwise float32.
    """

    def __init__(self, path: Path) -> None:
        self._files = GgufFiles(path)
        self._where = self._files.path
        meta = self._files.metadata
        kind = meta.get("general.architecture")
        if kind != "llama":
            raise CheckpointError(
                f"{self._where}: a GGUF model of architecture {kind!r}; only llama (Llama, "
                "Mistral, Yi and others of the same build) can be read"
            )
        found = self._files.tensors
        if _NAMES.embedding not in found:
            raise CheckpointError(f"{self._where}: holds no tensor {_NAMES.embedding}")
        self._dtype = self._common_dtype()
        config = self._config(meta)
        rows = found[_NAMES.embedding][1].shape[0]
        tokenizer, vocab_size, remarks = gguf_tokenizer(meta, rows, str(self._where))
        kinds = sorted({entry.kind_name for _, entry in found.values()})
        self.description = ModelDescription(
            config=config,
            padded_vocab_size=rows,
            vocab_size=vocab_size,
            dtype=self._dtype,
            source_format=f"GGUF {self._files.version} llama, {', '.join(kinds)}",
            tokenizer=tokenizer.values,
            tokenizer_files=tokenizer.files,
            arguments={"seq_length": config.max_position_embeddings},
            remarks=remarks,
        )
        self._tensors = InterleavedLlama(
            _NAMES, found, config, info=self._source_info, read=self._source_read
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
        """Names in the file of the tensors that a canonical one is made of."""
        return self._tensors.origins(name)

    def unmapped(self) -> dict[str, str]:
        """Tensors of the file that are not part of the model -> why, or "" when not known."""
        used = self._tensors.used()
        return {name: _reason(name) for name in self._files.tensors if name not in used}

    def close(self) -> None:
        """Nothing to do: the maps of the files end with the tensors that view them."""

    def _common_dtype(self) -> torch.dtype:
        entries = self._files.tensors
        matrices = {entry.dtype for _, entry in entries.values() if len(entry.shape) > 1}
        if len(matrices) != 1 or matrices <= {torch.float32, torch.float64}:
            return torch.float32
        dtype = matrices.pop()
        for name, (file, entry) in entries.items():
            if len(entry.shape) < 2 and name != _FACTORS:
                values = file.read(name)
                if not torch.equal(values.to(dtype).to(values.dtype), values):
                    return torch.float32
        return dtype

    def _source_info(self, name: str) -> TensorInfo:
        return TensorInfo(self._files.tensors[name][1].shape, self._dtype)

    def _source_read(self, name: str) -> Tensor:
        return self._files.tensors[name][0].read(name).to(self._dtype)

    def _config(self, meta: Mapping[str, Any]) -> ModelConfig:
        values = {
            key.removeprefix("llama."): value
            for key, value in meta.items()
            if key.startswith("llama.")
        }
        unknown = [f"llama.{key} = {values[key]!r}" for key in values if key not in _KNOWN]
        if unknown:
            raise CheckpointError(
                f"{self._where}: architecture values that are not known: {', '.join(unknown)}"
            )
        if values.get("expert_count"):
            raise CheckpointError(
                f"{self._where}: a mixture of {values['expert_count']} experts; such models cannot "
                "be converted yet"
            )
        heads = self._integer(values, "attention.head_count")
        hidden = self._integer(values, "embedding_length")
        width = self._integer(values, "attention.key_length", hidden // max(heads, 1))
        if self._integer(values, "attention.value_length", width) != width:
            raise CheckpointError(f"{self._where}: keys and values of different width")
        rotated = self._integer(values, "rope.dimension_count", width)
        base = float(values.get("rope.freq_base", 10000.0))
        if base != int(base):
            raise CheckpointError(f"{self._where}: llama.rope.freq_base {base} is not an integer")
        query_bias = _NAMES.query.format(0).removesuffix(".weight") + ".bias"
        return llama_config(
            num_layers=self._integer(values, "block_count"),
            hidden_size=hidden,
            ffn_hidden_size=self._integer(values, "feed_forward_length"),
            num_attention_heads=heads,
            num_query_groups=self._integer(values, "attention.head_count_kv", heads),
            kv_channels=width,
            norm_epsilon=_plain_float(values.get("attention.layer_norm_rms_epsilon", 1e-5)),
            rotary_base=int(base),
            rotary_percent=rotated / width,
            max_position_embeddings=self._integer(values, "context_length"),
            add_qkv_bias=query_bias in self._files.tensors,
            untie_embeddings_and_output_weights=_NAMES.output in self._files.tensors,
            **self._scaling(values, rotated, int(base)),
        )

    def _integer(self, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
        value = values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(
                f"{self._where}: llama.{key} must be one whole number, found {value!r}"
            )
        return value

    def _scaling(self, values: Mapping[str, Any], rotated: int, base: int) -> dict[str, Any]:
        kind = values.get("rope.scaling.type", "none")
        factor = _plain_float(values.get("rope.scaling.factor", values.get("rope.scale_linear", 1)))
        length = values.get("rope.scaling.original_context_length")
        if _FACTORS in self._files.tensors:
            if kind not in ("none", "llama3"):
                raise CheckpointError(
                    f"{self._where}: {_FACTORS} together with llama.rope.scaling.type {kind}"
                )
            return self._llama3(rotated, base, length or 8192)
        if kind == "linear" or (kind == "none" and factor != 1):
            return {"rope_scaling_type": "linear", "rope_scaling_factor": factor}
        if kind == "yarn" and length:
            return {
                "rope_scaling_type": "yarn",
                "rope_scaling_factor": factor,
                "rope_scaling_original_length": length,
            }
        if kind != "none":
            raise CheckpointError(
                f"{self._where}: llama.rope.scaling.type {kind!r} is not known, or lacks values"
            )
        return {}

    def _llama3(self, rotated: int, base: int, length: int) -> dict[str, Any]:
        """The settings of Llama 3.1 whose frequencies are those of the stored divisors."""
        file, entry = self._files.tensors[_FACTORS]
        divisors = file.read(_FACTORS).double()
        # The file has one divisor per frequency; of the settings behind them only the largest is
        # seen. The others are the same in every model released so far, which is checked.
        scaling = Llama3Scaling(
            factor=round(float(divisors.max()), 4) if divisors.numel() else 1.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_length=length,
        )
        settings: dict[str, Any] = {"length": 0, "dtype": torch.float64, "device": "cpu"}
        plain, _ = frequencies(rotated, float(base), None, **settings)
        scaled, _ = frequencies(rotated, float(base), scaling, **settings)
        if divisors.shape != plain.shape or not torch.allclose(
            plain / divisors, scaled, rtol=1e-5, atol=0.0
        ):
            raise CheckpointError(
                f"{self._where}: {_FACTORS} {list(entry.shape)} is not the scaling of Llama 3.1 "
                "(low 1, high 4, original length "
                f"{length}); no other is known"
            )
        return {
            "rope_scaling_type": "llama3",
            "rope_scaling_factor": scaling.factor,
            "rope_scaling_low_freq_factor": scaling.low_freq_factor,
            "rope_scaling_high_freq_factor": scaling.high_freq_factor,
            "rope_scaling_original_length": length,
        }


def _reason(name: str) -> str:
    if name == _FACTORS:
        return "frequency factors, which became settings"
    if re.fullmatch(r"blk\.\d+\.(attn_rot_embd|rope_freqs)\.weight|rope\.freqs", name):
        return "rotary frequencies, which are computed"
    return ""


def _plain_float(value: Any) -> float:
    """The shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(torch.tensor(float(value)).numpy()))
