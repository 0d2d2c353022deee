"""Published runs: what their numbers say about themselves, and how near the estimates come."""

from __future__ import annotations

import math

import pytest

from megacore.errors import UsageError
from megacore.planning.hardware import LINKS, load_profile, profile_names, with_link
from megacore.planning.published import CONVENTIONS, predict, published_rows
from megacore.planning.validation import (
    format_validation,
    rank_correlation,
    summarize,
    validate,
)


def test_step_times_that_are_published_beside_the_rates() -> None:
    """Two sources give both: the conversion between them is the formula of the source."""
    (gpt3,) = published_rows(["gpt3-1024"])
    assert gpt3.step_s == pytest.approx(32, rel=0.01)
    rows = published_rows([f"mtnlg-530b-{gpus}" for gpus in (2240, 2800, 3360)])
    assert [row.tflops for row in rows] == pytest.approx([126, 121, 113], abs=1)


def test_utilisation_that_is_published_beside_the_step_times() -> None:
    """Korthikanti et al., table 5: 41.5%, 51.4%, 56.0% and 56.3% of 312 TFLOP/s."""
    names = [f"recompute-{size}-selective" for size in ("22b", "175b", "530b", "1t")]
    utilisation = [row.tflops / 312 for row in published_rows(names)]
    assert utilisation == pytest.approx([0.415, 0.514, 0.560, 0.563], abs=0.002)


def test_sizes_are_those_of_the_names() -> None:
    rows = published_rows(["recompute-22b-full", "gpt3-1024", "llama3-405b-8192"])
    sizes = [row.model.num_parameters() / 1e9 for row in rows]
    assert sizes == pytest.approx([22.1, 174.6, 405.9], rel=0.003)


def test_every_row_says_where_it_comes_from() -> None:
    rows = published_rows()
    assert len({row.run for row in rows}) == len(rows) >= 48
    for row in rows:
        assert row.source
        assert row.convention in CONVENTIONS
        assert row.group in ("fit", "test", "other")
        assert row.gpu in profile_names()
        assert row.layout.world_size * row.micro_batches[0] <= row.global_batch * (
            row.layout.world_size // row.layout.dp
        )
    with pytest.raises(UsageError, match="no published run is called nothing"):
        published_rows(["nothing"])


def test_estimates_are_near() -> None:
    """Not the figures of the documentation, but no profile may lose what they stand for."""
    names = [
        "recompute-22b-selective",
        "recompute-175b-full",
        "table2-12288x96-768",
        "strong-4608",
        "llama3-405b-8192",
        "weak-16384x96",
    ]
    report = validate(published_rows(names))
    summary = summarize("all", "all", report.rows)
    assert summary.median < 0.06
    assert summary.worst < 0.12
    assert summary.rank_correlation > 0.9
    text = format_validation(report)
    for row in report.rows:
        assert row.run in text
        assert row.source in text


def test_unknown_choices_are_the_fastest_that_fit() -> None:
    (row,) = published_rows(["weak-8192x84"])
    step = predict(row)
    assert step.layout.virtual_stages in row.virtual_stages
    assert step.memory_bytes <= load_profile("h100-sxm").memory_bytes


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 1, 1, 0
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
    assert math.isnan(rank_correlation([1.0], [2.0]))


@pytest.mark.parametrize("name", profile_names())
def test_profiles_give_a_source_for_every_constant(name: str, tmp_path: object) -> None:
    profile = load_profile(name)
    assert all(profile.sources.values())
    assert all(link.source for link in profile.links)
    file = f"{tmp_path}/profile.toml"
    with open(file, "w", encoding="ascii") as out:
        out.write(profile.to_toml())
    assert load_profile(file) == profile


def test_profiles_that_are_wrong_are_refused(tmp_path: object) -> None:
    with pytest.raises(UsageError, match="expected one of a100-80gb"):
        load_profile("b300")
    text = load_profile("h100-sxm").to_toml()
    for old, new, message in (
        ("[constants.memory_rate]", "[constants.memory_speed]", "unknown entries"),
        ("level = 1", "level = 0", "one of level 0 and one of level 1"),
        ("name = ", "name ", "hardware profile"),
        ("[constants.tile_rows]\nvalue = 128", "[constants.tile_rows]\nvalue = 0", "tile_rows"),
    ):
        file = f"{tmp_path}/profile.toml"
        with open(file, "w", encoding="ascii") as out:
            out.write(text.replace(old, new))
        with pytest.raises(UsageError, match=message):
            load_profile(file)


def test_links() -> None:
    profile = with_link(load_profile("h100-sxm"), "ethernet-100g")
    assert profile.links[1] is LINKS["ethernet-100g"]
    with pytest.raises(UsageError, match="no link string"):
        with_link(profile, "string")
