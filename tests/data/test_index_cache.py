from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from dataset_fixtures import FakeTokenizer, config, write_documents

from megacore.data.datasets import build_datasets
from megacore.data.index_cache import ArraySpec, IndexFiles
from megacore.errors import DataError

IDENTITY = {"class": "GPTDataset", "size": 3}
SPECS = {
    "a_index": ArraySpec(np.dtype(np.int32), (3,)),
    "b_index": ArraySpec(np.dtype(np.int64), (2, 2)),
}


def arrays():
    return {"a_index": np.arange(3, dtype=np.int32), "b_index": np.ones((2, 2), np.int64)}


def refuse():
    raise AssertionError("built although the files are there")


def names_in(folder):
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def test_names_and_content(tmp_path):
    files = IndexFiles.describe(tmp_path / "deep" / "cache", IDENTITY, "train")
    files.load_or_build(SPECS, arrays)
    text = json.dumps(IDENTITY, indent=4)
    stem = hashlib.md5(text.encode()).hexdigest() + "-GPTDataset-train"
    folder = tmp_path / "deep" / "cache"
    assert names_in(folder) == [
        f"{stem}-a_index.npy", f"{stem}-b_index.npy", f"{stem}-description.txt",
    ]  # fmt: skip
    assert (folder / f"{stem}-description.txt").read_text() == text
    loaded = files.load_or_build(SPECS, refuse)
    assert isinstance(loaded["a_index"], np.memmap)
    np.testing.assert_array_equal(loaded["a_index"], [0, 1, 2])
    np.testing.assert_array_equal(np.load(folder / f"{stem}-b_index.npy"), np.ones((2, 2)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.unlink(),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(b"junk" + p.read_bytes()),
        lambda p: np.save(p, np.arange(4, dtype=np.int32)),
        lambda p: np.save(p, np.arange(3, dtype=np.int64)),
        lambda p: p.write_bytes(pickle.dumps([1, 2, 3])),
        lambda p: np.save(p, np.array([object()]), allow_pickle=True),
    ],
)
def test_damaged_files_are_built_again(tmp_path, damage):
    files = IndexFiles.describe(tmp_path, IDENTITY, "train")
    files.load_or_build(SPECS, arrays)
    damage(files.path("a_index"))
    built = files.load_or_build(SPECS, arrays)
    np.testing.assert_array_equal(built["a_index"], [0, 1, 2])
    files.load_or_build(SPECS, refuse)


def test_another_description_is_not_trusted(tmp_path):
    files = IndexFiles.describe(tmp_path, IDENTITY, "train")
    files.load_or_build(SPECS, arrays)
    files.path("description", ".txt").write_text("something else")
    with pytest.raises(AssertionError):
        files.load_or_build(SPECS, refuse)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    files = IndexFiles.describe(tmp_path / "file" / "cache", IDENTITY, "train")
    with pytest.raises(DataError, match=r"file/cache: Not a directory; .*--data-cache-path"):
        files.load_or_build(SPECS, arrays)


def test_cache_that_another_process_wrote_but_this_one_cannot_see(tmp_path):
    files = IndexFiles.describe(tmp_path, IDENTITY, "train")
    with pytest.raises(DataError, match=r"does not see .* share with --data-cache-path"):
        files.load_or_build(SPECS, refuse, may_build=False)
    files.load_or_build(SPECS, arrays)
    files.load_or_build(SPECS, refuse, may_build=False)


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("megacore.data.index_cache.fcntl.flock", unsupported)
    files = IndexFiles.describe(tmp_path, IDENTITY, "train")
    np.testing.assert_array_equal(files.load_or_build(SPECS, arrays)["a_index"], [0, 1, 2])


def test_leftovers_of_a_killed_builder_are_removed(tmp_path):
    files = IndexFiles.describe(tmp_path, IDENTITY, "train")
    leftover = tmp_path / f".{files.stem}-a_index.npy.abc.tmp"
    leftover.write_text("half")
    files.load_or_build(SPECS, arrays)
    assert not leftover.exists()


def test_failure_while_building_leaves_nothing_that_is_loaded(tmp_path):
    files = IndexFiles.describe(tmp_path, IDENTITY, "train")

    def fail():
        raise DataError("no tokens")

    with pytest.raises(DataError, match="no tokens"):
        files.load_or_build(SPECS, fail)
    assert names_in(tmp_path) == []


BUILDER = """
import sys
sys.path.insert(0, sys.argv[1])
from dataset_fixtures import FakeTokenizer, config
from megacore.data.datasets import build_datasets
data = config(data_path=(sys.argv[2],), split="90,10,0", data_cache_path=sys.argv[3])
train, valid, _ = build_datasets(data, FakeTokenizer(), seed=5, num_samples=(3000, 200, None))
print(hash(train.indices["shuffle_index"].tobytes() + train.indices["sample_index"].tobytes()),
      train[17].tokens.tolist(), valid[3].tokens.tolist())
"""


def test_many_processes_build_the_same_cache_at_once(tmp_path):
    write_documents(tmp_path / "d", [13, 40, 0, 7] * 200)
    cache = tmp_path / "cache"
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, here, str(tmp_path / "d"), str(cache)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for _ in range(6)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(outputs) == 1
    assert len(outputs.pop()) > 50
    names = names_in(cache)
    assert len(names) == 8
    assert not any(name.endswith(".tmp") for name in names)


def test_gpt_caches_lie_beside_the_dataset_unless_told_otherwise(tmp_path):
    write_documents(tmp_path / "d", [50, 60])
    data = config(data_path=(str(tmp_path / "d"),), split="1")
    build_datasets(data, FakeTokenizer(), seed=5, num_samples=(5, None, None))
    names = names_in(tmp_path / "d" / "cache" / "GPTDataset_indices")
    assert [name[32:] for name in names] == [
        f"-GPTDataset-train-{rest}"
        for rest in (
            "description.txt", "document_index.npy", "sample_index.npy", "shuffle_index.npy",
        )
    ]  # fmt: skip
