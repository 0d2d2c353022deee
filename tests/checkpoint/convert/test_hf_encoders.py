"""BERT and T5 from transformers and back: bitwise, and still the same function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megacore.checkpoint.convert import hf
from megacore.checkpoint.convert.cli import main, tool_main
from megacore.errors import CheckpointError
from megacore.testing.encoder_cases import CASES, hf_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def write(name: str, path: Path) -> dict[str, torch.Tensor]:
    """The files of a case, as transformers writes them; its tensors."""
    model = hf_model(name)
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    if name == "t5-1.1":
        # transformers 5 takes it for tied and leaves the output layer out; version 4 did not.
        tensors["lm_head.weight"] = model.lm_head.weight.detach().clone()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_bitwise(name: str, tmp_path: Path) -> None:
    there, ours, back = tmp_path / "there", tmp_path / "ours", tmp_path / "back"
    tensors = write(name, there)
    # transformers 5 ties the output layer of every T5, so it computes something else for 1.1.
    verify = [] if name == "t5-1.1" else ["--verify"]
    assert main([*verify, str(there), str(ours)]) == 0
    assert main([*verify, str(ours), str(back), "--to", "hf"]) == 0
    again = load_file(back / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    before, after = (json.loads((path / "config.json").read_text()) for path in (there, back))
    assert after["model_type"] == before["model_type"]


def test_the_script_of_megatron_takes_a_bert_for_a_bert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, ours, back = tmp_path / "there", tmp_path / "ours", tmp_path / "back"
    tensors = write("bert", there)
    words = ["--model-type", "BERT", "--load-dir", str(there), "--save-dir", str(ours)]
    assert tool_main([*words, "--loader", "hf", "--saver", "core"]) == 0
    words = ["--load-dir", str(ours), "--save-dir", str(back), "--loader", "core", "--saver", "hf"]
    with pytest.raises(CheckpointError, match=r"--model-type GPT: the model in .* is a BERT"):
        tool_main(["--model-type", "GPT", *words])
    assert tool_main(["--model-type", "BERT", *words]) == 0
    again = load_file(back / "model.safetensors")
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_missing_heads_are_named(tmp_path: Path) -> None:
    transformers.BertModel(hf_model("bert").config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.transform\.dense\.weight"):
        hf.open_source(tmp_path)
