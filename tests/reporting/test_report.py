"""The report: one file that asks for nothing, escapes what is data, and prints the summary's own numbers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fed_diffmic.errors import MachineError
from fed_diffmic.reporting.events import Event
from fed_diffmic.reporting.report import DISCLAIMER, write_report
from fed_diffmic.reporting.story import verdict
from fed_diffmic.reporting.view import METRIC_NAMES, number, plain_names
from fed_diffmic.training import calibration
from tests.reporting.test_story import one_class


class Parsed(HTMLParser):
    """Tags with attributes, visible text, and whether every tag was closed in order."""

    VOID = ("meta", "img")

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def render(folder: Path, summary: dict[str, Any], events: list[Event], **kwargs: Any) -> tuple[str, Parsed]:
    """Write and read back."""
    path = write_report(folder, summary, events=events, config_yaml=kwargs.pop("config_yaml", "seed: 3"), **kwargs)
    assert path == folder / "report.html"
    document = path.read_text(encoding="utf-8")
    parsed = Parsed(document)
    assert not parsed.open
    return document, parsed


TABLES = {"Learning-rate grid": (["arm", "factor"], [["local", 0.3]])}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, summary: dict[str, Any], events: list[Event]) -> tuple[str, Parsed]:
    """The report of the synthetic run."""
    return render(tmp_path_factory.mktemp("report"), summary, events, tables=TABLES)


def test_nothing_is_fetched_and_nothing_runs(whole: tuple[str, Parsed]) -> None:
    document, parsed = whole
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("href", "srcset", "action")
            assert name != "src" or (value or "").startswith("data:image/svg+xml;base64,")
    style = document[document.index("<style>") : document.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = [a["content"] for t, a in parsed.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert len(document) < 3_000_000


def test_story_metrics_and_disclaimer_come_first(whole: tuple[str, Parsed], summary: dict[str, Any]) -> None:
    text = whole[1].text
    assert (
        text.index(DISCLAIMER)
        < text.index("Federating helped")
        < text.index("Who gained")
        < text.index("How it was made")
    )
    assert text.count("Not a medical device") == 2
    pictures = [a for t, a in whole[1].tags if t == "img"]
    assert len(pictures) == 2 + 2 + 6 + 1 and all(a["alt"] for a in pictures)


def test_every_site_s_metrics_are_the_summary_s(whole: tuple[str, Parsed], summary: dict[str, Any]) -> None:
    document = whole[0]
    for site in summary["sites"]:
        row = re.search(rf"<tr><td>{site}<small>(.*?)</tr>", document, re.DOTALL)
        assert row is not None
        own, local = (b["sites"][site]["test"]["auroc_macro"] for b in (summary, summary["baselines"]["local"]))
        gap = summary["differences"]["local"]["sites"][site]["auroc_macro"]
        for entry in (own, local):
            assert f"{entry['value']:.3f}<small>{entry['low']:.3f} to {entry['high']:.3f}</small>" in row[1]
        assert f"{number(gap['value'], sign=True)}<small>" in row[1]
    assert "without df" in document  # rosendahl has none


def cells_of(document: str, caption: str) -> list[list[str]]:
    """Cells of the table with that caption, what stands below a value behind a bar."""
    body = document[document.index(f"<caption>{caption}") :].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[cell.replace("<small>", "|").replace("</small>", "") for cell in row] for row in found if row]


def shown(entry: dict[str, Any], *, sign: bool = False) -> str:
    """A figure as a cell of the report."""
    if entry["value"] is None:
        return "\N{EN DASH}"
    low, high = (number(entry[key], sign=sign) for key in ("low", "high"))
    return number(entry["value"], sign=sign) + ("" if entry["low"] is None else f"|{low} to {high}")


def test_every_class_has_its_own_metrics_and_intervals_from_low_to_high(
    whole: tuple[str, Parsed], summary: dict[str, Any]
) -> None:
    rows = cells_of(whole[0], "federated model, all test images, each class")
    classes = summary["global"]["test"]["per_class"]
    assert [row[0].partition("|")[0] for row in rows] == list(classes)
    for row, (name, entry) in zip(rows, classes.items(), strict=True):
        assert row[1] == str(entry["positives"]), name
        for cell, key in zip(row[2:], ("auroc", "auprc", "sensitivity", "specificity", "f1"), strict=True):
            low, high = (entry.get("intervals") or {}).get(key) or (None, None)
            assert low is None or low <= high
            assert cell == shown({"value": entry[key], "low": low, "high": high}), (name, key)
    assert any(entry.get("intervals") for entry in classes.values())


def test_every_models_metrics_stand_under_their_names(whole: tuple[str, Parsed], summary: dict[str, Any]) -> None:
    rows = cells_of(whole[0], "all test images together")
    blocks = [summary, *(summary["baselines"][arm] for arm in ("local", "pooled"))]
    blocks += [summary["baselines"]["plain"]["federated"], summary["baselines"]["guidance"]]
    metrics = [m for m in METRIC_NAMES if m != "loss" and summary["global"]["test"][m]["value"] is not None]
    assert [row[1:] for row in rows] == [[shown(b["global"]["test"][m]) for m in metrics] for b in blocks]


def test_the_table_of_sites_is_the_summarys_cell_by_cell(whole: tuple[str, Parsed], summary: dict[str, Any]) -> None:
    for metric in ("auroc_macro", "balanced_accuracy"):
        rows = cells_of(whole[0], f"{METRIC_NAMES[metric]} on test images")
        baselines = summary["baselines"]
        others = [baselines["local"], baselines["pooled"], baselines["plain"]["federated"], baselines["guidance"]]
        differences = summary["differences"]["local"]
        *of_sites, chance = rows[2:]
        assert chance[0].startswith("chance")
        for row, site in zip(of_sites, sorted(summary["sites"]), strict=True):
            gap = differences["sites"][site][metric]
            counts = " / ".join(str(summary["sites"][site][f"n_{split}"]) for split in ("train", "val", "test"))
            assert row[0].startswith(f"{site}|{counts}")
            assert row[1:3] == [shown(summary["sites"][site]["test"][metric]), shown(gap, sign=True)]
            sign = {"helped": "better", "worse": "worse", "unclear": "unclear"}[verdict(gap, metric)]
            assert row[3].endswith(sign)
            assert row[4:] == [shown(block["sites"][site]["test"][metric]) for block in others]
        assert rows[1][1:3] == [shown(summary["mean"]["test"][metric]), shown(differences["mean"][metric], sign=True)]
        assert rows[1][4:] == [shown(block["mean"]["test"][metric]) for block in others]
        assert rows[0][1] == shown(summary["global"]["test"][metric]) and rows[0][2:4] == ["", ""]
        assert rows[0][4:] == [shown(block["global"]["test"][metric]) for block in others]


def test_absent_and_rare_classes_are_marked(
    make_summary: Callable[..., dict[str, Any]], whole: tuple[str, Parsed]
) -> None:
    assert re.search(r"<td>df<small>few: read with care</small></td>", whole[0])


def test_names_and_configuration_are_escaped(tmp_path: Path, summary: dict[str, Any]) -> None:
    evil = "<script>alert('x')</script> & \"co\""
    bad = copy.deepcopy(summary)
    bad["classes"][0] = bad["dataset"] = bad["run"] = evil
    for split in [bad["global"]["test"]]:
        split["per_class"] = {evil: split["per_class"]["akiec"]}
    bad["sites"] = {evil: bad["sites"]["rosendahl"]}
    warning = [{"kind": "warning", "message": evil}]
    document, parsed = render(tmp_path, bad, warning, config_yaml=f"x: {evil}", tables={evil: ([evil], [[evil]])})
    assert "<script" not in document and parsed.text.count("<script>alert('x')</script>") >= 8


@pytest.mark.parametrize("task", ["ordinal", "multilabel"])
def test_other_tasks(
    tmp_path: Path, make_summary: Callable[..., dict[str, Any]], events: list[Event], task: str
) -> None:
    _, parsed = render(tmp_path, make_summary(task), events)
    assert ("Quadratic kappa" in parsed.text) == (task == "ordinal")
    assert ("Macro AUPRC" in parsed.text) == (task == "multilabel")
    assert ("Confusion of the federated model" in parsed.text) == (task == "ordinal")
    assert ("sigmoid(3.67 score + 0.25 logit(prior))" in parsed.text) == (task == "multilabel")


def test_probabilities_that_nobody_fitted_say_so(tmp_path: Path, summary: dict[str, Any]) -> None:
    unfitted = calibration.uncalibrated(np.full(7, 1 / 7), "multiclass", 1.0).to_json()
    _, parsed = render(tmp_path, {**summary, "calibration": unfitted}, [])
    assert "exp(1 score + 1 log(prior)), not fitted" in parsed.text and "fitted on" not in parsed.text


def test_a_run_without_baselines_or_end(tmp_path: Path, summary: dict[str, Any]) -> None:
    bare = {key: summary[key] for key in ("task", "classes", "global", "sites", "run", "seed")}
    bare["calibration"] = {**summary["calibration"], "at_edge": True}
    bare["status"] = "interrupted"
    _, parsed = render(
        tmp_path, bare, [{"kind": "site_failed", "site": "site-3", "stage": "plain", "round": 2, "reason": "late"}]
    )
    for said in (
        "not finished (status: interrupted)",
        "no local baseline",
        "edge of its grid",
        "site site-3 did not reply, stage plain, round 2: late",
    ):
        assert said in parsed.text
    nothing = {"status": "failed", "task": "multiclass", "classes": ["a", "b"], "run": "r"}
    assert "status: failed" in render(tmp_path, nothing, [])[1].text


def test_same_run_same_bytes_and_whole_or_not_at_all(
    tmp_path: Path, whole: tuple[str, Parsed], summary: dict[str, Any], events: list[Event]
) -> None:
    assert render(tmp_path, summary, events, tables=TABLES)[0] == whole[0]
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(MachineError):
        write_report(tmp_path / "missing", summary, events=[], config_yaml="")


def test_chance_stands_in_the_tables_and_the_headline_says_what_is_no_better(
    whole: tuple[str, Parsed], summary: dict[str, Any], events: list[Event], tmp_path: Path
) -> None:
    assert "chance a model that knows nothing 0.500" in whole[1].text
    assert "chance a model that knows nothing 0.143" in whole[1].text
    _, parsed = render(tmp_path, one_class(summary), events)
    assert "calls every test image nv: its decisions are no better than chance" in parsed.text
    assert ("div", {"class": "story worse"}) in parsed.tags


def test_a_table_that_does_not_fit_shows_that_it_scrolls(whole: tuple[str, Parsed]) -> None:
    document, parsed = whole
    style = document[: document.index("</style>")]
    assert "overflow-x: auto" in style and "::-webkit-scrollbar { height" in style and "linear-gradient" in style
    assert "8 columns: move the table sideways." in parsed.text
    assert all(tag.get("tabindex") == "0" for _, tag in parsed.tags if tag.get("class") == "scroll")  # by keyboard too
    assert ".wide { display: block; }" in style[style.index("@media (max-width") : style.index("@media print")]


def test_published_abbreviations_are_explained_and_a_hospitals_own_are_not(
    whole: tuple[str, Parsed], summary: dict[str, Any]
) -> None:
    assert "akiec: actinic keratosis or intraepithelial carcinoma" in whole[1].text
    assert plain_names(["nv", "mel"])["mel"] == "melanoma" and plain_names(["df", "other"]) == {}
