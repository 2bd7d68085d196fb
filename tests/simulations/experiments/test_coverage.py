"""Coverage over folds from cells that are written here: counted by hand, and against one run's own matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from fed_diffmic.cli import main
from fed_diffmic.errors import UsageError
from fed_diffmic.files import save_tensors, write_json
from fed_diffmic.training import conformal
from fed_diffmic.training.conformal import CELLS, Rule
from fed_diffmic.training.coverage import coverage
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.sureness import Sureness
from simulations.experiments.coverage import ABOVE, BELOW, INSIDE, Row, coverage_rows, write_coverage
from simulations.experiments.definition import load_experiment, shipped

CLASSES = ["a", "b"]


def write_cell(out: Path, seed: int, fold: int, sets: Sequence[Rule], parts: dict[str, tuple[Any, Any, Any]]) -> None:
    """A finished cell: rules, and each site's probability of class b, labels and groups."""
    folder = out / "cells" / f"seed-{seed}_fold-{fold}"
    folder.mkdir(parents=True)
    known = Sureness("multiclass", 2, n=50, sites=("east", "west"), rules=tuple(sets))
    summary = {
        "task": "multiclass",
        "classes": CLASSES,
        "sites": {site: {} for site in parts},
        "sureness": known.to_json(),
    }
    write_json(folder / "summary.json", summary)
    tensors = {}
    for site, (p, labels, groups) in parts.items():
        p = np.asarray(p, dtype=np.float32)
        tensors[f"federated|{site}|probabilities"] = np.stack([1 - p, p], axis=1)
        tensors |= {f"{site}|labels": np.asarray(labels, np.int64), f"{site}|groups": np.asarray(groups, np.int64)}
    save_tensors(folder / "predictions.safetensors", tensors)


def write_index(out: Path, seeds: int, folds: int) -> None:
    out.mkdir()
    cells = [
        {"name": f"seed-{s}_fold-{f}", "place": {"seed": str(s), "fold": str(f)}, "digest": ""}
        for s in range(seeds)
        for f in range(folds)
    ]
    write_json(out / "experiment.json", {"experiment": "x", "about": "y", "axes": ["seed", "fold"], "cells": cells})


def lac(cell: int) -> Rule:
    """A class is in a set if its probability is above ``1 - cell / CELLS``, or about that."""
    return Rule("lac", 0.9, (cell,), ((cell, cell),))


def find(rows: Sequence[Row], site: str, label: str = "", kind: str = "lac") -> Row:
    (found,) = [row for row in rows if (row.site, row.label, row.kind) == (site, label, kind)]
    return found


def test_shares_are_those_counted_by_hand_over_folds_and_seeds(tmp_path: Path) -> None:
    out, half = tmp_path / "exp", CELLS // 2
    write_index(out, seeds=2, folds=2)
    right, wrong = ([0.9] * 4, [1] * 4, range(4)), ([0.1, 0.9, 0.9, 0.9], [1] * 4, range(4))
    for seed in range(2):
        for fold in range(2):  # in seed 1, one of the four images of each fold at west is not in its set
            write_cell(out, seed, fold, [lac(half)], {"east": right, "west": wrong if seed else right})
    rows = coverage_rows(out)
    row = find(rows, "all")
    assert (row.n, row.value, row.least, row.most, row.size) == (16, (1 + 14 / 16) / 2, 14 / 16, 1.0, 1.0)
    exact = binomtest(15, 16).proportion_ci(0.95, "exact")  # 15 of 16 is the mean of both seeds
    assert (row.low, row.high) == pytest.approx((exact.low, exact.high))
    assert find(rows, "east").value == 1.0 and find(rows, "west").value == (1 + 6 / 8) / 2
    assert find(rows, "all", "b").n == 16 and not [r for r in rows if r.label == "a"]  # no image of a: no row


