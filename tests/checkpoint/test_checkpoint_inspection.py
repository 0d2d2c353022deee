"""`megacore checkpoint verify|show|diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megacore.checkpoint.diff import compare
from megacore.checkpoint.inspect_cli import main
from megacore.checkpoint.manifest import read_manifest
from megacore.checkpoint.save import SaveDirectory
from megacore.checkpoint.show import size_text, summarize
from megacore.checkpoint.verify import verify
from megacore.cli import run
from megacore.testing.checkpoint_states import content_of
from megacore.testing.corrupt_campaign import save_together


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_together(tmp_path / "saved", [1, 2])
    return tmp_path / "saved"


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = run(main, [str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_an_unharmed_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(capsys, "verify", saved)
    assert code == 0
    assert "iter_0000002: nothing is damaged" in text
    assert "/s)" in text
    manifest = read_manifest(saved / "iter_0000002")
    total = sum(record.num_bytes for record in manifest.files.values())
    assert verify(saved / "iter_0000002").num_bytes == total
    code, text = printed(capsys, "verify", saved, "--step", 1, "--json")
    assert code == 0
    assert json.loads(text)["path"].endswith("iter_0000001")


def test_damage_is_named_with_tensor_file_and_bytes(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved / "iter_0000002"
    name, span = next(
        (name, span)
        for name, record in read_manifest(path).files.items()
        for span in record.spans
        if span.key == "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight"
    )
    content = bytearray((path / name).read_bytes())
    content[span.start + span.data] ^= 1
    (path / name).write_bytes(content)
    (path / "stranger.txt").write_text("?")
    code, text = printed(capsys, "verify", path)
    assert code == 1
    damage = next(line for line in text.splitlines() if line.startswith(f"DAMAGED {name}"))
    assert f"tensor {span.key}, chunk at {list(span.offsets)}" in damage
    assert f"(bytes {span.start} to {span.start + span.length})" in damage
    assert "DAMAGED stranger.txt: the file does not belong to the checkpoint" in text
    assert "2 faults" in text


def test_checkpoints_of_pytorch_are_verified_by_their_own_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"weight": torch.randn(40, 30), "note": torch.arange(5)}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    code, text = printed(capsys, "verify", tmp_path / "dcp")
    assert code == 0
    assert "note: without checksums of megacore" in text
    (file,) = (tmp_path / "dcp").glob("*.distcp")
    content = bytearray(file.read_bytes())
    at = content.find(state["weight"].numpy().tobytes()[:64])
    content[at] ^= 4
    file.write_bytes(content)
    (damage,) = verify(tmp_path / "dcp").damages
    assert (damage.file, damage.tensor) == (file.name, "weight")
    assert damage.start <= at < damage.end


def test_files_of_ranks_are_verified(tmp_path: Path) -> None:
    place = tmp_path / "iter_0000005" / "mp_rank_00"
    place.mkdir(parents=True)
    torch.save({"model": {"w": torch.ones(100)}}, place / "model_optim_rng.pt")
    assert verify(tmp_path / "iter_0000005").num_files == 1
    content = bytearray((place / "model_optim_rng.pt").read_bytes())
    content[content.find(torch.ones(100).numpy().tobytes())] ^= 1
    (place / "model_optim_rng.pt").write_bytes(content)
    damages = verify(tmp_path / "iter_0000005").damages
    assert damages[0].file == "mp_rank_00/model_optim_rng.pt"


def test_show_says_what_is_stored_where(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(capsys, "show", saved)
    assert code == 0
    for part in ("torch_dist, written by megacore", "iteration  2", "model: 4 tensors", "float16"):
        assert part in text
    row = next(line for line in text.splitlines() if "layers.1.mlp.linear_fc1.weight" in line)
    assert "[12, 16]" in row
    assert "2 chunks in __0_0.distcp, __1_0.distcp" in row
    code, text = printed(capsys, "show", saved, "--json")
    shown = json.loads(text)
    assert shown["iteration"] == 2
    assert shown["values"]["seed"] == 2
    tensor = next(t for t in shown["tensors"] if t["name"] == "scalar")
    assert (tensor["shape"], tensor["num_bytes"], tensor["dtype"]) == ([], 4, "float32")
    assert sum(shown["files"].values()) == sum(
        file.stat().st_size for file in (saved / "iter_0000002").iterdir()
    )
    assert summarize(saved / "iter_0000001").iteration == 1


def test_diff_does_not_see_how_a_checkpoint_was_cut(
    tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SaveDirectory(tmp_path / "alone") as alone:
        alone.write(content_of(2, 2))
    code, text = printed(capsys, "diff", saved, tmp_path / "alone")
    assert code == 0
    assert "8 tensors: 8 equal, 0 different; 0 settings differ" in text


def test_diff_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def save(name: str, weight: torch.Tensor, **values: object) -> Path:
        with SaveDirectory(tmp_path / name) as place:
            place.save(1, tensors={"model": {"w": weight, "same": torch.ones(2)}}, values=values)
        return tmp_path / name

    weight = torch.tensor([1.0, -2.0, float("nan"), 4.0])
    first = save("a", weight, args={"lr": 0.1, "seed": 1})
    second = save("b", weight + torch.tensor([0.0, 0.5, 0.0, 0.0]), args={"lr": 0.2, "seed": 1})
    comparison = compare(first / "iter_0000001", second / "iter_0000001")
    (tensor,) = comparison.tensors
    assert (tensor.name, tensor.num_different, tensor.num_elements) == ("w", 1, 4)
    assert (tensor.max_absolute, tensor.max_relative) == (0.5, 0.25)
    (setting,) = comparison.settings
    assert (setting.name, setting.first, setting.second) == ("args.lr", 0.1, 0.2)
    code, text = printed(capsys, "diff", first, second)
    assert code == 1
    assert "model w: 1 of 4 elements differ, by at most 0.5 (relative 0.25)" in text
    assert printed(capsys, "diff", first, second, "--tolerance", 0.5)[0] == 1
    assert printed(capsys, "diff", first, second, "--tolerance", 0.5, "--tensors-only")[0] == 0
    assert printed(capsys, "diff", first, second, "--tolerance", 0.4, "--tensors-only")[0] == 1
    third = save("c", torch.tensor([1.0, -2.0, 3.0, 4.0]), args={"lr": 0.1, "seed": 1})
    (tensor,) = compare(first / "iter_0000001", third / "iter_0000001").tensors
    assert tensor.max_absolute == float("inf")
    fourth = save("d", torch.ones(3), args={"lr": 0.1, "seed": 1})
    assert "shapes [4] and [3]" in printed(capsys, "diff", first, fourth)[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "usage: megacore checkpoint VERB"),
        (["--help"], 0, "usage: megacore checkpoint VERB"),
        (["very"], 2, "there is no verb 'very'"),
        (["verify"], 2, "DIR"),
        (["diff", "a"], 2, "DIR DIR2"),
        (["show", "a", "b"], 2, "Unexpected argument"),
        (["show", "nowhere"], 1, "nowhere: no checkpoint found there"),
    ],
)
def test_words_that_cannot_be_understood(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    found, text = printed(capsys, *words)
    assert found == code
    assert message in text


def test_sizes_are_readable() -> None:
    shown = [size_text(n) for n in (0, 1023, 1024, 3 << 20, 5 << 30, 7 << 40)]
    assert shown == ["0 bytes", "1023 bytes", "1.00 KiB", "3.00 MiB", "5.00 GiB", "7.00 TiB"]
