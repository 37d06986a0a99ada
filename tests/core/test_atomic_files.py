"""Files and folders are complete or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frostline.core.errors import CheckpointError, FrostlineError, UserError
from frostline.core.files import (
    atomic_file,
    atomic_folder,
    read_json,
    read_text,
    reading,
    sha256,
    write_json,
    write_text,
)

FULL_DEVICE = Path("/dev/full")


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its content, temporary ones included."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename across file systems is not atomic"
    assert tree(tmp_path) == {"new/folder/file.txt": "half"}


def test_a_file_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"file.txt": "new"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for names in (["a", "b"], ["b", "c"]):
        with atomic_folder(path) as temporary:
            for name in names:
                (temporary / name).write_text(f"{name} of {names}")
    assert tree(tmp_path) == {"model/b": "b of ['b', 'c']", "model/c": "c of ['b', 'c']"}
    assert [child.name for child in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EACCES, "denied")])
@pytest.mark.parametrize("existed", [True, False])
def test_an_exception_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, error: BaseException, existed: bool
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    if existed:
        write_text(file, "old")
        write_text(folder / "inner", "old")
    before = tree(tmp_path)
    with pytest.raises(type(error)) as caught, atomic_file(file) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    with pytest.raises(type(error)) as caught, atomic_folder(folder) as temporary:
        (temporary / "inner").write_text("half")
        raise error
    assert caught.value is error
    assert tree(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == len(before)


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_killed_writer_leaves_the_old_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / "thing"
    inner = path if name == "file" else path / "inner"
    write_text(inner, "old")
    script = f"""
import os, signal
from pathlib import Path
from frostline.core.files import atomic_{name}
with atomic_{name}(Path({str(path)!r})) as temporary:
    ({"temporary" if name == "file" else "temporary / 'inner'"}).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script])
    assert killed.returncode == -signal.SIGKILL
    assert inner.read_text() == "old"


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    write_text(path / "weights", "old")
    replace = Path.replace

    def stubborn(self: Path, target: Path) -> Path:
        if Path(target) == path and (self / "weights").read_text() == "new":
            raise PermissionError("not now")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stubborn)
    with pytest.raises(PermissionError), atomic_folder(path) as temporary:
        (temporary / "weights").write_text("new")
    assert tree(tmp_path) == {"model/weights": "old"}
    assert [child.name for child in tmp_path.iterdir()] == ["model"]


def test_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        with atomic_folder(tmp_path / "folder"):
            pass
        assert os.umask(0o027) == 0o027, "the umask is left alone"
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("file"), "x")
    with atomic_folder(Path("folder")) as temporary:
        (temporary / "inner").write_text("y")
    assert tree(tmp_path) == {"file": "x", "folder/inner": "y"}


def _write_text(path: Path) -> None:
    path.write_text("x" * 100_000)


def _write_tensors(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(100_000)}, path)


def _write_small_tensors(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, path)


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("write", [_write_text, _write_tensors, _write_small_tensors])
def test_a_full_disk(tmp_path: Path, write: Callable[[Path], None]) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    write_text(file, "old")
    write_text(folder / "inner", "old")
    before = tree(tmp_path)
    with pytest.raises(FrostlineError) as caught, atomic_file(file) as temporary:
        temporary.unlink()
        temporary.symlink_to(FULL_DEVICE)
        write(temporary)
    assert str(caught.value) == (
        f"no space left while writing {file}, which stays as it was: free some space and run again"
    )
    with pytest.raises(FrostlineError, match=f"no space left while writing {folder}"), atomic_folder(folder) as staging:
        (staging / "inner").symlink_to(FULL_DEVICE)
        write(staging / "inner")
    assert not isinstance(caught.value, UserError), "a full disk is not the fault of the input"
    assert tree(tmp_path) == before


def test_the_text_that_safetensors_gives_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FrostlineError, match="no space left while writing"), atomic_file(tmp_path / "file"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("maker", ["mkstemp", "mkdtemp"])
def test_a_disk_without_room_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, maker, full)
    atomic = atomic_file if maker == "mkstemp" else atomic_folder
    with pytest.raises(FrostlineError, match="no space left while writing"), atomic(tmp_path / "thing"):
        pass


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    value = {"b": [1, 2.5, None, True], "a": "Größe 😀"}
    write_json(path, value)
    assert read_json(path, "value") == value
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert "Größe 😀" in path.read_text(encoding="utf-8")


def test_a_value_that_is_not_json_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert tree(tmp_path) == {"value.json": "1\n"}


def test_reading_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    latin, broken = tmp_path / "latin.json", tmp_path / "broken.json"
    latin.write_bytes("Größe".encode("latin-1"))
    broken.write_text('{"a": 1,\n "b": }')
    for path, pattern in (
        (tmp_path / "none.json", "run record not found: .*none.json$"),
        (tmp_path, "run record is a folder: .*: use the path of a file$"),
        (latin, "run record is not UTF-8 text: .*latin.json: "),
        (broken, "run record is not JSON: .*broken.json: .*line 2 column 7"),
    ):
        with pytest.raises(UserError, match=pattern) as caught:
            read_json(path, "run record")
        assert "\n" not in str(caught.value)
    assert read_text(broken, "text") == broken.read_text()


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class OutOfMemoryError(RuntimeError):
    """As torch's own, which is known by its name."""


@pytest.mark.parametrize("error", [OutOfMemoryError("CUDA"), RuntimeError("you tried: can't allocate memory")])
def test_want_of_memory_is_no_damage(error: RuntimeError, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised, reading(tmp_path, "optimizer state"):
        raise error
    assert raised.value is error
    with pytest.raises(CheckpointError, match="its optimizer state is damaged"), reading(tmp_path, "optimizer state"):
        raise RuntimeError("size mismatch")
