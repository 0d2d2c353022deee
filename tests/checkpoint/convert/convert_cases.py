"""Models in memory as sources, and a plain target, for tests of the engine."""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file

from megacore.checkpoint.convert.interleaved_llama import llama_config
from megacore.checkpoint.convert.model_stream import ModelDescription, TensorInfo
from megacore.errors import CheckpointError
from megacore.models.gpt import GPTModel

LLAMA = {
    "num_layers": 2,
    "hidden_size": 24,
    "ffn_hidden_size": 40,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
    "max_position_embeddings": 32,
    "untie_embeddings_and_output_weights": True,
}


def random_model(rows: int = 37, *, dtype=torch.float32, seed: int = 0, **changes) -> GPTModel:
    """A small Llama whose weights are all random, norms included."""
    model = GPTModel(llama_config(**{**LLAMA, **changes}), padded_vocab_size=rows, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + values / 10 if "norm" in name else values / 6)
    return model.eval()


class MemorySource:
    """A model as a source that counts what it has given out and is still alive."""

    def __init__(self, model: GPTModel, *, vocab_size: int | None = None, **changes) -> None:
        self.tensors = {name: p.detach() for name, p in model.named_parameters()}
        self.strange: dict[str, str] = {}
        config = llama_config(**{**LLAMA, **changes})
        self.description = ModelDescription(
            config=config,
            padded_vocab_size=model.padded_vocab_size,
            vocab_size=vocab_size,
            dtype=model.dtype,
            source_format="memory",
        )
        self.alive = 0
        self.most_alive = 0
        self.most_bytes = 0
        self._bytes = 0

    def names(self):
        return list(self.tensors)

    def info(self, name):
        return TensorInfo(tuple(self.tensors[name].shape), self.tensors[name].dtype)

    def read(self, name):
        # The memory is an array's: it lives as long as any tensor that shares it.
        stored = self.tensors[name]
        memory = stored.contiguous().view(torch.uint8).numpy().copy()
        tensor = torch.from_numpy(memory).view(stored.dtype)
        size = memory.nbytes
        self._bytes += size
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        self.most_bytes = max(self.most_bytes, self._bytes)
        weakref.finalize(memory, self._gone, size)
        return tensor

    def _gone(self, size):
        self.alive -= 1
        self._bytes -= size

    def origins(self, name):
        return (f"memory.{name}",)

    def unmapped(self):
        return dict(self.strange)

    def close(self):
        pass


class FolderTarget:
    """Writes one safetensors file per tensor.

    Args:
        rows: Vocabulary rows it wants; None takes what comes.
        fail_at: Raises this at the write of that number.
    """

    format_name = "folder"
    tokenizer_folder = "tokenizer"

    def __init__(self, rows: int | None = None, *, fail_at: int = -1, error=None) -> None:
        self.rows = rows
        self.fail_at = fail_at
        self.error = error
        self.written: list[str] = []

    def vocabulary_rows(self, description):
        return self.rows or description.padded_vocab_size

    def begin(self, directory, description, tensors):
        assert not list(directory.glob("*.safetensors"))
        self.directory, self.description, self.expected = directory, description, dict(tensors)
        (directory / "latest_checkpointed_iteration.txt").write_text("release")

    def write(self, name, tensor):
        if len(self.written) == self.fail_at:
            raise self.error
        wanted = self.expected[name]
        if (tuple(tensor.shape), tensor.dtype) != (wanted.shape, wanted.dtype):
            raise CheckpointError(f"{name} is not as announced")
        save_file({"t": tensor.contiguous()}, self.directory / f"{name}.safetensors")
        self.written.append(name)

    def destinations(self, name):
        return (f"folder.{name}",)

    def finish(self):
        assert self.written == list(self.expected)


def read_folder(directory):
    """Name -> tensor of what a FolderTarget wrote."""
    return {
        path.name.removesuffix(".safetensors"): load_file(path)["t"]
        for path in directory.glob("*.safetensors")
    }


def with_tokenizer(source: MemorySource, values, files) -> MemorySource:
    """The source with tokenizer files."""
    source.description = replace(source.description, tokenizer=values, tokenizer_files=files)
    return source
