"""megacore doctor: what it reports, in both forms, also on a broken installation."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megacore import __version__, cli, doctor
from megacore.doctor import ABSENT, FAULT, OK, Finding
from megacore.ops import library


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_help_is_exit_0_and_starts_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_an_unknown_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--jason"]) == 2
    assert "did you mean --json" in capsys.readouterr().err


def test_json_and_text_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["megacore"] == __version__
    assert code == (0 if answer["healthy"] else 1)
    assert doctor.main([]) == code
    text = capsys.readouterr().out
    for finding in answer["findings"]:
        assert finding["state"] in (OK, ABSENT, FAULT)
        assert finding["name"] in text
        # Free memory changes between the two reports.
        assert finding["found"] in text or finding["name"] == "memory"
        if finding["state"] != OK:
            assert finding["cost"], finding
            assert f"  {finding['name']}: {finding['cost']}" in text


def test_every_section_is_reported_under_its_name() -> None:
    findings = doctor.examine()
    assert list(dict.fromkeys(finding.section for finding in findings)) == list(doctor.SECTIONS)


def test_it_says_what_torch_says() -> None:
    found = by_name(doctor.examine())
    assert torch.__version__ in found["torch"].found
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert sum(name.startswith("GPU ") for name in found) == gpus
    assert (found["NCCL"].state == OK) == torch.distributed.is_nccl_available()


def test_it_says_which_kernels_were_built() -> None:
    found = by_name(doctor.examine())
    built = {name for name in ("norm_forward", "adamw_step") if library.has_kernel(name, "cpu")}
    if library.kernels_missing:
        assert found["megacore._ops"].found == library.kernels_missing
        assert not built
    else:
        assert built <= set(found["CPU kernels"].found.split())


def test_cpu_features_are_those_of_the_system() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "flags" not in flags.read_text():
        pytest.skip("this system has no list of CPU features to compare with")
    line = next(row for row in flags.read_text().splitlines() if row.startswith("flags"))
    there = set(line.split(":")[1].split())
    found = by_name(doctor.examine())["CPU features"]
    for feature in ("avx2", "avx512f", "avx512bw", "avx512_bf16"):
        assert (feature in found.found.split()) == (feature in there)


def test_without_the_core_it_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def without_core(name: str, package: str | None = None) -> Any:
        if name == "megacore._C":
            raise ImportError("_C.so: file too short")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_core)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "fault   megacore._C" in text
    assert "file too short" in text
    assert "make build" in text


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def _strange_hardware() -> Any:
        raise ZeroDivisionError("no cores")

    sections = {"machine": (_strange_hardware,), "Python": doctor.SECTIONS["Python"]}
    monkeypatch.setattr(doctor, "SECTIONS", sections)
    first, *others = doctor.examine()
    assert first.name == "strange hardware"
    assert "ZeroDivisionError: no cores" in first.found
    assert others[0].name == "Python"


def test_a_missing_requirement_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version_of
    monkeypatch.setattr(doctor, "_version_of", lambda name: None if name == "regex" else real(name))
    found = by_name(doctor.examine())
    assert found["regex"].state == FAULT
    assert found["regex"].remedy == "pip install regex"
    assert found["numpy"].state == OK


def test_it_works_where_torch_cannot_be_imported() -> None:
    code = (
        "import importlib.util as u, sys\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
        "from megacore import doctor\n"
        "code = doctor.main([])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "only data preparation works" in done.stdout
    assert "fault   torch" in done.stdout


def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    assert capfd.readouterr().err == ""
