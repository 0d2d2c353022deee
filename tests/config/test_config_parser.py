"""Reading command lines and files: spelling, types, precedence, origins, reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore.config import flag
from megacore.config.parser import Parsed, parse
from megacore.config.settings import all_settings
from megacore.config.values import convert, describe_bounds, inside, value_type
from megacore.errors import ConfigError, Information, UsageError


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Settings of every kind."""

    GROUP: ClassVar[str] = "shape of things"

    side_length: int | None = flag("--side-length", default=None, help="cm", bounds="[1, 100]")
    weight: float = flag("--weight", default=1.5, help="kg")
    colour: str = flag("--colour", "--color", default="red", choices=("red", "blue"), help="paint")
    is_round: bool = flag("--is-round", default=False, help="no corners")
    has_lid: bool = flag("--no-lid", default=True, help="leave it open")
    odd_name: bool = flag("--mixed-odd_name", default=False, help="mixed spelling")
    holes: tuple[int, ...] = flag("--holes", default=(0,), nargs="+", help="where", bounds="[0, 9]")
    labels: tuple[str, ...] | None = flag("--labels", default=None, nargs="*", help="words")


@dataclass(frozen=True, kw_only=True)
class ToolConfig:
    """A tool with a positional argument."""

    GROUP: ClassVar[str] = "tool"

    path: str | None = flag("path", default=None, help="what to read")
    json_keys: tuple[str, ...] = flag("--json-keys", default=("text",), nargs="+", help="fields")
    json_lines: bool = flag("--json-lines", default=False, help="one per line")
    keep_empty: bool = flag("--keep-empty", default=False, help="keep them")


def read(words: str, *, abbreviations: bool = False) -> Parsed:
    return parse(
        [ShapeConfig, ToolConfig],
        words.split(),
        prog="shapes",
        description="Shapes.",
        abbreviations=abbreviations,
    )


def shape(words: str) -> ShapeConfig:
    config: ShapeConfig = read(words).configs[ShapeConfig]
    return config


