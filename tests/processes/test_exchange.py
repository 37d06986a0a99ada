"""One decision for all processes: values and errors of one are those of all, wherever the others wait."""

from __future__ import annotations

from pathlib import Path

from several import script_in_processes

SCRIPT = """
    import os, sys, time
    import pytest
    import torch.distributed as dist
    from frostline.bottom import CannotCut
    from frostline.core.errors import ConfigError, FrostlineError, TrainingError
    from frostline.processes import ALONE, is_of_all, ending, refuse, running, start

    rank = int(os.environ["RANK"])
    assert running() is ALONE
    if rank == 2:  # before there is a group
        with pytest.raises(ConfigError, match="one line"):
            refuse(ConfigError("one line"))
    else:
        with pytest.raises(ConfigError, match="one line"), start(60).together():
            pass

    with ending():
        group = start()
        assert (group.rank, group.count, group.first) == (rank, 3, rank == 0)
        assert group.every(f"of {rank}") == ["of 0", "of 1", "of 2"]
        assert group.same({"rank": rank}) == {"rank": 0}
        assert group.any(rank == 1) and not group.any(False)
        assert group.first_found("x" if rank == 2 else None) == "x" and group.first_found(None) is None
        assert group.once(lambda: rank + 5) == 5
        group.wait()
        for count in range(8):
            made = []
            shares = group.divided(lambda item: made.append(item) or item * item, range(count))
            assert list(shares) == [item * item for item in range(count)]
            assert made == list(range(rank, count, 3))

        # One process fails; the others are anywhere.
        def elsewhere():
            yield lambda: None
            yield group.wait
            yield lambda: group.every(rank)
            yield lambda: group.any(True)
            yield lambda: group.once(lambda: rank)
            yield lambda: list(group.divided(str, range(9)))

        for where in elsewhere():
            for bad in range(3):
                with pytest.raises(CannotCut, match=f"not in {bad}") as caught:
                    with group.together(), group.together():
                        if rank == bad:
                            raise CannotCut(f"not in {bad}")
                        where()
                assert is_of_all(caught.value)
        with pytest.raises(ConfigError, match="here as"):  # turned into another error by all
            with group.together():
                try:
                    with group.together():
                        if rank == 1:
                            raise CannotCut("not here")
                except CannotCut:
                    raise ConfigError("here as there") from None
        with pytest.raises(ConfigError, match="of 1"):  # two at once: all raise that of the lower rank
            with group.together():
                if rank:
                    raise ConfigError(f"of {rank}")
        with pytest.raises(OSError, match="gone"):
            group.once(lambda: (_ for _ in ()).throw(FileNotFoundError(2, "gone", "/x")))
        with pytest.raises(FrostlineError if rank != 1 else KeyError) as caught:
            with group.together():
                if rank == 1:
                    raise KeyError("no such")
        if rank != 1:
            assert str(caught.value) == "process 1: KeyError: 'no such'"
        assert group.every(rank) == [0, 1, 2], "it goes on"
    assert not dist.is_initialized()
"""

LOST = """
    import os
    from frostline.core.errors import TrainingError
    from frostline.processes import is_of_all, start

    rank = int(os.environ["RANK"])
    try:
        group = start(60)
        if rank == 2:
            os._exit(0)  # it is gone
        group.wait()
    except TrainingError as error:
        assert "another process of this training has ended" in str(error) and not is_of_all(error)
        os._exit(0)
    raise AssertionError("the others saw nothing")
"""


def test_values_and_errors_of_one_process_are_those_of_all(tmp_path: Path) -> None:
    script_in_processes(SCRIPT, tmp_path, count=3, seconds=120)


def test_a_process_that_is_gone_is_seen(tmp_path: Path) -> None:
    script_in_processes(LOST, tmp_path, count=3, seconds=60)
