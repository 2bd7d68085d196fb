"""The coordinator's report of a real run: what sites let out, marks on it, and what it says where nothing came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.commands.report import register
from fed_diffmic.files import write_json
from fed_diffmic.reporting.deployment import KIND, write_deployment_report
from fed_diffmic.reporting.events import EventLog, read_events
from fed_diffmic.training.matrix import cell_from, cell_metrics, matrix_cell
from tests.reporting.conftest import CLASSES, COUNTS, predict


def cell(site: str, signal: float, **changed: float) -> dict[str, Any]:
    """A site's cell as it came; ``changed`` as a policy would have changed its numbers."""
    found = matrix_cell(
        predict(site, "federated", "test", "multiclass", signal), CLASSES, bootstrap=50, seed=1, name=site
    )
    metrics = {**cell_metrics(found, CLASSES), **changed}
    return cell_from({name: value for name, value in metrics.items() if value is not None}, CLASSES)


@pytest.fixture
def summary() -> dict[str, Any]:
    sites = sorted(COUNTS)
    rows = {
        stage: {
            **{site: cell(site, signal) for site in sites[:2]},
            sites[2]: cell(sites[2], signal, **{"test/positives/1": None, "test/complete": 0.0}),
            sites[3]: cell_from({}, CLASSES),
        }
        for stage, signal in (("guidance", 1.5), ("diffusion", 2.0))
    }
    rounds = [
        {"stage": "guidance", "round": 1, "sites": {}, "missing": {}},
        {"stage": "diffusion", "round": 1, "sites": {}, "missing": {sites[3]: "it did not reply before the deadline"}},
    ]
    return {
        "kind": KIND,
        "status": "done",
        "run": "pilot-1",
        "seed": 3,
        "task": "multiclass",
        "classes": list(CLASSES),
        "rounds": rounds,
        "matrix": rows,
        "sites": {site: {"train": sum(COUNTS[site]), "class_counts": list(COUNTS[site])} for site in sites},
        "signed_by": "abcd 1234",
        "digests": {"diffusion": "f" * 64},
        "privacy": ["rosendahl: claims nothing; its updates carry no noise."],
        "bytes_sent": 10**8,
        "seconds": 3700.0,
    }


def written(folder: Path, summary: dict[str, Any]) -> str:
    with EventLog(folder / "events.jsonl") as log:
        log.emit(
            "site_failed", site="vienna_dias", code="deadline", reason="it did not reply", stage="diffusion", round=1
        )
        for index in (1, 2):
            log.emit(
                "round_done", arm="federated", stage="guidance", round=index, figures={"auroc_macro": 0.5 + index / 10}
            )
    events = read_events(folder / "events.jsonl")
    path = write_deployment_report(folder, summary, events=events, config_yaml="seed: 3\n")
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_says_how_good_the_model_is_and_where_nothing_came(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = written(tmp_path, summary)
    last = summary["matrix"]["diffusion"]
    values = [last[site]["auroc_macro"]["value"] for site in last if last[site]["n"]]
    assert "On the test images of 3 of 4 sites" in page
    assert f"{min(values):.3f}" in page and f"{max(values):.3f}" in page
    assert "No figure came from vienna_dias" in page and "site vienna_dias did not reply" in page
    assert "some counts kept back" in page or "read with care" in page
    assert "may be compared within" in page  # the site with counts kept back is comparable with none
    assert "replies missing: 1" in page and "abcd 1234" in page and "claims nothing" in page
    assert page.count("data:image/") == 2 and "<script" not in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("matrix", "said"), [({}, "run.test_s is 0"), (None, "No site let out metrics on its test images")]
)
def test_where_no_figure_came_it_says_so(
    tmp_path: Path, summary: dict[str, Any], matrix: dict[str, Any] | None, said: str
) -> None:
    silent = {"diffusion": {site: cell_from({}, CLASSES) for site in COUNTS}} if matrix is None else matrix
    page = written(tmp_path, {**summary, "matrix": silent})
    assert said in page and "pilot-1" in page


def test_the_command_writes_it_again(
    tmp_path: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    first = written(tmp_path, summary)
    write_json(tmp_path / "summary.json", summary)
    (tmp_path / "config.yaml").write_text("seed: 3\n", encoding="utf-8")
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    runs: list[Any] = []

    def add(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        runs.append(run)
        return commands.add_parser(name, help=about)

    register(add)
    out = tmp_path / "again.html"
    assert runs[0](parser.parse_args(["report", str(tmp_path), "--out", str(out)]), []) == 0
    assert out.read_text(encoding="utf-8") == first and str(out) in capsys.readouterr().out


def test_one_site_that_let_metrics_out_is_no_range(tmp_path: Path, summary: dict[str, Any]) -> None:
    sites = sorted(COUNTS)
    silent = dict.fromkeys(sites, cell_from({}, CLASSES))
    summary["matrix"] = {"diffusion": {**silent, sites[0]: cell(sites[0], 2.0)}}
    page = written(tmp_path, summary)
    value = summary["matrix"]["diffusion"][sites[0]]["auroc_macro"]["value"]
    assert f"macro AUROC is {value:.3f} ({sites[0]}, the only site that let it out)" in page
    assert "between" not in page[page.index("headline") : page.index("No figure came from")]


def test_replies_that_were_missing_before_a_resumption_are_counted(tmp_path: Path, summary: dict[str, Any]) -> None:
    """A round that failed is done again by the resumed run: its history has no gap, the events do."""
    summary["rounds"][1]["missing"] = {}
    with EventLog(tmp_path / "events.jsonl") as log:
        log.emit("resumed", run="pilot-1", seed=3)
    page = written(tmp_path, summary)  # whose events say that vienna_dias did not reply in round 1 of diffusion
    assert "replies missing: 1; resumed once" in page and "no reply missing" not in page
    row = page[page.index("<td>vienna_dias</td>") :]
    assert row.split("</td>")[2].endswith("<td>1")


def test_a_private_sites_number_is_not_called_a_count(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["rounds"][0]["privacy"] = {"rosendahl": {}}
    page = written(tmp_path, summary)
    marked = [row for row in page.split("<tr>") if "a public number or noised, not a count" in row]
    assert len(marked) == 1 and "rosendahl" in marked[0]