def fault_ids(words: str, *, abbreviations: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(words, abbreviations=abbreviations)
    return [one.id for one in caught.value.faults]


def test_nothing_given_is_the_defaults() -> None:
    parsed = read("")
    assert parsed.configs == {ShapeConfig: ShapeConfig(), ToolConfig: ToolConfig()}
    assert {str(origin) for origin in parsed.origins.values()} == {"default"}


@pytest.mark.parametrize(
    "words",
    [
        "--side-length 7 --mixed-odd_name --no-lid",
        "--side_length 7 --mixed_odd_name --no_lid",
        "--side-length=7 --mixed-odd-name --no-lid",
        "--side_length=9 --mixed_odd-name --no-lid --side-length 7",
    ],
)
def test_dashes_and_underscores_are_the_same(words: str) -> None:
    assert shape(words) == ShapeConfig(side_length=7, odd_name=True, has_lid=False)


def test_values_that_look_like_flags_or_hold_equals_signs() -> None:
    assert shape("--weight -2.5").weight == -2.5
    assert shape("--labels=a=b_c").labels == ("a=b_c",)
    assert shape("--labels").labels == ()
    assert shape("--labels a_b c-d --holes 3 4").holes == (3, 4)
    assert shape("--color blue").colour == "blue"


def test_positional_and_its_flags() -> None:
    assert read("some/file --keep-empty").configs[ToolConfig].path == "some/file"
    assert read("--keep-empty some/file").configs[ToolConfig].path == "some/file"
    assert fault_ids("a b") == ["MC0007"]


def test_abbreviations_only_for_tools() -> None:
    tool = read("--json-k a b --keep", abbreviations=True).configs[ToolConfig]
    assert tool == ToolConfig(json_keys=("a", "b"), keep_empty=True)
    assert read("--json_k a", abbreviations=True).configs[ToolConfig].json_keys == ("a",)
    assert fault_ids("--json-key a") == ["MC0001"]
    with pytest.raises(UsageError, match="ambiguous option: --json"):
        read("--json a", abbreviations=True)


def test_unknown_flags_come_with_suggestions_and_keep_their_values() -> None:
    with pytest.raises(ConfigError) as caught:
        read("--sidelength 5 --wieght 3 4 --zzz --holes 1")
    text = str(caught.value)
    assert "--sidelength; did you mean --side-length?" in text
    assert "--wieght; did you mean --weight?" in text
    assert "[MC0001] Unknown flag: --zzz\n" in text + "\n"
    assert len(caught.value.faults) == 3


def test_every_wrong_value_is_reported() -> None:
    words = "--side-length 0 --weight heavy --colour green --is-round=yes --holes 1 12 --unset no"
    assert fault_ids(words) == ["MC0003", "MC0004", "MC0005", "MC0005", "MC0006", "MC0013"]


def write(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


YAML_FLAT = "side-length: 3\nweight: 1e-2\nno-lid: true\nlabels: [a, 5]\nis_round: true\n"
YAML_GROUPED = (
    "shape_of_things:\n  side_length: 3\n  weight: 0.01\n  has_lid: false\n"
    "  labels: [a, '5']\n  is-round: true\n"
)
TOML_GROUPED = (
    'side_length = 3\n["shape of things"]\nweight = 0.01\nno_lid = true\nlabels = ["a", "5"]\n'
    "is-round = true\n"
)


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", YAML_FLAT), ("b.yml", YAML_GROUPED), ("c.toml", TOML_GROUPED)]
)
def test_file_forms_mean_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = write(tmp_path, name, text)
    parsed = read(f"--config {path}")
    expected = ShapeConfig(
        side_length=3, weight=0.01, has_lid=False, labels=("a", "5"), is_round=True
    )
    assert parsed.configs[ShapeConfig] == expected
    assert str(parsed.origins["weight"]) == f"file ({path})"
    assert str(parsed.origins["holes"]) == "default"


def test_precedence_default_file_later_file_command_line(tmp_path: Path) -> None:
    first = write(tmp_path, "1.yaml", "side_length: 1\nweight: 1\ncolour: blue\nis_round: true\n")
    second = write(tmp_path, "2.yaml", "weight: 2\ncolour: red\n")
    parsed = read(f"--weight 3 --config {first} --config {second} --unset is-round")
    config = parsed.configs[ShapeConfig]
    assert (config.side_length, config.weight, config.colour, config.is_round) == (
        1,
        3.0,
        "red",
        False,
    )
    kinds = {name: str(parsed.origins[name]) for name in ("side_length", "weight", "colour")}
    assert kinds == {
        "side_length": f"file ({first})",
        "weight": "command line",
        "colour": f"file ({second})",
    }
    assert str(parsed.origins["is_round"]) == "default"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("side_lenght: 3\n", ["MC0009"]),
        ("shapes_of_thing:\n  side_length: 3\n", ["MC0009"]),
        ("side_length: 3\nside-length: 4\n", ["MC0010"]),
        ("side_length: 3\nside_length: 4\n", ["MC0010"]),
        ("no-lid: true\nhas_lid: true\n", ["MC0010"]),
        ("side_length: [3]\n", ["MC0003"]),
        ("side_length: true\n", ["MC0003"]),
        ("is_round: 7\n", ["MC0003"]),
        ("weight: {a: 1}\n", ["MC0009"]),
        ("weight: null\n", ["MC0003"]),
        ("- a\n", ["MC0008"]),
        ("a: b: c\n", ["MC0008"]),
        ("!!python/object/apply:os.getcwd []\n", ["MC0008"]),
        ("side_length: 300\nholes: [1, x]\n", ["MC0003", "MC0005"]),
    ],
)
def test_faults_of_files(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert fault_ids(f"--config {write(tmp_path, 'x.yaml', text)}") == expected


def test_broken_toml_and_missing_file_and_empty_file(tmp_path: Path) -> None:
    assert fault_ids(f"--config {write(tmp_path, 'x.toml', 'a = = 1')}") == ["MC0008"]
    assert fault_ids(f"--config {tmp_path}/none.yaml") == ["MC0008"]
    assert fault_ids(f"--config {tmp_path}") == ["MC0008"]
    assert shape(f"--config {write(tmp_path, 'empty.yaml', '')}") == ShapeConfig()
    (tmp_path / "latin.yaml").write_bytes(b"colour: \xff\n")
    assert fault_ids(f"--config {tmp_path}/latin.yaml") == ["MC0008"]


def test_a_file_fault_names_the_file_and_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, "x.yaml", "tool:\n  keep-empti: true\n")
    with pytest.raises(ConfigError) as caught:
        read(f"--config {path}")
    assert f"{path}: tool.keep-empti; did you mean keep-empty?" in str(caught.value)


