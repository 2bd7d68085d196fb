"""Interactive metrics: the numbers of their static twins, names as they are, two scripts and no way out of the page."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.errors import UsageError
from fed_diffmic.reporting import live, plots
from fed_diffmic.reporting.curves import kept_rows
from fed_diffmic.reporting.events import Event
from fed_diffmic.reporting.report import write_report
from fed_diffmic.reporting.view import arm_name, measured, number
from tests.reporting.test_report import Parsed

HOSTILE = "<a href='https://example.org'>%{x}</a>"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("plotly", reason="the extra 'interactive' is not installed")


def test_lines_are_those_of_the_static_picture(events: list[Event]) -> None:
    rows = kept_rows(events)
    drawing = live.curve_drawing(rows, "guidance", "val", "auroc_macro")
    assert drawing is not None
    lines = plots.curves(rows, "guidance", "val", "auroc_macro")
    assert [trace["y"] for trace in drawing["data"]] == [[row.value for row in points] for points in lines.values()]
    assert [trace["x"] for trace in drawing["data"]] == [[row.round for row in points] for points in lines.values()]
    first = next(iter(lines.values()))[0]
    assert drawing["data"][0]["hovertext"][0].endswith(f"round {first.round}: {number(first.value)}")
    kinds = [trace["legendgroup"] for trace in drawing["data"] if trace["showlegend"]]
    assert len(kinds) == len(set(kinds))  # named once, however many sites
    assert live.curve_drawing(rows, "guidance", "val", "no_such_figure") is None


def test_sites_have_their_values_and_intervals(summary: dict[str, Any]) -> None:
    traces = live.site_drawing(summary, "auroc_macro")["data"]
    ours = next(trace for trace in traces if trace["name"] == arm_name("federated"))
    for place, site in enumerate(sorted(summary["sites"]), start=1):
        entry = measured(summary, "auroc_macro", site=site)
        assert ours["y"][place] == site and ours["x"][place] == entry["value"]
        assert ours["x"][place] + ours["error_x"]["array"][place] == pytest.approx(entry["high"])
        assert ours["x"][place] - ours["error_x"]["arrayminus"][place] == pytest.approx(entry["low"])
        assert f"{entry['n']} images" in ours["hovertext"][place]


def cell(value: float | None, ranked: bool) -> dict[str, Any]:
    known = {"value": value, "low": None if value is None else value - 0.1, "high": value}
    return {"n": 7, "positives": {"mel": 3, "nv": 4}, "ranked": ranked, "auroc_macro": known}


def test_a_cell_tells_what_it_is_worth() -> None:
    matrix = {"federated": {"a": cell(0.75, True), "b": cell(None, False)}, "local/a": {"a": cell(0.5, False)}}
    matrix["local/a"]["b"] = cell(0.25, True)
    (trace,) = live.matrix_drawing(matrix, "auroc_macro")["data"]
    assert trace["z"] == [[0.75, None], [0.5, 0.25]] and trace["x"] == ["a", "b"]
    assert trace["text"] == [["0.75", "-"], ["(0.50)", "0.25"]]
    assert "0.750 (0.650 to 0.750)" in trace["hovertext"][0][0] and "mel 3, nv 4" in trace["hovertext"][0][0]
    assert "not ranked" in trace["hovertext"][1][0] and "not ranked" not in trace["hovertext"][1][1]


def interactive(folder: Path, summary: dict[str, Any], events: list[Event]) -> tuple[str, Parsed]:
    path = write_report(
        folder, summary, events=events, config_yaml="seed: 3", path=folder / "live.html", interactive=True
    )
    document = path.read_text(encoding="utf-8")
    return document, Parsed(re.sub(r"<script>.*?</script>", "", document, flags=re.DOTALL))


def test_only_its_two_scripts_may_run_and_none_knows_the_makers_address(
    tmp_path: Path, summary: dict[str, Any], events: list[Event]
) -> None:
    document, parsed = interactive(tmp_path, summary, events)
    scripts = re.findall(r"<script>(.*?)</script>", document, flags=re.DOTALL)
    policy = next(tag["content"] for name, tag in parsed.tags if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*)", policy)
    assert allowed is not None and len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert allowed[1].split() == [f"'sha256-{digest}'" for digest in digests]
    assert "newchart" not in document and "cloud.plotly" not in document and "showSendToCloud: false" in scripts[1]


def test_every_twin_keeps_its_static_picture(tmp_path: Path, summary: dict[str, Any], events: list[Event]) -> None:
    _, parsed = interactive(tmp_path, summary, events)
    static = Parsed(write_report(tmp_path, summary, events=events, config_yaml="seed: 3").read_text(encoding="utf-8"))
    images = [tag["src"] for name, tag in parsed.tags if name == "img"]
    assert images == [tag["src"] for name, tag in static.tags if name == "img"]
    twins = [json.loads(str(tag["data-live"])) for name, tag in parsed.tags if name == "figure" and "data-live" in tag]
    assert len(twins) >= 3 and all(set(twin) == {"data", "layout"} for twin in twins)
    assert not any("data-live" in tag or name == "script" for name, tag in static.tags)


def test_names_are_no_markup(summary: dict[str, Any]) -> None:
    named = copy.deepcopy(summary)
    named["sites"][HOSTILE] = named["sites"].pop(sorted(named["sites"])[0])
    text = json.dumps(live.site_drawing(named, "auroc_macro"))
    assert "<a " not in text and json.dumps(escape(HOSTILE))[1:-1] in text
    assert "template" not in text
    (trace,) = live.matrix_drawing({HOSTILE: {HOSTILE: cell(0.5, True)}}, "auroc_macro")["data"]
    assert "<a " not in json.dumps(trace) and HOSTILE not in json.dumps(trace)


def test_a_missing_package_is_mendable(
    tmp_path: Path, summary: dict[str, Any], events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UsageError, match=r"fed-diffmic\[interactive\]"):
        interactive(tmp_path, summary, events)
    assert not list(tmp_path.iterdir())
