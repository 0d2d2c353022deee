from __future__ import annotations

import errno
import os
import random
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore.data.indexed_dataset import (
    IndexedDataset,
    IndexedDatasetWriter,
    dataset_exists,
    token_dtype,
)
from megacore.errors import DataError

PUBLISHED_INDEX = bytes.fromhex(
    "4d4d4944494458000001000000000000000803000000000000000300000000000000030000000200000000000000"
    "000000000000000006000000000000000a0000000000000000000000000000000200000000000000"
    "0300000000000000"
)


def write(prefix, sequences, per_document=None, dtype=np.uint16, **options):
    flat = np.concatenate([np.asarray(s, dtype=dtype) for s in sequences] or [np.array([], dtype)])
    with IndexedDatasetWriter(str(prefix), dtype, **options) as writer:
        writer.add_documents(flat, [len(s) for s in sequences], per_document)
    return str(prefix)


def test_published_index_bytes(tmp_path):
    prefix = write(tmp_path / "a", [[1, 2, 3], [4, 5], []], [2, 1])
    assert (tmp_path / "a.idx").read_bytes() == PUBLISHED_INDEX
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<5H", 1, 2, 3, 4, 5)
    dataset = IndexedDataset(prefix)
    assert dataset.document_indices.tolist() == [0, 2, 3]
    assert [s.tolist() for s in dataset.document(0)] == [[1, 2, 3], [4, 5]]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


@pytest.mark.parametrize(
    "dtype",
    [np.uint8, np.int8, np.int16, np.int32, np.int64, np.float64, np.float32, np.uint16],
)
@pytest.mark.parametrize("mmap", [True, False])
def test_every_item_type_survives(tmp_path, dtype, mmap):
    sequences = [[1, 2, 100], [], [7], list(range(5, 60))]
    dataset = IndexedDataset(write(tmp_path / "a", sequences, dtype=dtype), mmap=mmap)
    assert dataset.dtype == dtype
    assert [s.tolist() for s in dataset[:]] == sequences
    assert all(s.dtype == dtype for s in dataset[:])
    assert dataset.get(3, 10, 4).tolist() == [15, 16, 17, 18]
    assert dataset[-1].tolist() == sequences[-1]
    assert dataset.num_tokens == 59
    assert dataset.byte_offsets.tolist() == [n * np.dtype(dtype).itemsize for n in (0, 3, 3, 4)]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 65535), max_size=6), max_size=4), max_size=8
    )
)
def test_one_by_one_equals_in_bulk(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("w")
    with IndexedDatasetWriter(str(folder / "single"), np.uint16) as writer:
        for sequences in documents:
            for sequence in sequences:
                writer.add_sequence(sequence)
            writer.end_document()
    write(
        folder / "bulk", [s for sequences in documents for s in sequences],
        [len(sequences) for sequences in documents],
    )  # fmt: skip
    for suffix in (".bin", ".idx"):
        single, bulk = (folder / f"{name}{suffix}" for name in ("single", "bulk"))
        assert single.read_bytes() == bulk.read_bytes()
    dataset = IndexedDataset(str(folder / "bulk"))
    assert [[s.tolist() for s in dataset.document(i)] for i in range(len(documents))] == documents


def test_merge_is_the_concatenation(tmp_path):
    first = [[1, 2], [3], []]
    second = [[9] * 700, [], [5]]
    write(tmp_path / "a", first, [1, 0, 2])
    write(tmp_path / "b", second, [2, 1])
    with IndexedDatasetWriter(str(tmp_path / "ab"), np.uint16) as writer:
        writer.append(str(tmp_path / "a"))
        writer.append(str(tmp_path / "b"))
    write(tmp_path / "c", first + second, [1, 0, 2, 2, 1])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ab{suffix}").read_bytes() == (tmp_path / f"c{suffix}").read_bytes()


def test_merge_refuses_another_type(tmp_path):
    write(tmp_path / "a", [[1]], dtype=np.int32)
    writer = IndexedDatasetWriter(str(tmp_path / "m"), np.uint16)
    with pytest.raises(DataError, match=r"expected items of type uint16 .* found int32"):
        writer.append(str(tmp_path / "a"))


def test_modes_of_multimodal_datasets(tmp_path):
    with IndexedDatasetWriter(str(tmp_path / "a"), np.int32, multimodal=True) as writer:
        writer.add_sequence([1, 2], mode=0)
        writer.add_sequence([3], mode=1)
        writer.end_document()
        writer.add_document([4, 5], [1, 1], modes=[1, 0])
    dataset = IndexedDataset(str(tmp_path / "a"), multimodal=True)
    assert dataset.sequence_modes.tolist() == [0, 1, 1, 0]
    with pytest.raises(DataError, match="or multimodal"):
        IndexedDataset(str(tmp_path / "a"))
    with IndexedDatasetWriter(str(tmp_path / "b"), np.int32, multimodal=True) as writer:
        writer.append(str(tmp_path / "a"))
        writer.append(str(tmp_path / "a"))
    merged = IndexedDataset(str(tmp_path / "b"), multimodal=True)
    assert merged.sequence_modes.tolist() == [0, 1, 1, 0] * 2


def test_item_type_follows_the_vocabulary():
    assert token_dtype(65499) == np.uint16
    assert token_dtype(65500) == np.int32
    assert token_dtype(None) == np.int32


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda w: w.add_document([70000]), "token 70000 does not fit the item type uint16"),
        (lambda w: w.add_document([-1]), "token -1 does not fit"),
        (lambda w: w.add_document([1.5]), "expected integer tokens"),
        (lambda w: w.add_document([[1]]), r"shape \[n\]"),
        (lambda w: w.add_document([1, 2], [1]), "add up to 1, but 2 items"),
        (lambda w: w.add_documents([1, 2], [1, 1], [1]), "1 sequences together, but 2 lengths"),
        (lambda w: w.add_documents([1], [1], modes=[1]), "expected 0 modes"),
        (lambda w: (w.add_sequence([1]), w.finalize()), "after the last end of a document"),
        (lambda w: (w.finalize(), w.end_document()), "already finished"),
    ],
)
def test_wrong_use_of_the_writer(tmp_path, action, message):
    writer = IndexedDatasetWriter(str(tmp_path / "a"), np.uint16)
    with pytest.raises(DataError, match=message):
        action(writer)


