"""What a report draws of a method's AUROC against the bytes that it took."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulations.experiments.compare import MEAN, METRICS, WORST, Section
from simulations.experiments.pictures import pictures

SENT = {"float32": 8e6, "int8": 1e6, "local": 0.0}


def section(sent: dict[str, float]) -> Section:
    values = {(m, p, f): np.array([0.8, 0.9, np.nan]) for m in sent for p in (MEAN, WORST, "a") for f in METRICS}
    return Section({}, ("0", "1", "2"), (), ("x", "y"), {"a": np.array([0, 1])}, values, 0.5, sent)


def drawn(sent: dict[str, float]) -> Any:
    return {name: drawing for name, _, drawing in pictures(section(sent))}.get("bytes-auroc_macro")


def test_each_method_that_sends_stands_where_its_bytes_and_its_mean_are() -> None:
    [ax] = drawn(SENT).axes
    marked = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert {name: (line.get_xdata()[0], line.get_ydata()[0]) for name, line in marked.items()} == {
        "float32": (8.0, pytest.approx(0.85)),
        "int8": (1.0, pytest.approx(0.85)),
    }
    ranges = [line for line in ax.lines if line.get_label().startswith("_")]
    assert [list(line.get_ydata()) for line in ranges] == [[0.8, 0.9]] * 2
    assert ax.get_xscale() == "log"


def test_nothing_is_drawn_where_all_methods_send_as_much() -> None:
    assert drawn({"a": 5.0, "b": 5.0, "local": 0.0}) is None
