"""Adapters exchanged with PEFT, and merged: the same function in every form."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megacore import cli
from megacore.checkpoint import find_checkpoint, open_checkpoint
from megacore.checkpoint.convert import registry
from megacore.checkpoint.convert.hf.families import FAMILIES
from megacore.checkpoint.convert.model_stream import SourceOptions
from megacore.checkpoint.lora.adapter import read_adapters
from megacore.checkpoint.lora.peft import import_peft
from megacore.errors import CheckpointError
from megacore.layers.lora import is_adapter_name
from megacore.models.adapted import add_adapters
from megacore.models.gpt import GPTModel
from megacore.models.lora import LoraConfig

sys.path.append(str(Path(__file__).parents[1] / "convert"))
from hf_cases import hf_model, tokens

peft = pytest.importorskip("peft")

# A transposed, a split and a fused layout; the other families run with the slow tests.
CASES = ["gpt2", "llama", "phi3"]
OTHERS = ["gpt-neox", "gemma", "qwen2"]


def lora(*words: object) -> int:
    return cli.dispatch(["lora", *map(str, words)])


def adapted(model: Any, **settings: Any) -> Any:
    """A PEFT model with random halves."""
    found = peft.get_peft_model(
        model,
        peft.LoraConfig(
            **{"r": 3, "lora_alpha": 7, "target_modules": "all-linear", **settings},
            task_type="CAUSAL_LM",
        ),
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return found.eval()


def core_of(model: Any, where: Path) -> tuple[Path, Path]:
    """The model as a Hugging Face directory and as a checkpoint."""
    model.save_pretrained(where / "hf")
    assert cli.dispatch(["convert", str(where / "hf"), str(where / "core")]) == 0
    return where / "hf", where / "core"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(tokens()).logits.double()


def bounds(model: Any) -> tuple[Tensor, float]:
    """Logits in float64, and twice the error that float32 makes."""
    single = logits(model)
    exact = logits(model.double())
    model.float()
    return exact, 2.0 * float((single - exact).abs().max())


@torch.no_grad()
def own_logits(directory: Path) -> Tensor:
    """Of a checkpoint of a whole model or of adapters, computed in float32."""
    found = find_checkpoint(directory)
    assert found is not None
    checkpoint = open_checkpoint(found)
    arguments = checkpoint.values["args"]
    base = Path(arguments.get("lora_base_path", found))
    description = registry.open_source(base, SourceOptions(), name="core").description
    model = GPTModel(description.config, padded_vocab_size=description.padded_vocab_size)
    if base != found:
        names = {k: v for k, v in arguments.items() if k.startswith("lora_") and "base" not in k}
        names["lora_targets"] = tuple(names["lora_targets"])
        add_adapters(model, LoraConfig(**names))
    parameters = dict(model.named_parameters())
    whole = {n: p for n, p in parameters.items() if not is_adapter_name(n)}
    open_checkpoint(base).load_into("model", whole, cast=True)
    if base != found:
        own = {n: p for n, p in parameters.items() if is_adapter_name(n)}
        checkpoint.load_into("model", own, cast=True)
    rows = description.vocab_size or description.padded_vocab_size
    return model.eval()(tokens())[..., :rows].double()


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS)]
)
def test_adapters_of_peft_there_and_back(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model = hf_model(case)
    hf, core = core_of(model, tmp_path)
    theirs = adapted(model)
    theirs.save_pretrained(tmp_path / "peft")
    exact, bound = bounds(theirs)
    assert bound > 0.0

    assert lora("import", tmp_path / "peft", core, tmp_path / "ours") == 0
    assert (own_logits(tmp_path / "ours") - exact).abs().max() <= bound

    assert lora("export", tmp_path / "ours", tmp_path / "again") == 0
    base = AutoModelForCausalLM.from_pretrained(hf, attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "again")).eval()
    assert (logits(again) - exact).abs().max() <= bound

    for words, source in (((core, tmp_path / "ours"), "core"), ((hf, tmp_path / "peft"), "hf")):
        out = tmp_path / f"merged-{source}"
        assert lora("merge", *words, out, "--to", "hf") == 0
        merged = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
        assert (logits(merged) - exact).abs().max() <= bound
    assert lora("merge", core, tmp_path / "ours", tmp_path / "merged") == 0
    assert (own_logits(tmp_path / "merged") - exact).abs().max() <= bound


def test_exported_adapters_come_back_bitwise(tmp_path: Path) -> None:
    """One A for all parts of a fused layer stays one."""
    _, core = core_of(hf_model("llama"), tmp_path)
    model = hf_model("llama")
    theirs = adapted(model, target_modules=["o_proj", "v_proj"], r=5, lora_dropout=0.25)
    theirs.save_pretrained(tmp_path / "peft")
    lora("import", tmp_path / "peft", core, tmp_path / "ours")
    first = read_adapters(tmp_path / "ours")
    assert (first.rank, first.alpha, first.dropout) == (5, 7.0, 0.25)
    assert first.targets == ("linear_qkv", "linear_proj")
    lora("export", tmp_path / "ours", tmp_path / "peft2", "--base-name", "org/base")
    settings = json.loads((tmp_path / "peft2" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/base"
    assert settings["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    lora("import", tmp_path / "peft2", core, tmp_path / "ours2")
    second = read_adapters(tmp_path / "ours2")
    for name, pair in first.layers.items():
        assert torch.equal(pair.down, second.layers[name].down)
        assert torch.equal(pair.up, second.layers[name].up)


def test_patterns_and_rank_stabilised_scales(tmp_path: Path) -> None:
    model = hf_model("llama")
    _, core = core_of(model, tmp_path)
    theirs = adapted(
        model, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 20}
    )
    theirs.save_pretrained(tmp_path / "peft")
    exact, bound = bounds(theirs)
    lora("import", tmp_path / "peft", core, tmp_path / "ours")
    assert (own_logits(tmp_path / "ours") - exact).abs().max() <= bound


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model ("core") and its adapters ("peft")."""
    where = tmp_path_factory.mktemp("llama")
    model = hf_model("llama")
    core_of(model, where)
    adapted(model).save_pretrained(where / "peft")
    return where


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases are not trained"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"alpha_pattern": {"^model.*": 3}}, "regular expression"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    llama: Path, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    shutil.copytree(llama / "peft", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=text):
        lora("import", tmp_path / "peft", llama / "core", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model = hf_model("llama")
    _, core = core_of(model, tmp_path / "a")
    _, other = core_of(hf_model("llama", seed=8), tmp_path / "b")
    adapted(model).save_pretrained(tmp_path / "peft")
    lora("import", tmp_path / "peft", core, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="adapters of another base model"):
        lora("merge", other, tmp_path / "ours", tmp_path / "merged")
    assert lora("merge", other, tmp_path / "ours", tmp_path / "merged", "--any-base") == 0
    with pytest.raises(CheckpointError, match="holds no adapters"):
        lora("export", core, tmp_path / "out")
    description = registry.open_source(core, SourceOptions(), name="core").description
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert any(".self_attn.q_proj.lora_A." in name for name in tensors)
    with pytest.raises(CheckpointError, match="the model has no such layer"):
        import_peft(tmp_path / "peft", family=FAMILIES["phi3"], config=description.config)