def printed(words: str) -> str:
    with pytest.raises(Information) as caught:
        read(words)
    assert caught.value.exit_code == 0
    return str(caught.value)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)  # a busy machine makes single examples slow
@given(
    st.builds(
        ShapeConfig,
        side_length=st.none() | st.integers(1, 100),
        weight=numbers,
        colour=st.sampled_from(["red", "blue"]),
        is_round=st.booleans(),
        has_lid=st.booleans(),
        holes=st.lists(st.integers(0, 9), min_size=1).map(tuple),
        labels=st.none() | st.lists(st.text()).map(tuple),
    )
)
def test_printed_configuration_reads_back(tmp_path_factory: pytest.TempPathFactory, config) -> None:  # type: ignore[no-untyped-def]
    from megacore.config.report import format_config

    path = tmp_path_factory.mktemp("round") / "trip.yaml"
    path.write_text(format_config([config], {}), encoding="utf-8")
    assert read(f"--config {path}").configs[ShapeConfig] == config


@pytest.mark.parametrize("text", ["\x85", "\u2028", "a\nb", "# no", "null", "1e3", " ", "caf\xe9"])
def test_awkward_text_reads_back(tmp_path: Path, text: str) -> None:
    from megacore.config.report import format_config

    config = ShapeConfig(labels=(text, "plain"))
    page = format_config([config], {})
    (tmp_path / "x.yaml").write_text(page, encoding="utf-8")
    assert shape(f"--config {tmp_path}/x.yaml") == config
    assert ("\xe9" in page) == ("\xe9" in text)


def test_print_config_shows_origins() -> None:
    lines = printed("--weight 2 --print-config").splitlines()
    assert lines[0] == "shape_of_things:"
    assert "  weight: 2.0  # command line" in lines
    assert "  side_length: null  # default" in lines
    assert yaml.safe_load("\n".join(lines))["tool"]["json_keys"] == ["text"]


def test_help_is_grouped_and_by_group() -> None:
    page = printed("--help")
    assert page.startswith("usage: shapes [flags] PATH\n\nShapes.\n")
    assert "\nshape of things:\n" in page
    assert "\ntool:\n" in page
    assert "cm (at least 1 and at most 100)" in page
    for topic in ("tool", "too", "TOOL"):
        assert printed(f"--help {topic}").startswith("tool:\n")
    assert printed("-h shape of").startswith("shape of things:\n")
    assert "side-length" not in printed("--help tool")
    with pytest.raises(UsageError, match="did you mean tool"):
        read("--help toll")


def test_declared_twice_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        all_settings([ToolConfig, ToolConfig])


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [
        ("12", int, 12),
        (" -3 ", int, -3),
        (5, int, 5),
        ("1e-4", float, 1e-4),
        (2, float, 2.0),
        ("inf", float, float("inf")),
        (7, str, "7"),
        ("", str, ""),
        (True, bool, True),
        ("false", bool, False),
    ],
)
def test_convert(value: object, base: type, expected: object) -> None:
    result = convert(value, base)
    assert result == expected
    assert type(result) is base


@pytest.mark.parametrize(
    ("value", "base"),
    [
        ("1.0", int),
        (1.0, int),
        (True, int),
        ("", int),
        ("0x10", int),
        ("1_000", int),
        ("nan", float),
        (True, float),
        (None, str),
        ([1], str),
        ("maybe", bool),
        (1, bool),
    ],
)
def test_convert_refuses(value: object, base: type) -> None:
    with pytest.raises(ValueError, match=r"expected|could not convert"):
        convert(value, base)


@given(st.floats(), st.floats(-10, 10), st.floats(-10, 10))
def test_intervals(value: float, low: float, high: float) -> None:
    assert inside(value, f"[{low}, {high}]") == (low <= value <= high)
    assert inside(value, f"({low}, {high})") == (low < value < high)
    assert inside(value, f"[{low}, inf)") == (low <= value < float("inf"))


def test_interval_in_words() -> None:
    assert describe_bounds("[0, 1)") == "at least 0 and less than 1"
    assert describe_bounds("(0, inf)") == "greater than 0"
    with pytest.raises(ValueError, match="not an interval"):
        inside(1, "0..1")


def test_types_that_no_flag_can_have() -> None:
    for annotation in (dict[str, int], int | str, list[int], bytes):
        with pytest.raises(TypeError):
            value_type(annotation)
