"""A probe as plain data, in the cache, and as a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from samples import collate, sample

from architectures import tiny
from frostline.anatomy import tensor_hashes
from frostline.core.errors import UserError
from frostline.signals import Measurement, Probe, cached, measure, probe_identity, save_figure


def made(*gains: float | None) -> Probe:
    values = tuple(Measurement(gain, 0.1) for gain in gains)
    return Probe("m", "t", 5, "the last input token", {"shift": values, "shift_gain": values, "shift_log_gain": values})


def test_round_trip_through_json() -> None:
    odd = (Measurement(math.inf), Measurement(None), Measurement(0.1, 0.2))
    probe = Probe("m", "t", 5, "the last input token", {"snr": odd})
    text = json.dumps(probe.document(), allow_nan=False)
    assert Probe.read_document(json.loads(text)) == probe


@pytest.mark.parametrize("document", [None, [], {"version": 2}, {"version": 1}, {**made(1.0).document(), "signals": 3}])
def test_what_is_no_probe(document: Any) -> None:
    with pytest.raises(UserError, match="probe"):
        Probe.read_document(document)


def test_the_suggested_cut() -> None:
    assert made(None, 0.1, 0.3, 0.2).suggestion == 3
    assert made(None).suggestion is None
    assert Probe("m", "t", 5, "", {"snr": (Measurement(1.0),) * 3}).suggestion is None
    with pytest.raises(UserError, match="no vds: measure vds or shift"):
        made(0.1, 0.2).gains(deviation="vds")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    model = tiny("llama")
    rows = sample(model)
    measured = 0

    def identity(rows: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
        given = {"signals": ["shift"], "tokens": "first", "device": "cpu"} | changed
        return probe_identity(model, tensor_hashes(model), rows, **given)

    def make() -> Probe:
        nonlocal measured
        measured += 1
        return Probe("model", "task", len(rows), "", measure(model, rows, collate, signals=["shift"]))

    first = cached(identity(rows), ("model", "task"), make, tmp_path)
    renamed = [{**row, "example_id": "else"} for row in rows]
    again = cached(identity(renamed), ("same model", "task"), make, tmp_path)
    assert measured == 1 and again.signals == first.signals and again.model == "same model"
    (file,) = (tmp_path / "signals").iterdir()
    file.write_text("{")
    assert cached(identity(rows), ("model", "task"), make, tmp_path) == first and measured == 2

    known = {json.dumps(identity(rows))}
    known.add(json.dumps(identity(sample(model, seed=1))))
    known.add(json.dumps(identity(rows, tokens="all")))
    known.add(json.dumps(identity(rows, signals=["snr"])))
    model.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1e-3
    known.add(json.dumps(identity(rows)))
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5.0}
    known.add(json.dumps(identity(rows)))
    assert len(known) == 6


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figure(tmp_path: Path, suffix: str) -> None:
    begin = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    save_figure(made(None, math.inf, 0.3, -0.2), tmp_path / f"signals.{suffix}")
    assert (tmp_path / f"signals.{suffix}").read_bytes().startswith(begin)
    with pytest.raises(UserError, match="unknown figure format: use a file name that ends in png, pdf, svg"):
        save_figure(made(0.1, 0.2), tmp_path / "signals.doc")
