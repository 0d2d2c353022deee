"""`torch_dist` checkpoints, of megacore and of Megatron-Core, as source and target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from megacore.checkpoint import layout as directories
from megacore.checkpoint.container import finish, stacks_of, structure, write_chunks
from megacore.checkpoint.content import collect
from megacore.checkpoint.convert.model_stream import (
    LayoutSizes,
    ModelDescription,
    SourceOptions,
    TargetOptions,
    TensorInfo,
)
from megacore.checkpoint.load import Checkpoint
from megacore.checkpoint.megatron.names import is_ignored
from megacore.checkpoint.megatron.source import described
from megacore.checkpoint.megatron.spool import Spool
from megacore.checkpoint.megatron.target import COUNTERS, arguments_of, rows_of_vocabulary
from megacore.checkpoint.sharded_keys import MODEL, stacked_key
from megacore.durable import write_file
from megacore.errors import CheckpointError

_SPOOL = ".collected.scratch"


class DistSource:
    """A model in a `torch_dist` checkpoint.

    Args:
        path: Directory of an iteration, or of a release.
        options: What is known better than by the checkpoint.

    Raises:
        CheckpointError: It cannot be read, or does not say what its model is.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._checkpoint = Checkpoint(path)
        self._tensors = {
            name: TensorInfo(shape, dtype)
            for name, (dtype, shape) in self._checkpoint.describe(MODEL).items()
            if not is_ignored(name)
        }
        arguments = self._checkpoint.values.get("args", {})
        by = "megacore" if self._checkpoint.is_own else "Megatron core"
        self.description = described(
            arguments,
            self._tensors,
            path=path,
            iteration=self._checkpoint.iteration,
            source_format=f"{by}, torch_dist",
            source_layout=_sizes(arguments),
            vocab_size=options.vocab_size,
        )

    def names(self) -> list[str]:
        """Canonical names of all tensors."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a canonical tensor."""
        return self._tensors[name]

    def read(self, name: str) -> Tensor:
        """A full canonical tensor, verified."""
        return self._checkpoint.read(MODEL, name)

    def origins(self, name: str) -> tuple[str, ...]:
        """Key in the checkpoint, which may be that of all layers."""
        return (stacked_key(MODEL, name).key,)

    def unmapped(self) -> dict[str, str]:
        """Nothing: every tensor of the model is a canonical one."""
        return {}

    def close(self) -> None:
        """Lets the files go."""
        self._tensors = {}


def _sizes(arguments: Mapping[str, object]) -> LayoutSizes:
    """How the run that wrote a checkpoint was cut, as far as its settings say."""

    def size(name: str) -> int:
        value = arguments.get(name)
        return value if isinstance(value, int) and value > 0 else 1

    return LayoutSizes(
        tensor=size("tensor_model_parallel_size"),
        pipeline=size("pipeline_model_parallel_size"),
        virtual=size("virtual_pipeline_model_parallel_size"),
    )


class DistTarget:
    """A `torch_dist` checkpoint of weights alone, which any layout of processes can load.

    Args:
        options: Sizes are refused but for the padding of the vocabulary: the files know no layout.
    """

    def __init__(self, options: TargetOptions) -> None:
        self.format_name = "megacore, torch_dist"
        self.tokenizer_folder = "tokenizer"
        self._options = options

    def vocabulary_rows(self, description: ModelDescription) -> int:
        """Rows of vocabulary weights; arguments and errors as `convert.model_stream.Target`."""
        size = self._options.tensor or 1
        return rows_of_vocabulary(description, self._options, tensor_size=size)

    def begin(
        self,
        directory: Path,
        description: ModelDescription,
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        """Makes room for the tensors; arguments and errors as `convert.model_stream.Target`."""
        if description.config.num_layers is None:
            raise CheckpointError("the number of layers is not known")
        self._directory, self._description = directory, description
        self._spool = Spool(directory / _SPOOL)
        self._numbers = {
            name: self._spool.add(info.shape, info.dtype) for name, info in tensors.items()
        }
        self._spool.open()

    def write(self, name: str, tensor: Tensor) -> None:
        """Collects a tensor."""
        self._spool.view(self._numbers[name]).copy_(tensor)

    def destinations(self, name: str) -> tuple[str, ...]:
        """Key in the checkpoint, which may be that of all layers."""
        return (stacked_key(MODEL, name).key,)

    def finish(self) -> None:
        """Writes the checkpoint, and the tracker."""
        iteration = self._description.iteration
        name = directories.iteration_name(iteration) if iteration else directories.RELEASE
        folder = self._directory / name
        folder.mkdir()
        arguments = arguments_of(self._description, "torch_dist")
        counters = {counter: arguments[counter] for counter in COUNTERS}
        content = collect(
            iteration,
            tensors={MODEL: {n: self._spool.view(i) for n, i in self._numbers.items()}},
            values={
                "args": arguments,
                "counters": {
                    "iteration": iteration,
                    **counters,
                    "floating_point_operations": 0.0,
                },
            },
        )
        files = write_chunks(folder, content, stacks_of([structure(content)]), 0)
        finish(folder, content, [files])
        del content
        self._spool.close()
        tracker = str(iteration) if iteration else directories.RELEASE
        write_file(self._directory / directories.TRACKER, tracker.encode())
