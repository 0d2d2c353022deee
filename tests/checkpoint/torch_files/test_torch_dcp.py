"""Directories of torch.distributed.checkpoint: theirs read by us, ours read by them."""

from __future__ import annotations

import pickle
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hostile import call, name, text
from torch.distributed._shard.sharded_tensor import metadata as sharded_tensor_metadata
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_file_cases import assert_same, pretended_module

from megacore.checkpoint.torch_files import TorchFileStream, read_torch_file
from megacore.checkpoint.torch_files.dcp import (
    METADATA_NAME,
    BytesEntry,
    DcpMetadata,
    StorageSpan,
    TensorEntry,
    encode_dcp_metadata,
    read_dcp_metadata,
    read_item,
    write_dcp_metadata,
)
from megacore.errors import CheckpointError, UnsafeFileError

STATE = {
    "model": {
        "weight": torch.arange(42.0).view(6, 7),
        "bias": torch.ones(5, dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
    },
    "list": [1, {"a": "b"}],
    "step": 7,
}


def save_theirs(directory: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is only one process
        dcp.save(state, storage_writer=dcp.FileSystemWriter(directory))


def load_theirs(directory: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=dcp.FileSystemReader(directory))


def write_chunks(directory: Path, tensors: dict[str, torch.Tensor], rows: int) -> DcpMetadata:
    """Every tensor cut along its first axis, each cut in the file of another rank."""
    entries, storage, sizes = {}, {}, {}
    for key, tensor in tensors.items():
        chunks = []
        for index, part in enumerate(tensor.split(rows)):
            offsets = (index * rows, *(0 for _ in part.shape[1:]))
            file = f"__{index}_0.distcp"
            stream = TorchFileStream(part)
            at = sizes.get(file, 0)
            with (directory / file).open("ab") as out:
                out.writelines(stream.chunks())
                padding = -stream.num_bytes % 64
                out.write(bytes(padding))
            sizes[file] = at + stream.num_bytes + padding
            chunks.append((offsets, tuple(part.shape)))
            storage[key, offsets, index] = StorageSpan(file, at, stream.num_bytes)
        entries[key] = TensorEntry(tuple(tensor.shape), tensor.dtype, tuple(chunks))
    return DcpMetadata(entries, storage)


def test_what_torch_saved_is_read(tmp_path: Path) -> None:
    save_theirs(tmp_path, STATE)
    metadata = read_dcp_metadata(tmp_path)
    assert metadata.entries["model.weight"] == TensorEntry(
        (6, 7), torch.float32, (((0, 0), (6, 7)),)
    )
    assert metadata.entries["step"] == BytesEntry()
    assert metadata.planner_data["list.1.a"] == ("list", 1, "a")
    found = {
        key[0]: read_item(tmp_path, span, verify=True) for key, span in metadata.storage.items()
    }
    assert_same(found.pop("list.0"), 1)
    assert_same(found.pop("list.1.a"), "b")
    assert_same(found.pop("step"), 7)
    assert_same(
        {key: found[key] for key in sorted(found)},
        {f"model.{key}": STATE["model"][key] for key in sorted(STATE["model"])},
    )


def test_torch_reads_our_chunks(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "decoder.weight": torch.randn(10, 3, generator=generator),
        "decoder.bias": torch.randn(10, generator=generator).bfloat16(),
        "counts": torch.arange(24).view(4, 3, 2),
    }
    metadata = write_chunks(tmp_path, tensors, rows=4)
    metadata = replace(metadata, extra={"mcore_data": {"decoder.weight": {}}})
    write_dcp_metadata(tmp_path, metadata)
    loaded = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    load_theirs(tmp_path, loaded)
    assert_same(loaded, tensors)
    dcp_to_torch_save(tmp_path, tmp_path / "all.pt")
    assert_same(read_torch_file(tmp_path / "all.pt"), tensors)
    again = read_dcp_metadata(tmp_path)
    assert again.entries == metadata.entries
    assert again.storage == metadata.storage
    assert again.extra["mcore_data"] == {"decoder.weight": {}}
    assert again.planner_data == {key: (key,) for key in tensors}


def test_chunks_are_views_of_the_file(tmp_path: Path) -> None:
    metadata = write_chunks(tmp_path, {"w": torch.arange(12.0).view(6, 2)}, rows=2)
    for key, span in metadata.storage.items():
        chunk = read_item(tmp_path, span, verify=True)
        assert chunk.data_ptr() % 64 == 0
        assert torch.equal(chunk, torch.arange(12.0).view(6, 2)[key[1][0] : key[1][0] + 2])


def test_torch_reads_our_objects_and_nesting(tmp_path: Path) -> None:
    save_theirs(tmp_path / "theirs", STATE)
    theirs = read_dcp_metadata(tmp_path / "theirs")
    ours = tmp_path / "ours"
    ours.mkdir()
    storage, at = {}, 0
    with (ours / "__0_0.distcp").open("wb") as out:
        for key, span in theirs.storage.items():
            stream = TorchFileStream(read_item(tmp_path / "theirs", span))
            out.writelines(stream.chunks())
            storage[key] = StorageSpan("__0_0.distcp", at, stream.num_bytes)
            at += stream.num_bytes
    write_dcp_metadata(ours, replace(theirs, storage=storage, extra={}))
    loaded = {
        "model": {key: torch.zeros_like(value) for key, value in STATE["model"].items()},
        "list": [None, {"a": None}],
        "step": None,
    }
    load_theirs(ours, loaded)
    assert_same(loaded, STATE)


def test_the_metadata_of_torch_is_equal(tmp_path: Path) -> None:
    """Their classes, made from our bytes, are what their own writer would have made."""
    save_theirs(tmp_path, STATE)
    theirs = pickle.loads((tmp_path / METADATA_NAME).read_bytes())
    ours = pickle.loads(encode_dcp_metadata(read_dcp_metadata(tmp_path)))
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    assert [index.index for index in ours.storage_data] == [
        index.index for index in theirs.storage_data
    ]
    assert ours.planner_data == theirs.planner_data
    assert ours.version == theirs.version


def test_metadata_of_megatron_is_read(tmp_path: Path) -> None:
    """Its class extends torch's; neither is needed to read it."""

    @dataclass
    class MCoreMetadata(torch_metadata.Metadata):
        mcore_data: Any = None

    value = MCoreMetadata(
        {
            "w": torch_metadata.TensorStorageMetadata(
                torch_metadata.TensorProperties(dtype=torch.bfloat16),
                torch.Size([2, 1, 8]),
                [
                    torch_metadata.ChunkStorageMetadata(
                        torch.Size([i, 0, 0]), torch.Size([1, 1, 8])
                    )
                    for i in range(2)
                ],
            )
        },
        storage_data={
            torch_metadata.MetadataIndex("w", [i, 0, 0], i): _StorageInfo(f"__{i}_0.distcp", 5, 9)
            for i in range(2)
        },
        mcore_data={"w": {"nd_reformulated_orig_global_shape": (2, 8)}},
    )
    with pretended_module("megatron.core.dist_checkpointing.strategies.torch", MCoreMetadata):
        (tmp_path / METADATA_NAME).write_bytes(pickle.dumps(value))
    metadata = read_dcp_metadata(tmp_path)
    assert metadata.entries["w"] == TensorEntry(
        (2, 1, 8), torch.bfloat16, (((0, 0, 0), (1, 1, 8)), ((1, 0, 0), (1, 1, 8)))
    )
    assert metadata.storage["w", (1, 0, 0), 1] == StorageSpan("__1_0.distcp", 5, 9)
    assert metadata.extra["mcore_data"] == {"w": {"nd_reformulated_orig_global_shape": (2, 8)}}
    assert "megatron" not in {loaded.partition(".")[0] for loaded in sys.modules}


BASE = DcpMetadata(
    {"w": TensorEntry((4, 6), torch.float32, (((0, 0), (4, 6)),)), "o": BytesEntry()},
    {("w", (0, 0), 0): StorageSpan("a.distcp", 0, 8), ("o", None, None): StorageSpan("b", 8, 8)},
)


def entry(**changes: Any) -> DcpMetadata:
    return replace(BASE, entries={**BASE.entries, "w": replace(BASE.entries["w"], **changes)})


def stored(*span: Any) -> DcpMetadata:
    return replace(BASE, storage={("w", (0, 0), 0): StorageSpan(*span)})


IMPOSSIBLE = {
    "chunk past the end": entry(chunks=(((1, 0), (4, 6)),)),
    "chunk of other rank": entry(chunks=(((0,), (4,)),)),
    "dtype that is none": entry(dtype=torch.strided),
    "shape past all bounds": entry(shape=(1 << 40, 1 << 40), chunks=()),
    "negative offset": stored("a", -1, 8),
    "negative length": stored("a", 0, -8),
    "offset that is a float": stored("a", 0.5, 8),
    "parent directory": stored("../a", 0, 8),
    "parent directory inside": stored("a/../../b", 0, 8),
    "absolute": stored("/etc/passwd", 0, 8),
    "no name": stored("", 0, 8),
    "NUL in the name": stored("a\0b", 0, 8),
    "stored outside of its tensor": replace(
        BASE, storage={("w", (5, 0), 0): StorageSpan("a", 0, 8)}
    ),
    "stored at offsets of another rank": replace(
        BASE, storage={("w", (0,), 0): StorageSpan("a", 0, 8)}
    ),
    "object with offsets": replace(BASE, storage={("o", (1,), 0): StorageSpan("a", 0, 8)}),
    "negative chunk number": replace(BASE, storage={("w", (0, 0), -1): StorageSpan("a", 0, 8)}),
    "huge chunk number": replace(BASE, storage={("w", (0, 0), 1 << 40): StorageSpan("a", 0, 8)}),
    "empty but too large": entry(shape=(0, 1 << 40, 1 << 40), chunks=()),
    "stored but not described": replace(BASE, storage={("x", None, None): StorageSpan("a", 0, 8)}),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_metadata_is_refused(tmp_path: Path, case: str) -> None:
    write_dcp_metadata(tmp_path, IMPOSSIBLE[case])
    with pytest.raises(CheckpointError, match=r"\.metadata: "):
        read_dcp_metadata(tmp_path)


MALICIOUS = {
    "code": call("os", "system", text("true")),
    "a dictionary": b"}",
    "another record": call("argparse", "Namespace"),
    "no contents": name("torch.distributed.checkpoint.metadata", "Metadata") + b")\x81",
    "tensor": call("torch._utils", "_rebuild_tensor_v2", b"K\x00Q"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_other_pickles_are_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / METADATA_NAME).write_bytes(b"\x80\x02" + MALICIOUS[case] + b".")
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        read_dcp_metadata(tmp_path)


def test_transformed_items_are_refused(tmp_path: Path) -> None:
    save_theirs(tmp_path, {"w": torch.ones(2)})
    value = pickle.loads((tmp_path / METADATA_NAME).read_bytes())
    next(iter(value.storage_data.values())).transform_descriptors = ["stream.zstd"]
    (tmp_path / METADATA_NAME).write_bytes(pickle.dumps(value))
    with pytest.raises(CheckpointError, match=r"transformed by .*zstd.*not supported"):
        read_dcp_metadata(tmp_path)


def test_a_chunk_that_is_cut_off_is_named(tmp_path: Path) -> None:
    save_theirs(tmp_path, STATE)
    metadata = read_dcp_metadata(tmp_path)
    file = tmp_path / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-10])
    last = max(metadata.storage.values(), key=lambda span: span.offset)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: .*cut off"):
        read_item(tmp_path, last)
    with pytest.raises((CheckpointError, UnsafeFileError), match=r"__0_0\.distcp"):
        read_item(tmp_path, replace(last, offset=last.offset - 64))


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        read_dcp_metadata(tmp_path)


def test_metadata_of_torch_2_1_is_read(tmp_path: Path) -> None:
    """There the properties of tensors were a class of sharded tensors, and much was missing."""
    value = torch_metadata.Metadata(
        {
            "w": torch_metadata.TensorStorageMetadata(
                sharded_tensor_metadata.TensorProperties(dtype=torch.float16),  # type: ignore[arg-type]
                torch.Size([3]),
                [torch_metadata.ChunkStorageMetadata(torch.Size([0]), torch.Size([3]))],
            )
        },
        storage_data={
            torch_metadata.MetadataIndex("w", [0], 0): _StorageInfo("__0_0.distcp", 0, 9)
        },
    )
    del value.storage_meta, value.version
    (tmp_path / METADATA_NAME).write_bytes(pickle.dumps(value, protocol=2))
    metadata = read_dcp_metadata(tmp_path)
    assert metadata.entries == {"w": TensorEntry((3,), torch.float16, (((0,), (3,)),))}
    assert metadata.storage == {("w", (0,), 0): StorageSpan("__0_0.distcp", 0, 9)}
    assert metadata.extra == {}
