"""The example scripts: each command line holds for the number of processes that it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Seconds each on a quiet machine, a minute in all.
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "gpt"
SCRIPTS = sorted(
    p for p in FOLDER.glob("*.sh") if p.name not in ("launch.sh", "recipe.sh", "slurm.sh")
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_passes_the_simulation_that_it_names(script: Path) -> None:
    world = re.search(r"--simulate-world (\d+)", script.read_text())
    assert world is not None
    done = subprocess.run(
        [script, "--simulate-world", world.group(1)],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "reduce_scatter" in done.stdout


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 13


@pytest.mark.parametrize(
    "script", ["bert/train_bert_340m_distributed.sh", "t5/train_t5_220m_distributed.sh"]
)
def test_encoder_examples_train_in_their_small_form(script: str) -> None:
    done = subprocess.run(
        [FOLDER.parent / script, "--smoke"],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "validation loss at iteration 10 on test set" in done.stdout


def test_finetuning_from_end_to_end(tmp_path: Path) -> None:
    script = FOLDER.parent / "finetuning" / "tiny.sh"
    done = subprocess.run(
        [script, str(tmp_path)],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    _, model, adapters, merged = re.split(r"\n--- (?:model|adapters|merged)\n", done.stdout)
    assert "Tea, please." in model
    assert "Coffee, please." in adapters
    assert "Coffee, please." in merged
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
