"""An experiment run again beside what it said before: numbers of the cells that both have, and of nothing else."""

import runpy
import sys
from pathlib import Path

import pytest

from benchmarks.again import MARK, lines
from fed_diffmic.errors import UsageError
from fed_diffmic.files import read_json, write_json


def write_experiment(out: Path, seeds: dict[int, tuple[float, float]]) -> Path:
    """Cells with the macro AUROC of the federation and of one site alone, the same at the only site and in the mean."""
    cells = []
    for seed, (federated, local) in seeds.items():
        cells.append({"name": f"seed-{seed}", "place": {"seed": str(seed), "method": "m"}, "digest": ""})
        test = [{"auroc_macro": {"value": value}, "balanced_accuracy": {"value": 0.5}} for value in (federated, local)]
        whole, alone = ({"global": {}, "mean": {"test": t}, "sites": {"a": {"test": t}}} for t in test)
        (out / "cells" / f"seed-{seed}").mkdir(parents=True)
        elsewhere = {"e": {"models": {"federated": test[0], "local/a": test[1]}}}
        summary = {**whole, "baselines": {"local": alone}, "bytes_sent": 1, "external": elsewhere}
        write_json(out / "cells" / f"seed-{seed}" / "summary.json", summary)
    index = {"experiment": "x", "about": "y", "axes": ["seed", "method"], "cells": cells}
    write_json(out / "experiment.json", index)
    return out


def test_means_and_differences_of_the_cells_that_both_have(tmp_path: Path) -> None:
    before = write_experiment(tmp_path / "before", {1: (0.8, 0.7), 2: (0.9, 0.6), 3: (0.1, 0.1)})
    after = write_experiment(tmp_path / "after", {1: (0.8, 0.75), 2: (0.9, 0.59)})
    found = lines(before, after)
    assert "| m | federated | mean | 0.500 | 0.500 | +0.000 (+0.000 to +0.000) | 0.850 | 0.850 |" in "\n".join(found)
    row = "| m | local | a | 0.500 | 0.500 | +0.000 (+0.000 to +0.000) | 0.650 | 0.670 | +0.020 (-0.010 to +0.050) |"
    assert row in found and found[-1].startswith("Means over 2 cells")
    elsewhere = lines(before, after, "external")
    assert elsewhere.count(row.replace("local | a", "local/a | external: e")) == 1
    assert sum(line.startswith("| m |") for line in elsewhere) == 2


def test_the_page_has_it_and_folders_of_two_experiments_are_refused(tmp_path: Path, monkeypatch) -> None:
    before, after = (write_experiment(tmp_path / name, {1: (0.8, 0.7)}) for name in ("before", "after"))
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {MARK} x -->\nold\n<!-- end of {MARK} x -->\n")
    monkeypatch.setattr(sys, "argv", ["again", str(page), str(before), str(after), "--name", "x"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.again", run_name="__main__")
    assert ended.value.code == 0 and "Means over 1 cells" in page.read_text() and "old" not in page.read_text()
    with pytest.raises(UsageError, match="no finished cell in common"):
        lines(before, write_experiment(tmp_path / "other", {7: (0.8, 0.7)}))


def test_an_experiment_without_methods_has_no_such_column(tmp_path: Path) -> None:
    both = [write_experiment(tmp_path / name, {1: (0.8, 0.7)}) for name in ("before", "after")]
    for out in both:
        index = read_json(out / "experiment.json")
        cells = [{**cell, "place": {"seed": cell["place"]["seed"], "level": "0.9"}} for cell in index["cells"]]
        write_json(out / "experiment.json", {**index, "axes": ["seed", "level"], "cells": cells})
    assert "| 0.9 | local | a | 0.500 |" in "\n".join(lines(*both)) and "method" not in lines(*both)[0]
