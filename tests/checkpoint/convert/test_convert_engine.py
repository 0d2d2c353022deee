"""The engine: what fits is converted one tensor at a time, what does not is refused and listed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_cases import FolderTarget, MemorySource, random_model, read_folder, with_tokenizer

from megacore.checkpoint.claim import Claim
from megacore.checkpoint.convert import publish
from megacore.checkpoint.convert.engine import convert
from megacore.errors import CheckpointError

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


def left_behind(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_every_tensor_arrives_unchanged_and_in_the_order_of_the_model(tmp_path) -> None:
    model = random_model()
    target = FolderTarget()
    plan = convert(MemorySource(model), target, tmp_path / "made")
    found = read_folder(tmp_path / "made")
    expected = dict(model.named_parameters())
    assert target.written == list(expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert left_behind(tmp_path) == ["made"]
    assert plan.num_elements == sum(p.numel() for p in expected.values())


def test_one_tensor_of_the_source_is_alive_at_a_time(tmp_path) -> None:
    source = MemorySource(random_model(rows=211, num_layers=6), num_layers=6)
    largest = max(t.numel() * t.element_size() for t in source.tensors.values())
    convert(source, FolderTarget(rows=256), tmp_path / "made", dtype=torch.bfloat16)
    assert source.most_alive == 1
    assert source.most_bytes == largest
    assert sum(t.numel() for t in source.tensors.values()) * 4 > 2 * largest


@pytest.mark.parametrize("rows", [40, 31, 29])
def test_padding_rows_are_cut_or_repeat_the_last_true_row(tmp_path, rows) -> None:
    model = random_model(rows=37)
    convert(MemorySource(model, vocab_size=29), FolderTarget(rows), tmp_path / "made")
    found = read_folder(tmp_path / "made")
    for name in (EMBEDDING, OUTPUT):
        before = dict(model.named_parameters())[name]
        kept = min(rows, 37)
        assert torch.equal(found[name][:kept], before[:kept])
        assert torch.equal(found[name][kept:], before[28].expand(rows - kept, -1))


@pytest.mark.parametrize(
    ("rows", "known", "message"),
    [(28, 29, "fewer than the true size 29"), (36, None, "--true-vocab-size")],
)
def test_rows_that_mean_something_are_not_cut(tmp_path, rows, known, message) -> None:
    source = MemorySource(random_model(rows=37), vocab_size=known)
    with pytest.raises(CheckpointError, match=message):
        convert(source, FolderTarget(rows), tmp_path / "made")
    assert left_behind(tmp_path) == []


def test_true_size_of_the_caller_wins(tmp_path) -> None:
    source = MemorySource(random_model(rows=37))
    plan = convert(source, FolderTarget(30), tmp_path / "made", vocab_size=30)
    assert (plan.description.vocab_size, plan.description.padded_vocab_size) == (30, 30)
    with pytest.raises(CheckpointError, match="38 is larger than the 37 rows"):
        convert(source, FolderTarget(), tmp_path / "other", vocab_size=38)


def test_dtype_is_changed_by_one_rounding(tmp_path) -> None:
    model = random_model()
    convert(MemorySource(model), FolderTarget(), tmp_path / "made", dtype=torch.bfloat16)
    for name, tensor in read_folder(tmp_path / "made").items():
        expected = dict(model.named_parameters())[name].to(torch.bfloat16)
        assert torch.equal(tensor, expected)


def test_values_that_a_dtype_cannot_hold_are_refused(tmp_path) -> None:
    source = MemorySource(random_model())
    source.tensors[OUTPUT] = source.tensors[OUTPUT].clone()
    source.tensors[OUTPUT][3, 5] = 70000.0
    with pytest.raises(CheckpointError, match=r"output_layer.weight: 1 values .* float16"):
        convert(source, FolderTarget(), tmp_path / "made", dtype=torch.float16)
    assert left_behind(tmp_path) == []
    convert(source, FolderTarget(), tmp_path / "made", dtype=torch.bfloat16)


def test_everything_that_does_not_fit_is_listed_before_anything_is_read(tmp_path) -> None:
    source = MemorySource(random_model())
    del source.tensors["decoder.layers.1.mlp.linear_fc2.weight"]
    source.tensors["decoder.layers.9.mlp.linear_fc2.weight"] = torch.zeros(2)
    source.tensors[OUTPUT] = torch.zeros(37, 23)
    source.strange = {"lora.A": "", "rope.freqs": "computed"}
    with pytest.raises(CheckpointError) as caught:
        convert(source, FolderTarget(), tmp_path / "made")
    message = str(caught.value)
    assert "missing: decoder.layers.1.mlp.linear_fc2.weight [24, 40]" in message
    assert "not part of the model: decoder.layers.9.mlp.linear_fc2.weight" in message
    assert "output_layer.weight: expected shape [37, 24], found [37, 23]" in message
    assert "not known: lora.A" in message
    assert "rope.freqs" not in message
    assert source.most_alive == 0
    assert left_behind(tmp_path) == []


def test_unknown_tensors_may_be_left_out_and_are_shown(tmp_path) -> None:
    source = MemorySource(random_model())
    source.strange = {"lora.A": "", "rope.freqs": "computed"}
    plan = convert(source, FolderTarget(), tmp_path / "made", allow_unknown=True)
    assert plan.table.left_out == {"lora.A": "not known", "rope.freqs": "computed"}
    assert "not converted: lora.A: not known" in plan.table.text()


def test_table_has_every_tensor_and_joins_layers(tmp_path) -> None:
    source = MemorySource(random_model(num_layers=12), num_layers=12)
    plan = convert(source, FolderTarget(40), tmp_path / "made", dtype=torch.bfloat16)
    values = plan.table.values()["tensors"]
    assert [row["canonical"] for row in values] == source.names()
    assert values[0] == {
        "source": [f"memory.{EMBEDDING}"],
        "canonical": EMBEDDING,
        "target": [f"folder.{EMBEDDING}"],
        "source_shape": [37, 24],
        "target_shape": [40, 24],
        "source_dtype": "float32",
        "target_dtype": "bfloat16",
    }
    lines = plan.table.text().splitlines()
    assert len(lines) == 1 + 3 + 6  # head, embedding, final norm, output, parts of a layer
    row = next(line for line in lines if "linear_fc2" in line)
    assert row.split()[:3] == [
        f"{where}decoder.layers.*.mlp.linear_fc2.weight" for where in ("memory.", "", "folder.")
    ]
    assert row.endswith("float32 -> bfloat16  12")


def test_tokenizer_files_travel_and_paths_follow_them(tmp_path) -> None:
    (tmp_path / "v.json").write_text("{}")
    files = {"vocab.json": tmp_path / "v.json", "merges.txt": b"#version"}
    values = {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "vocab.json"}
    values["merge_file"] = "merges.txt"
    source = with_tokenizer(MemorySource(random_model()), values, files)
    target = FolderTarget()
    convert(source, target, tmp_path / "made")
    assert target.description.tokenizer == {
        "tokenizer_type": "GPT2BPETokenizer",
        "vocab_file": "tokenizer/vocab.json",
        "merge_file": "tokenizer/merges.txt",
    }
    assert (tmp_path / "made/tokenizer/vocab.json").read_text() == "{}"
    assert (tmp_path / "made/tokenizer/merges.txt").read_bytes() == b"#version"


def test_tokenizer_file_cannot_leave_its_folder(tmp_path) -> None:
    source = with_tokenizer(MemorySource(random_model()), {}, {"../evil": b"x"})
    with pytest.raises(CheckpointError, match="plain file name"):
        convert(source, FolderTarget(), tmp_path / "made")
    assert left_behind(tmp_path) == []


def test_progress_counts_tensors_and_bytes(tmp_path) -> None:
    seen = []
    source = MemorySource(random_model())
    plan = convert(
        source, FolderTarget(), tmp_path / "made", progress=lambda *values: seen.append(values)
    )
    count, size = len(source.tensors), plan.num_bytes
    assert seen[0] == (0, count, 0, size, EMBEDDING)
    assert seen[-1] == (count, count, size, size, "")


def test_a_refused_verification_publishes_nothing(tmp_path) -> None:
    def refuse(plan, directory):
        assert (directory / f"{EMBEDDING}.safetensors").exists()
        raise CheckpointError("wrong")

    with pytest.raises(CheckpointError, match="wrong"):
        convert(MemorySource(random_model()), FolderTarget(), tmp_path / "made", verify=refuse)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("fail_at", [0, 5])
def test_what_stops_on_the_way_leaves_nothing(tmp_path, error, fail_at) -> None:
    target = FolderTarget(fail_at=fail_at, error=error)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        convert(MemorySource(random_model()), target, tmp_path / "made")
    assert left_behind(tmp_path) == []
    if expected is CheckpointError:
        assert "No space left; nothing was published" in str(caught.value)


def test_space_is_looked_for_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(publish, "free_bytes", lambda directory: 1000)
    source = MemorySource(random_model())
    with pytest.raises(CheckpointError, match=r"not enough space: \d+ bytes are needed, 1000"):
        convert(source, FolderTarget(), tmp_path / "made")
    assert source.most_alive == 0
    assert left_behind(tmp_path) == []


def test_existing_targets_are_replaced_only_when_asked_and_only_checkpoints(tmp_path) -> None:
    made = tmp_path / "made"
    convert(MemorySource(random_model(seed=1)), FolderTarget(), made)
    (made / "note").write_text("old")
    with pytest.raises(CheckpointError, match="pass --overwrite"):
        convert(MemorySource(random_model(seed=2)), FolderTarget(), made)
    assert (made / "note").exists()
    convert(MemorySource(random_model(seed=2)), FolderTarget(), made, overwrite=True)
    assert not (made / "note").exists()
    expected = dict(random_model(seed=2).named_parameters())[OUTPUT]
    assert torch.equal(read_folder(made)[OUTPUT], expected)
    other = tmp_path / "home"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="something else than a checkpoint"):
        convert(MemorySource(random_model()), FolderTarget(), other, overwrite=True)
    assert left_behind(other) == ["thesis.tex"]
    assert left_behind(tmp_path) == ["home", "made"]


def test_without_exchange_the_old_one_steps_aside(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(publish, "exchange", lambda first, second: False)
    made = tmp_path / "made"
    for seed in (1, 2):
        convert(MemorySource(random_model(seed=seed)), FolderTarget(), made, overwrite=True)
    expected = dict(random_model(seed=2).named_parameters())[OUTPUT]
    assert torch.equal(read_folder(made)[OUTPUT], expected)
    assert left_behind(tmp_path) == ["made"]


def test_a_failed_replacement_keeps_the_old_one(tmp_path) -> None:
    made = tmp_path / "made"
    convert(MemorySource(random_model(seed=1)), FolderTarget(), made)
    target = FolderTarget(fail_at=3, error=OSError(errno.EIO, "broken disk"))
    with pytest.raises(CheckpointError, match="broken disk"):
        convert(MemorySource(random_model(seed=2)), target, made, overwrite=True)
    expected = dict(random_model(seed=1).named_parameters())[OUTPUT]
    assert torch.equal(read_folder(made)[OUTPUT], expected)


def test_empty_directories_and_links_are_targets(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    convert(MemorySource(random_model()), FolderTarget(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(read_folder(tmp_path / "empty")) == 15
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="there is a file"):
        convert(MemorySource(random_model()), FolderTarget(), tmp_path / "file", overwrite=True)


def test_two_conversions_to_one_place(tmp_path) -> None:
    home = tmp_path / ".converting-made"
    home.mkdir()
    script = (
        "import sys, time; from pathlib import Path; from megacore.checkpoint.claim import Claim; "
        "claim = Claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another process is writing there"):
            convert(MemorySource(random_model()), FolderTarget(), tmp_path / "made")
    finally:
        other.kill()
        other.wait()
    convert(MemorySource(random_model()), FolderTarget(), tmp_path / "made")
    assert left_behind(tmp_path) == ["made"]


def killed_at(moment: int, place: Path) -> bool:
    """Replaces a model in a forked process that dies at that step; False when it had fewer."""
    child = os.fork()
    if child == 0:
        # Every call that makes, opens for writing, renames or removes something is a step.
        changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in changes or (event == "open" and str(place) in str(arguments[0])):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            source = MemorySource(random_model(seed=2))
            convert(source, FolderTarget(), place / "made", overwrite=True)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_directories_exchange_their_names(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in-{name}").touch()
    if not publish.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system or file system cannot exchange two names")
    assert left_behind(tmp_path / "a") == ["in-b"]
    assert left_behind(tmp_path / "b") == ["in-a"]
    assert not publish.exchange(tmp_path / "a", tmp_path / "missing")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "plain"])
def test_killed_at_any_step_it_is_all_of_the_old_or_all_of_the_new(
    tmp_path, monkeypatch, way
) -> None:
    if way == "plain":
        monkeypatch.setattr(publish, "exchange", lambda first, second: False)
    old = dict(random_model(seed=1).named_parameters())[OUTPUT]
    new = dict(random_model(seed=2).named_parameters())[OUTPUT]
    seen, killed, moment = set(), True, 0
    while killed:
        moment += 1
        place = tmp_path / str(moment)
        convert(MemorySource(random_model(seed=1)), FolderTarget(), place / "made")
        killed = killed_at(moment, place)
        if (place / "made").exists():
            found = read_folder(place / "made")[OUTPUT]
            seen.add("new" if torch.equal(found, new) else "old")
            assert torch.equal(found, new) or torch.equal(found, old)
            assert len(read_folder(place / "made")) == 15
        else:
            seen.add("aside")  # between two renames; the next conversion puts it back
            assert way == "plain"
        target = FolderTarget(fail_at=0, error=OSError(errno.EIO, "stop"))
        with pytest.raises(CheckpointError):
            convert(MemorySource(random_model()), target, place / "made", overwrite=True)
        assert left_behind(place) == ["made"]
        assert len(read_folder(place / "made")) == 15
    assert moment > 20
    assert seen == {"old", "aside", "new"} - (set() if way == "plain" else {"aside"})


def test_an_old_model_moved_aside_comes_back(tmp_path) -> None:
    made, home = tmp_path / "made", tmp_path / ".converting-made"
    convert(MemorySource(random_model(seed=1)), FolderTarget(), made)
    (home / "content").mkdir(parents=True)
    made.rename(home / "replaced")
    target = FolderTarget(fail_at=0, error=OSError(errno.EIO, "stop"))
    with pytest.raises(CheckpointError):
        convert(MemorySource(random_model(seed=2)), target, made, overwrite=True)
    expected = dict(random_model(seed=1).named_parameters())[OUTPUT]
    assert torch.equal(read_folder(made)[OUTPUT], expected)
    assert left_behind(tmp_path) == ["made"]
    Claim(made, wait_s=0).release()
