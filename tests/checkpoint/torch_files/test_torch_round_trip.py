"""Files of torch.save are read by us, ours by torch, zipfile and pickle: equal values."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch.utils.serialization import config as serialization_config
from torch_file_cases import CASES, assert_same, plain, pretended_module

from megacore.checkpoint.torch_files import (
    Record,
    TorchFileStream,
    encode_pickle,
    read_torch_file,
    torch_file_bytes,
    write_torch_file,
)

FORMATS = {
    "zip": {},
    "zip protocol 4": {"pickle_protocol": 4},
    "zip protocol 5": {"pickle_protocol": 5},
    "before 1.6": {"_use_new_zipfile_serialization": False},
    "before 1.6, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_files_of_torch_are_read(tmp_path: Path, case: str, form: str) -> None:
    value = CASES[case]
    torch.save(value, tmp_path / "theirs.pt", **FORMATS[form])
    assert_same(read_torch_file(tmp_path / "theirs.pt", verify=True), plain(value))


@pytest.mark.parametrize("case", CASES)
def test_torch_reads_ours(tmp_path: Path, case: str) -> None:
    value = CASES[case]
    path = tmp_path / "ours.pt"
    torch.save(value, tmp_path / "theirs.pt")
    stream = write_torch_file(path, read_torch_file(tmp_path / "theirs.pt"))
    assert path.stat().st_size == stream.num_bytes
    assert_same(plain(torch.load(path, weights_only=False)), plain(value))
    assert_same(plain(torch.load(path, weights_only=False, mmap=True)), plain(value))
    assert_same(read_torch_file(path, verify=True), plain(value))
    assert stream.checksum == zlib.crc32(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert stream.checksums[info.filename.partition("/")[2]] == info.CRC


def test_torch_reads_tensors_with_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "ours.pt"
    value = {**CASES["tensors"], "namespace": argparse.Namespace(seed=1, betas=[0.9, 0.95])}
    write_torch_file(path, value)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert_same(plain(torch.load(path, weights_only=True)), plain(value))


def test_a_tensor_that_occurs_twice_is_stored_once() -> None:
    tensor = torch.arange(1000.0)
    loaded = torch.load(io.BytesIO(torch_file_bytes({"a": tensor, "b": [tensor]})))
    assert loaded["a"].data_ptr() == loaded["b"][0].data_ptr()
    assert len(torch_file_bytes([tensor, tensor])) < 1.5 * tensor.nbytes


def test_views_of_one_storage_share_it_when_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    torch.save([whole, whole[3:9].view(2, 3).t()], tmp_path / "views.pt")
    read, view = read_torch_file(tmp_path / "views.pt")
    assert torch.equal(view, whole[3:9].view(2, 3).t())
    read[4] = -1.0
    assert view[1, 0] == -1.0


def test_changing_a_tensor_does_not_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    write_torch_file(path, torch.arange(100000))
    before = path.read_bytes()
    read_torch_file(path).fill_(7)
    assert path.read_bytes() == before
    assert torch.equal(read_torch_file(path), torch.arange(100000))


@pytest.mark.parametrize("offset", [0, 1, 17, 4096, 5000])
def test_embedded_files(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "many"
    value = {"w": torch.randn(33, 5), "b": torch.arange(7, dtype=torch.int64)}
    data = torch_file_bytes(value)
    path.write_bytes(bytes(offset) + data + b"more")
    assert_same(read_torch_file((path, offset, len(data)), verify=True), value)


def test_large_and_strided_tensors_are_streamed_in_pieces() -> None:
    value = [
        torch.randn(3, 700, 500).transpose(0, 2),
        torch.randn(1, 900000)[:, ::2],
        torch.randn(2, 2).conj(),
        torch.randn(1001, 700, dtype=torch.complex64).t().conj(),
        torch.ones(1, 1).expand(1500, 300),
    ]
    stream = TorchFileStream(value)
    chunks = [bytes(chunk) for chunk in stream.chunks()]
    assert max(map(len, chunks)) <= 1 << 20
    assert sum(map(len, chunks)) == stream.num_bytes
    assert_same(torch.load(io.BytesIO(b"".join(chunks))), [part.resolve_conj() for part in value])


def test_pickles_without_tensors() -> None:
    value = {
        "texts": ["a", "a", "\ud800", "\u00e9"],
        "numbers": [0, 255, 256, 65536, -1, -(1 << 31), 1 << 31, 1 << 64, -(1 << 2000), 1.5],
        "long list": list(range(2500)),
        "ordered": OrderedDict(b=1, a=(1, 2, 3, 4)),
        "many texts": {str(i): str(i) for i in range(3000)},
    }
    assert pickle.loads(encode_pickle(value)) == value
    namespace = Record("argparse.Namespace", {"x": [1]})
    assert pickle.loads(encode_pickle(namespace)) == argparse.Namespace(x=[1])


def test_torch_computes_the_places_of_our_storages(tmp_path: Path) -> None:
    """It can do without the list of records if the layout is just that of its own writer."""
    path = tmp_path / "file.pt"
    value = {
        "tensors": [torch.arange(float(size)) for size in (0, 1, 15, 16, 17, 1000)],
        "text": "x" * 70,
    }
    write_torch_file(path, value)
    with serialization_config.patch("load.calculate_storage_offsets", True):
        assert_same(torch.load(path, mmap=True), value)


@pytest.mark.slow
def test_files_of_more_than_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    size = (1 << 32) + 100
    value = [torch.zeros(size, dtype=torch.uint8), torch.arange(5)]
    value[0][-1] = 7
    stream = write_torch_file(path, value)
    assert path.stat().st_size == stream.num_bytes
    for offsets in (False, True):
        with serialization_config.patch("load.calculate_storage_offsets", offsets):
            large, small = torch.load(path, mmap=True)
        assert large.shape == (size,)
        assert large[-1] == 7
        assert torch.equal(small, torch.arange(5))
    large, small = read_torch_file(path, verify=True)
    assert large.shape == (size,)
    assert large[-1] == 7
    assert torch.equal(small, torch.arange(5))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/0").file_size == size
        assert archive.read("archive/data/1") == torch.arange(5).numpy().tobytes()
    torch.save(value, tmp_path / "theirs.pt")
    path.unlink()
    large, small = read_torch_file(tmp_path / "theirs.pt", verify=True)
    assert large[-1] == 7
    assert torch.equal(small, torch.arange(5))
    (tmp_path / "theirs.pt").unlink()


class Tagged(torch.Tensor):
    """A tensor subclass, as they are made of a plain tensor."""


@pytest.mark.parametrize("form", FORMATS)
def test_parameters_with_attributes_and_subclasses_are_plain_tensors(
    tmp_path: Path, form: str
) -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.tensor_model_parallel = True  # As Megatron-LM marks its parameters.
    tensor = torch.arange(4)
    tensor.note = "x"
    value = [parameter, tensor, torch.arange(5.0).as_subclass(Tagged)]
    # A class of this file would be refused by its name.
    with pretended_module("megatron.core.tensor", Tagged):
        torch.save(value, tmp_path / "file.pt", **FORMATS[form])
    assert_same(
        read_torch_file(tmp_path / "file.pt"),
        [torch.arange(3.0), torch.arange(4), torch.arange(5.0)],
    )


@pytest.mark.parametrize("form", FORMATS)
def test_state_dictionaries_of_modules(tmp_path: Path, form: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(4, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    value = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(value, tmp_path / "file.pt", **FORMATS[form])
    assert_same(read_torch_file(tmp_path / "file.pt", verify=form.startswith("zip")), plain(value))


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_stored_from_there() -> None:
    value = [torch.randn(700, 1000, device="cuda"), torch.arange(24, device="cuda").view(4, 6).t()]
    loaded = torch.load(io.BytesIO(torch_file_bytes(value)))
    assert_same(loaded, [tensor.cpu() for tensor in value])
