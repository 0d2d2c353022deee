"""The tensors of a Hugging Face directory: safetensors or PyTorch files, one or many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacore.checkpoint.convert.hf.safetensors_file import DTYPES
from megacore.checkpoint.convert.model_stream import TensorInfo
from megacore.checkpoint.torch_files import read_torch_file
from megacore.errors import CheckpointError

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class DirectoryTensors:
    """All tensors of a directory by name.

    Args:
        directory: Where `config.json` is.

    Attributes:
        infos: Name -> shape and dtype.

    Raises:
        CheckpointError: A file is missing or cannot be read, or the index does not fit the files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mapped: dict[str, Any] = {}
        self._loaded: dict[str, Tensor] = {}
        self._places: dict[str, str] = {}
        self.infos: dict[str, TensorInfo] = {}
        for name in self._files():
            if name.endswith(".safetensors"):
                self._open(name)
            else:
                self._load(name)

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU.

        Raises:
            CheckpointError: It cannot be read.
        """
        if name in self._loaded:
            return self._loaded[name]
        file = self._places[name]
        try:
            tensor: Tensor = self._mapped[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self._directory / file}: tensor {name} cannot be read: {error}"
            ) from error
        return tensor

    def file_of(self, name: str) -> str:
        """The file that has a tensor."""
        return self._places[name]

    def close(self) -> None:
        """Forgets the open files; their maps end with the tensors that view them."""
        self._mapped.clear()
        self._loaded.clear()

    def _files(self) -> list[str]:
        """Names of the files, in the order of preference of transformers."""
        for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (_TORCH, _TORCH_INDEX)):
            if (self._directory / single).is_file():
                return [single]
            if (self._directory / index).is_file():
                return self._indexed(self._directory / index)
        raise CheckpointError(
            f"{self._directory}: holds no {SAFETENSORS}, {SAFETENSORS_INDEX}, {_TORCH} or "
            f"{_TORCH_INDEX}"
        )

    def _indexed(self, index: Path) -> list[str]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, Mapping) or not weight_map:
            raise CheckpointError(f"{index}: has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            # A name is that of a file beside the index, never a way to other places.
            if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
                raise CheckpointError(f"{index}: {name!r} is not the name of a file of weights")
        missing = [name for name in names if not (self._directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{self._directory}: files of the index are missing: {', '.join(missing)}"
            )
        return names

    def _open(self, name: str) -> None:
        path = self._directory / name
        try:
            file = safe_open(path, framework="pt", device="cpu")
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                piece = file.get_slice(key)
                dtype = DTYPES.get(piece.get_dtype())
                if dtype is None:
                    raise CheckpointError(
                        f"{path}: tensor {key} has dtype {piece.get_dtype()}, which is not known"
                    )
                self._add(key, name, TensorInfo(tuple(piece.get_shape()), dtype))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self._mapped[name] = file

    def _load(self, name: str) -> None:
        path = self._directory / name
        found = read_torch_file(path)
        if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
            found = found["state_dict"]
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{path}: holds no dictionary of tensors")
        for key, tensor in found.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(f"{path}: {key!r} is not a tensor with a name")
            self._add(key, name, TensorInfo(tuple(tensor.shape), tensor.dtype))
            self._loaded[key] = tensor

    def _add(self, key: str, file: str, info: TensorInfo) -> None:
        if key in self._places:
            raise CheckpointError(
                f"{self._directory}: tensor {key} is in {self._places[key]} and in {file}"
            )
        self._places[key] = file
        self.infos[key] = info


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: It cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return found


def common_dtype(infos: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype that holds all floating-point tensors without loss."""
    found: torch.dtype | None = None
    for info in infos.values():
        if info.dtype.is_floating_point:
            found = info.dtype if found is None else torch.promote_types(found, info.dtype)
    return found or torch.float32
