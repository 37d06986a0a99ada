"""How many compiled kernels a process keeps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from frostline.core.memory import keep_few_kernels

ONEDNN, IDEEP = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


def test_the_user_s_own_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv(ONEDNN, "7")
    monkeypatch.setenv(IDEEP, "")
    monkeypatch.delenv(IDEEP)
    keep_few_kernels()
    assert (os.environ[ONEDNN], os.environ[IDEEP]) == ("7", "64")


def test_nothing_is_set_where_it_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", os)
    monkeypatch.setenv(IDEEP, "")
    monkeypatch.delenv(IDEEP)
    keep_few_kernels()
    assert IDEEP not in os.environ


def test_the_command_sets_it_before_torch_is_there() -> None:
    code = (
        "import os, sys, importlib.abc\n"
        "class Look(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            print('kernels', os.environ.get('LRU_CACHE_CAPACITY'), file=sys.stderr, flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Look())\n"
        "from frostline.cli.main import main\n"
        "main(['inspect', 'no such model'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in (ONEDNN, IDEEP)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[0] == "kernels 64"
