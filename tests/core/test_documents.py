"""JSON and YAML that would end in another error than ours, or stand for more than they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.core.documents import parse_json, parse_yaml
from frostline.core.errors import CheckpointError, ConfigError
from frostline.core.files import read_json, read_text

DAMAGED = {
    "deep JSON": ("[" * 1000 + "]" * 1000, "nested too deeply"),
    "open brackets": ("[" * 1000, "nested too deeply|not YAML"),
    "very deep": ("[" * 100_000, "nested too deeply|not YAML"),
    "deep YAML": ("- " * 1000 + "a", "nested too deeply"),
    "timestamp": ("a: !!timestamp x", "not of its type"),
    "empty int": ('a: !!int ""', "not of its type"),
    "bool": ("a: !!bool x", "not of its type"),
    "python": ("a: !!python/object:os.system x", "could not determine a constructor"),
    "400 digits": ("a: " + "9" * 400, "too many digits"),
    "5,000 digits": ("a: " + "9" * 5000, "not YAML"),
    "400 digits in JSON": ('{"a": ' + "9" * 400 + "}", "too many digits"),
    "key twice": ("a: 1\na: 2", "'a' is twice"),
    "key twice in JSON": ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is twice"),
    "half a pair": ('{"a": "\\ud800"}', "surrogate"),
    "NUL": ("a: \0", "not allowed"),
    "itself": ("a: &a [*a]", "nested too deeply"),
    "a billion": (
        "\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(12)]),
        "values",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line_with_its_place(name: str) -> None:
    text, reason = DAMAGED[name]
    with pytest.raises(ConfigError, match=reason) as error:
        parse_yaml(text, "place")
    assert str(error.value).startswith("place")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 1000, '{"a": 1, "a": 2}', "9" * 400, '"\\udfff"', "[" * 100_000, "9" * 5000])
def test_json_makes_no_other_error_than_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_what_is_fine_stays_as_it_was() -> None:
    assert parse_yaml("base: &b {x: 1}\nmore:\n  <<: *b\n  y: 2", "p") == {"base": {"x": 1}, "more": {"x": 1, "y": 2}}
    assert parse_yaml('{"a": 1e-3, "b": [true, null]}', "p") == {"a": 1e-3, "b": [True, None]}
    assert parse_yaml("9" * 300, "p") == int("9" * 300)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(path, "file") == "a: 1"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path, "file") == [1]


@pytest.mark.parametrize("text", ["[" * 1000, "9" * 5000, '{"a": 1, "a": 2}'])
def test_a_file_of_frostlines_own_names_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"record is not JSON: .*x\.json"):
        read_json(tmp_path / "x.json", "record")
