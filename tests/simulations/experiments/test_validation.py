"""What validation says of methods, as a page has it: no figure of a test image."""

from pathlib import Path

import pytest

from benchmarks.validation import lines
from fed_diffmic.errors import UsageError
from fed_diffmic.files import write_json

TEST = {"auroc_macro": {"value": 0.111}, "balanced_accuracy": {"value": 0.222}}


def write_experiment(out: Path, areas: dict[str, tuple[float | None, ...]]) -> Path:
    """Finished cells; a balanced accuracy is a tenth below its macro AUROC, a mean over sites a hundredth above."""
    cells = []
    for method, values in areas.items():
        for fold, area in enumerate(values):
            name = f"fold-{fold}_method-{method}"
            cells.append({"name": name, "place": {"seed": "1", "fold": str(fold), "method": method}, "digest": ""})
            (out / "cells" / name).mkdir(parents=True)
            summary = {
                place: {
                    "val": {
                        "auroc_macro": {"value": None if area is None else area + more},
                        "balanced_accuracy": {"value": None if area is None else area + more - 0.1},
                    },
                    "test": TEST,
                }
                for place, more in (("global", 0.0), ("mean", 0.01))
            }
            write_json(out / "cells" / name / "summary.json", summary)
    write_json(out / "experiment.json", {"experiment": "x", "about": "y", "axes": ["fold", "method"], "cells": cells})
    return out


def test_a_row_is_the_mean_over_a_methods_cells_which_it_names(tmp_path: Path) -> None:
    first = write_experiment(tmp_path / "first", {"short": (0.7, 0.8), "long": (0.9,)})
    second = write_experiment(tmp_path / "second", {"other": (None,), "not yet": (0.5,)})
    (second / "cells" / "fold-0_method-not yet" / "summary.json").unlink()
    found = lines([first, second])
    assert found[2:-1] == [
        "| short | seed 1 fold 0; seed 1 fold 1 | 0.760 | 0.750 | 0.660 | 0.650 |",
        "| long | seed 1 fold 0 | 0.910 | 0.900 | 0.810 | 0.800 |",
        "| other | seed 1 fold 0 | - | - | - | - |",
    ]
    assert not any("0.111" in line or "0.222" in line for line in found)


def test_what_gives_no_table_is_said(tmp_path: Path) -> None:
    first = write_experiment(tmp_path / "first", {"short": (0.7,)})
    with pytest.raises(UsageError, match="short, seed 1 fold 0, is in another folder too"):
        lines([first, write_experiment(tmp_path / "second", {"short": (0.8,)})])
    with pytest.raises(UsageError, match="holds no experiment"):
        lines([tmp_path])
    (first / "cells" / "fold-0_method-short" / "summary.json").unlink()
    with pytest.raises(UsageError, match="no cell of these experiments is finished"):
        lines([first])
