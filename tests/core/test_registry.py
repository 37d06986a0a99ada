"""Names and their entries: built-in ones, and those of installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from frostline.core.errors import UserError
from frostline.core.registry import Registry
from packages import install

GROUP = "frostline.flavours"


@pytest.fixture
def flavours() -> Registry[str]:
    return Registry("flavour", GROUP, {"vanilla": "white", "cherry": "red"}, str)


def refusal(registry: Registry[str], name: str) -> str:
    with pytest.raises(UserError) as caught:
        registry.get(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_built_in_entries(flavours: Registry[str]) -> None:
    assert flavours.get("cherry") == "red"
    assert list(flavours) == ["cherry", "vanilla"]
    assert "vanilla" in flavours
    assert "mint" not in flavours


def test_an_unknown_name_names_the_closest_and_all(flavours: Registry[str]) -> None:
    assert refusal(flavours, "vanila") == "unknown flavour 'vanila': did you mean 'vanilla'? known: cherry, vanilla"
    assert refusal(flavours, "xyz") == "unknown flavour 'xyz': known: cherry, vanilla"


def test_an_installed_package_adds_an_entry(
    flavours: Registry[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "minty", GROUP, {"mint": "minty:COLOUR"}, "COLOUR = 'green'")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(flavours) == ["cherry", "mint", "vanilla"]
    assert "mint" in flavours
    assert flavours.get("mint") == "green"
    assert "did you mean 'mint'" in refusal(flavours, "mints")


def test_a_package_is_imported_only_when_its_entry_is_asked_for(
    flavours: Registry[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from pathlib import Path\nPath(__file__).with_name('seen').touch(exist_ok=False)\nCOLOUR = 'grey'"
    install(tmp_path, "shy", GROUP, {"shy": "shy:COLOUR"}, source)
    monkeypatch.syspath_prepend(tmp_path)
    assert "shy" in list(flavours)
    assert flavours.get("vanilla") == "white"
    assert not (tmp_path / "seen").exists()
    assert flavours.get("shy") == flavours.get("shy") == "grey"
    assert (tmp_path / "seen").exists()


def test_a_built_in_entry_is_never_replaced(
    flavours: Registry[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "impostor", GROUP, {"vanilla": "impostor:COLOUR"}, "COLOUR = 'black'")
    monkeypatch.syspath_prepend(tmp_path)
    assert flavours.get("vanilla") == "white"


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        ("", "broken:COLOUR", "AttributeError: module 'broken' has no attribute 'COLOUR'"),
        ("import nowhere_at_all", "broken:COLOUR", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("COLOUR =", "broken:COLOUR", "SyntaxError"),
        ("raise OSError('two\\nlines')", "broken:COLOUR", "OSError: two lines"),
    ],
)
def test_an_entry_that_cannot_be_loaded(
    flavours: Registry[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, value: str, reason: str
) -> None:
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    install(tmp_path, "broken", GROUP, {"plum": value}, source)
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal(flavours, "plum")
    assert message.startswith(f"flavour 'plum' of package 'broken' cannot be loaded ({value}): {reason}")
    assert flavours.get("cherry") == "red"


def test_an_entry_of_the_wrong_type(flavours: Registry[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "numeric", GROUP, {"seven": "numeric:SEVEN"}, "SEVEN = 7")
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal(flavours, "seven") == "flavour 'seven' of package 'numeric': numeric:SEVEN is not a str but int"