def test_an_exception_leaves_nothing_behind(tmp_path):
    write(tmp_path / "a", [[1]])

    def fail_halfway():
        with IndexedDatasetWriter(str(tmp_path / "a"), np.uint16) as writer:
            writer.add_document([5, 6])
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]
    assert IndexedDataset(str(tmp_path / "a"))[0].tolist() == [1]


def test_two_writers_of_one_prefix(tmp_path):
    first = IndexedDatasetWriter(str(tmp_path / "a"), np.uint16)
    with pytest.raises(DataError, match=r"a\.bin\.partial: another process is writing"):
        IndexedDatasetWriter(str(tmp_path / "a"), np.uint16)
    first.add_document([1])
    first.finalize()
    assert IndexedDataset(str(tmp_path / "a"))[0].tolist() == [1]


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with (
            pytest.raises(DataError, match=rf"a\.bin\.partial: cannot write: "
                          rf"{os.strerror(errno.EFBIG)}"),
            IndexedDatasetWriter(str(tmp_path / "a"), np.uint16) as writer,
        ):  # fmt: skip
            writer.add_document(np.zeros(1 << 20, np.uint16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path) == []


KILLED_WRITER = """
import os, sys
import numpy as np
from megacore.data.indexed_dataset import IndexedDatasetWriter
writer = IndexedDatasetWriter(sys.argv[1], np.uint16)
writer.add_document(np.arange(5000))
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""


def test_killed_writer_leaves_the_old_dataset_and_does_not_block(tmp_path):
    prefix = write(tmp_path / "a", [[1, 2]])
    subprocess.run([sys.executable, "-c", KILLED_WRITER, prefix], stdout=subprocess.DEVNULL)
    assert (tmp_path / "a.bin.partial").exists()
    assert IndexedDataset(prefix)[0].tolist() == [1, 2]
    write(prefix, [[3]])
    assert IndexedDataset(prefix)[0].tolist() == [3]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


@pytest.mark.parametrize("renames_done", [1, 2])
@pytest.mark.parametrize("finisher", ["reader", "writer", "exists"])
def test_publishing_that_was_interrupted_is_completed(tmp_path, renames_done, finisher):
    prefix = write(tmp_path / "a", [[1, 2]])
    write(tmp_path / "new", [[3, 4, 5]])
    # The state after the given number of the three renames of a publication of "new" as "a".
    (tmp_path / "new.idx").rename(tmp_path / "a.idx.committed")
    target = "a.bin.partial" if renames_done == 1 else "a.bin"
    (tmp_path / "new.bin").rename(tmp_path / target)
    if finisher == "reader":
        assert IndexedDataset(prefix)[0].tolist() == [3, 4, 5]
    elif finisher == "writer":
        IndexedDatasetWriter(prefix, np.uint16).abandon()
    else:
        assert dataset_exists(prefix)
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]
    assert IndexedDataset(prefix)[0].tolist() == [3, 4, 5]


def test_missing_files_are_named(tmp_path):
    prefix = write(tmp_path / "a", [[1]])
    with pytest.raises(DataError, match=r"b\.idx and .*b\.bin; both are missing"):
        IndexedDataset(str(tmp_path / "b"))
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"the \.bin file is missing"):
        IndexedDataset(prefix)
    assert not dataset_exists(prefix)
    with pytest.raises(DataError, match="S3 is not supported"):
        IndexedDataset("s3://bucket/key")


def patched(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"X", r"a\.idx, byte 0: expected the magic .*found 58"),
        (9, b"\2", r"byte 9: expected version 1, found 2"),
        (17, b"\0", r"byte 17: expected a dtype code from 1 to 8, found 0"),
        (17, b"\4", r"byte 54: offset of sequence 1: expected 12 .*found 6"),
        (18, b"\xff" * 8, r"byte 18: 18446744073709551615 sequences"),
        (26, b"\0", r"byte 18: 3 sequences and 0 document boundaries"),
        (34, struct.pack("<i", -1), r"byte 34: length of sequence 0: .*found -1"),
        (34, struct.pack("<i", 2), r"byte 54: offset of sequence 1: expected 4 .*found 6"),
        (46, b"\1", r"byte 46: offset of sequence 0: expected 0 .*found 1"),
        (70, b"\1", r"byte 70: expected first document boundary 0, found 1"),
        (78, b"\4", r"byte 78: document boundary 1: expected a value from 0 to 3, found 4"),
        (86, b"\2", r"byte 86: expected last document boundary 3 .*found 2"),
    ],
)
def test_damage_is_located(tmp_path, offset, data, message):
    prefix = write(tmp_path / "a", [[1, 2, 3], [4, 5], []], [2, 1])
    patched(tmp_path / "a.idx", offset, data)
    with pytest.raises(DataError, match=message):
        IndexedDataset(prefix)


def test_bin_of_another_size(tmp_path):
    prefix = write(tmp_path / "a", [[1, 2, 3], [4, 5]])
    (tmp_path / "a.bin").write_bytes(b"\0" * 8)
    with pytest.raises(DataError, match=r"a\.bin: .* holds 10 bytes .* but it has 8; it is trunc"):
        IndexedDataset(prefix)


def outcome(prefix):
    """Everything the reader says, or None for a refusal."""
    try:
        dataset = IndexedDataset(prefix)
    except DataError:
        return None
    return (
        dataset.dtype.itemsize,
        dataset.sequence_lengths.tolist(),
        dataset.byte_offsets.tolist(),
        [s.tobytes() for s in dataset[:]],
    )


def test_every_truncation_of_the_index_is_refused(tmp_path):
    prefix = write(tmp_path / "a", [[1, 2, 3], [4, 5], []], [2, 1])
    content = (tmp_path / "a.idx").read_bytes()
    for size in range(len(content)):
        (tmp_path / "a.idx").write_bytes(content[:size])
        assert outcome(prefix) is None, size


def test_random_damage_changes_nothing_or_is_refused(tmp_path):
    """The item type within its size and inner document boundaries have no redundancy."""
    rng = random.Random(1)
    sequences = [[rng.randrange(60000) for _ in range(rng.randrange(9))] for _ in range(20)]
    prefix = write(tmp_path / "a", sequences)
    content = (tmp_path / "a.idx").read_bytes()
    intact = outcome(prefix)
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.idx").write_bytes(damaged)
        assert outcome(prefix) in (None, intact)


def test_unvalidated_index_cannot_lead_outside_of_the_file(tmp_path):
    prefix = write(tmp_path / "a", [[1, 2, 3], [4, 5], [6]])
    patched(tmp_path / "a.idx", 46, struct.pack("<q", 1 << 40))
    dataset = IndexedDataset(prefix, validate=False)
    with pytest.raises(DataError, match="lies outside of"):
        dataset[0]
    assert dataset[1].tolist() == [4, 5]


@pytest.mark.parametrize("arguments", [(0, -1, 1), (0, 0, 4), (0, 3, 1), (0, 2, -5)])
def test_items_that_are_not_there(tmp_path, arguments):
    dataset = IndexedDataset(write(tmp_path / "a", [[1, 2, 3]]))
    with pytest.raises(DataError, match="expected items within its 3"):
        dataset.get(*arguments)
    with pytest.raises(IndexError, match="sequence 1 of 1"):
        dataset[1]
    with pytest.raises(IndexError, match="document 1 of 1"):
        dataset.document(1)


@pytest.mark.parametrize("mmap", [True, False])
def test_files_beyond_four_gigabytes(tmp_path, mmap):
    """Five sequences of 2^29 int32 tokens (sparse: 10 GiB of holes) and a short one at the end."""
    lengths = np.array([1 << 29] * 5 + [3], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1].astype(np.int64) * 4)])
    prefix = str(tmp_path / "huge")
    with open(prefix + ".idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 6, 7))
        file.write(lengths.tobytes() + offsets.tobytes() + np.arange(7, dtype=np.int64).tobytes())
    try:
        with open(prefix + ".bin", "wb") as file:
            file.truncate(int(offsets[-1]) + 12)
            file.seek(int(offsets[-1]))
            file.write(struct.pack("<3i", 7, 8, 9))
            file.seek(int(offsets[4]) + 4 * ((1 << 29) - 1))
            file.write(struct.pack("<i", 5))
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    dataset = IndexedDataset(prefix, mmap=mmap)
    assert dataset.num_tokens == 5 * 2**29 + 3 > 2**31
    assert dataset[5].tolist() == [7, 8, 9]
    assert dataset.get(4, (1 << 29) - 2).tolist() == [0, 5]


def test_importing_the_reader_does_not_import_torch():
    code = (
        "import sys; import megacore.data.indexed_dataset; from megacore.data import "
        "IndexedDataset; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
