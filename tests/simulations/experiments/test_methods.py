"""The table of methods over seeds, as a page has it: numbers of the cells and of nothing else."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.methods import MARK, lines
from benchmarks.pages import fill, put, rewrite
from fed_diffmic.errors import UsageError
from fed_diffmic.files import save_tensors, write_json

AREAS = {"plain": (0.8, 0.7, 0.75), "noisy": (0.6, 0.65, 0.55)}


def write_experiment(
    out: Path, areas: dict[str, tuple[float, ...]], axes: tuple[str, ...] = ("seed", "method")
) -> None:
    """Finished cells: what a summary says of all test images, and predictions of one site that are all right."""
    out.mkdir()
    cells = []
    for method, values in areas.items():
        for seed, area in enumerate(values, start=1):
            name = f"seed-{seed}_method-{method}"
            cells.append({"name": name, "place": {"seed": str(seed), "method": method}, "digest": ""})
            folder = out / "cells" / name
            folder.mkdir(parents=True)
            test = {"auroc_macro": {"value": area}, "balanced_accuracy": {"value": None}}
            site = {"n_train": 60, "n_val": 20, "n_test": 40}
            told = {"classes": ["a", "b"], "sites": {"s": site}, "bytes_sent": 2_500_000, "global": {"test": test}}
            write_json(folder / "summary.json", told)
            labels = np.arange(40) % 2
            p = np.eye(2, dtype=np.float32)[labels]
            tensors = {"federated|s|probabilities": p, "federated|s|decided": labels, "s|labels": labels}
            save_tensors(folder / "predictions.safetensors", tensors)
    write_json(out / "experiment.json", {"experiment": "x", "about": "y", "axes": list(axes), "cells": cells})


def test_means_and_paired_differences_by_hand(tmp_path: Path) -> None:
    write_experiment(tmp_path / "exp", AREAS)
    text = "\n".join(lines(tmp_path / "exp", ["plain"]))
    gaps = np.array(AREAS["noisy"]) - np.array(AREAS["plain"])
    reach = stats.t.ppf(0.975, 2) * gaps.std(ddof=1) * math.sqrt(1 / 3 + 40 / 80)
    said = f"{gaps.mean():+.3f} ({gaps.mean() - reach:+.3f} to {gaps.mean() + reach:+.3f}) not shown"
    assert f"| noisy | {said} | +0.000 (+0.000 to +0.000) not shown | - | +0.000" in text
    assert "| plain | 0.750 (0.050) | 1.000 (0.000) | - | 1.000 (0.000) | 2.50 |" in text
    both = "\n".join(lines(tmp_path / "exp", ["plain", "noisy"]))
    assert both.startswith(text) and f"| plain | {-gaps.mean():+.3f} (" in both
    assert "seeds 1, 2, 3." in text and "left out" not in text


def test_a_seed_that_one_method_lacks_is_left_out_for_all_and_named(tmp_path: Path) -> None:
    write_experiment(tmp_path / "exp", {**AREAS, "late": (0.5, 0.5)})
    text = "\n".join(lines(tmp_path / "exp", ["plain"]))
    assert "seeds 1, 2." in text and "left out: 3." in text
    assert "| plain | 0.750 (0.071) |" in text  # of 0.8 and 0.7 alone


def test_the_page_keeps_what_stands_around_its_marks(tmp_path: Path) -> None:
    write_experiment(tmp_path / "exp", AREAS)
    text = lines(tmp_path / "exp", ["plain"])
    page = put("above\n\n<!-- methods -->\nold\n<!-- end of methods -->\n\nbelow\n", MARK, text)
    assert page.startswith("above\n\n") and page.endswith("\n\nbelow\n") and "old" not in page
    assert put(page, MARK, text) == page


def test_of_several_tables_of_a_page_the_named_one_is_written(tmp_path: Path) -> None:
    page, two = (
        tmp_path / "page.md",
        "<!-- methods -->\na\n<!-- end of methods -->\n<!-- methods b -->\nc\n<!-- end of methods b -->\n",
    )
    page.write_text(two)
    fill(page, MARK, lambda: ["new"], "b")
    assert page.read_text() == two.replace("\nc\n", "\nnew\n")
    fill(page, MARK, lambda: ["first"])
    assert page.read_text() == two.replace("\nc\n", "\nnew\n").replace("\na\n", "\nfirst\n")


def test_what_gives_no_table_is_said(tmp_path: Path) -> None:
    write_experiment(tmp_path / "exp", AREAS)
    with pytest.raises(UsageError, match="no method 'nobody'"):
        lines(tmp_path / "exp", ["nobody"])
    write_experiment(tmp_path / "empty", {"plain": ()})
    with pytest.raises(UsageError, match="none of its cells has metrics"):
        lines(tmp_path / "empty", ["plain"])
    write_experiment(tmp_path / "apart", {"plain": (0.8,), "noisy": (0.7,)})
    (tmp_path / "apart" / "cells" / "seed-1_method-noisy" / "summary.json").unlink()
    assert "noisy" not in "\n".join(lines(tmp_path / "apart", ["plain"]))


def test_a_page_without_marks_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no lines"):
        put("nothing here", MARK, ["text"])
    measured = False

    def for_minutes() -> list[str]:
        nonlocal measured
        measured = True
        return []

    page = tmp_path / "page.md"
    with pytest.raises(UsageError, match="no page of text"):
        fill(page, MARK, for_minutes)
    page.write_text("<!-- methods -->\na\n<!-- end of methods -->\n")
    with pytest.raises(UsageError, match="no lines <!-- methods b -->"):
        fill(page, MARK, for_minutes, "b")
    assert not measured


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("answer", ["DIR", "PAGE"]),
        ("elsewhere", ["PAGE", "DIR"]),
        ("head", ["DIR", "PAGE"]),
        ("methods", ["DIR", "PAGE", "--against", "none"]),
    ],
)
def test_a_program_that_writes_a_page_says_what_is_wrong_in_words(program, arguments, tmp_path, monkeypatch, capsys):
    """No traceback above it, the exit code of a mistake in usage, and the page as it was."""
    page, folder = tmp_path / "page.md", tmp_path / "nothing"
    page.write_text("as it was\n")
    places = {"DIR": str(folder), "PAGE": str(page)}
    monkeypatch.setattr(sys, "argv", [program, *(places.get(word, word) for word in arguments)])
    monkeypatch.delitem(sys.modules, f"benchmarks.{program}", raising=False)  # run as a program, not as what is there
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error FD002: ") and "What to do: " in said
    assert "Traceback" not in said and page.read_text() == "as it was\n"


@pytest.mark.parametrize("what", ["nothing", "a folder", "no text"])
def test_a_page_that_is_not_there_or_no_text_is_told_of_in_words(what, tmp_path):
    page = tmp_path / "page.md"
    if what == "a folder":
        page.mkdir()
    elif what == "no text":
        page.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="page.md: no page of text"):
        rewrite(page, lambda text: text)
    assert page.exists() is (what != "nothing")