def test_images_of_one_patient_make_the_interval_wider(tmp_path: Path) -> None:
    each, owned = (
        ([0.9] * 9 + [0.1], [1] * 10, range(10)),
        ([0.9] * 9 + [0.1], [1] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    )
    found = []
    for name, part in (("each", each), ("owned", owned)):
        write_index(tmp_path / name, seeds=1, folds=1)
        write_cell(tmp_path / name, 0, 0, [lac(CELLS // 2)], {"east": part})
        found.append(find(coverage_rows(tmp_path / name), "all"))
    assert found[0].value == found[1].value == 0.9
    assert found[1].low < found[0].low and found[1].high >= found[0].high


def test_one_fold_is_what_the_run_itself_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p, labels = rng.random(200).astype(np.float32), (rng.random(200) < 0.5).astype(int)
    rules = [
        Rule(method, 0.9, (CELLS // 2,), ((CELLS // 3, 2 * CELLS // 3),)) for method in conformal.methods("multiclass")
    ]
    write_index(tmp_path / "exp", seeds=1, folds=1)
    write_cell(tmp_path / "exp", 0, 0, rules, {"east": (p, labels, range(200))})
    both = np.stack([1 - p, p], axis=1).astype(np.float64)
    scored = Scored(both, both.argmax(axis=1), labels, np.arange(200), "multiclass")
    known = Sureness("multiclass", 2, n=50, rules=tuple(rules))
    rows = coverage_rows(tmp_path / "exp")
    for kind, cell in coverage(scored, known, CLASSES).items():
        row = find(rows, "east", kind=kind)
        assert (row.value, row.low, row.high, row.size) == pytest.approx(
            tuple(cell[k] for k in ("value", "low", "high", "size"))
        )
        for name in CLASSES:
            assert find(rows, "east", name, kind).value == pytest.approx(cell["classes"][name]["value"])


def test_where_the_promise_lies() -> None:
    def verdict(low: float, high: float) -> str:
        return Row({}, "m", "lac", "all", "", 0.9, low, high, 0.9, 0.9, 1.0, 10).verdict(0.9)

    assert [verdict(0.85, 0.95), verdict(0.9, 1.0), verdict(0.7, 0.89), verdict(0.91, 1.0)] == [
        INSIDE,
        INSIDE,
        BELOW,
        ABOVE,
    ]


def test_a_seed_without_all_folds_is_left_out_and_the_command_writes_equal_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, part = tmp_path / "exp", ([0.9] * 4, [1] * 4, range(4))
    write_index(out, seeds=2, folds=2)
    write_cell(out, 0, 0, [lac(CELLS // 2)], {"east": part})
    with pytest.raises(UsageError, match="no seed has all its folds"):
        coverage_rows(out)
    write_cell(out, 0, 1, [lac(CELLS // 2)], {"east": part})
    write_cell(out, 1, 1, [lac(CELLS // 2)], {"east": part})
    assert find(coverage_rows(out), "all").n == 8
    files = write_coverage(out)
    before = [path.read_bytes() for path in files]
    assert main(["experiment", "coverage", str(out)]) == 0
    assert [path.read_bytes() for path in files] == before and "coverage.md" in capsys.readouterr().out
    assert b"| lac | all | 8 | 1.000 (" in before[1]
    assert main(["experiment", "coverage", str(out), "--level", "0.5"]) == 2


def test_the_shipped_experiments_have_folds_and_prediction_sets_to_judge() -> None:
    names = [name for name in shipped() if name.startswith("coverage-")]
    assert names == ["coverage-ham10000", "coverage-idrid", "coverage-phantoms"]
    small = ["axes.seed=1", "axes.fold=0"]
    given = ["dataset.root=somewhere", "model.weights=some.safetensors", *small]
    for name in names:
        experiment = load_experiment(name, given if name != "coverage-phantoms" else small)
        assert "fold" in experiment.axes and all(cell.config.partition.folds for cell in experiment.cells)
