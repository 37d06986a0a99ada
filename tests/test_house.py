"""The house stays one in which work is found: no room above an eighth of the lines, no file above 400.

`python tests/test_house.py` prints lines, files and the largest file of every room. `lint-imports` holds who may import
whom, and that nothing goes round in a circle.
"""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "frostline"
LARGEST_ROOM = 0.12
LARGEST_FILE = 400


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def rooms() -> dict[str, dict[str, int]]:
    """Room -> its files, by their path within it, with their lines."""
    folders = sorted(folder for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file())
    return {
        folder.name: {str(path.relative_to(folder)): lines(path) for path in sorted(folder.rglob("*.py"))}
        for folder in folders
    }


def test_no_room_is_too_large() -> None:
    sizes = {room: sum(files.values()) for room, files in rooms().items()}
    most = LARGEST_ROOM * sum(sizes.values())
    assert {room: size for room, size in sizes.items() if size > most} == {}


def test_no_file_is_too_long() -> None:
    assert {name for files in rooms().values() for name, size in files.items() if size > LARGEST_FILE} == set()


if __name__ == "__main__":
    found = rooms()
    total = sum(sum(files.values()) for files in found.values())
    print(f"{'room':16}{'lines':>7}{'share':>7}{'files':>7}  largest")
    for room, files in found.items():
        largest = max(files, key=lambda name: files[name])
        size = sum(files.values())
        print(f"{room:16}{size:7,}{size / total:7.1%}{len(files):7}  {largest} {files[largest]}")
    print(f"{'all':16}{total:7,}")
