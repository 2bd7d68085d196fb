"""The pages in a real browser: no console message, no request to anywhere, the summary's metrics on the page.

Slow, and skipped with a word where Chromium is not installed (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.reporting.compare import read_runs, write_comparison
from fed_diffmic.reporting.events import Event
from fed_diffmic.reporting.report import write_report
from fed_diffmic.reporting.view import number
from tests.reporting.test_compare import make_run
from tests.reporting.test_report import Parsed

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the pages were not opened in a browser"),
]
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]


def open_page(path: Path, scratch: Path, width: int) -> tuple[Parsed, list[str], list[str]]:
    """The page as the browser made it, what it said on its console, and every address that was asked for."""
    log, picture = scratch / f"net-{width}.json", scratch / f"{path.stem}-{width}.png"
    options = [*QUIET, f"--user-data-dir={scratch / f'profile-{width}'}", f"--window-size={width},1600"]
    address = path.as_uri()
    dom = subprocess.run(
        [str(BROWSER), *options, f"--log-net-log={log}", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    subprocess.run(
        [str(BROWSER), *options, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True
    )
    assert picture.stat().st_size > 10_000
    console = [line for line in dom.stderr.splitlines() if "CONSOLE" in line]
    facts = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser asks its maker for things of its own; what the page asks for is isolated under the page's address.
    asked = [
        fact["url"] for fact in facts if "url" in fact and fact.get("network_isolation_key", "").startswith("file:")
    ]
    return Parsed(dom.stdout), console, asked


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_is_quiet_asks_for_nothing_and_shows_the_summary(
    width: int, tmp_path: Path, summary: dict[str, Any], events: list[Event]
) -> None:
    path = write_report(tmp_path, summary, events=events, config_yaml="seed: 3")
    parsed, console, asked = open_page(path, tmp_path, width)
    assert console == []
    assert [url for url in asked if not url.startswith("data:")] == []
    for block in (summary["global"]["test"], *(site["test"] for site in summary["sites"].values())):
        for metric in ("auroc_macro", "balanced_accuracy"):
            assert number(block[metric]["value"]) in parsed.text


@pytest.mark.parametrize("width", [1280, 390])
def test_the_interactive_report_draws_every_twin_and_offers_no_way_out(
    width: int, tmp_path: Path, summary: dict[str, Any], events: list[Event]
) -> None:
    pytest.importorskip("plotly", reason="the extra 'interactive' is not installed")
    path = write_report(tmp_path, summary, events=events, config_yaml="seed: 3", interactive=True)
    parsed, console, asked = open_page(path, tmp_path, width)
    assert console == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == []
    twins = [tag for name, tag in parsed.tags if name == "figure" and "data-live" in tag]
    assert len(twins) >= 3 and all(tag.get("class") == "drawn" for tag in twins)
    buttons = {tag["data-title"] for _, tag in parsed.tags if "modebar-btn" in str(tag.get("class"))}
    assert buttons == {"Zoom", "Pan", "Reset axes"}
    entry = summary["sites"][sorted(summary["sites"])[0]]["test"]["auroc_macro"]
    assert number(entry["value"]) in parsed.text


def test_a_comparison_is_quiet_and_asks_for_nothing(tmp_path: Path, summary: dict[str, Any]) -> None:
    runs = read_runs([make_run(tmp_path / "first", summary, 1.0), make_run(tmp_path / "better", summary, 3.0)])
    parsed, console, asked = open_page(write_comparison(tmp_path / "compare.html", runs), tmp_path, 1280)
    assert console == []
    assert [url for url in asked if not url.startswith("data:")] == []
    assert "better is better than first" in parsed.text


def test_the_check_sees_a_page_that_asks_and_complains(tmp_path: Path) -> None:
    """A control: the same look at a page that fetches something and writes an error."""
    page = tmp_path / "bad.html"
    noise = " ".join(["padding"] * 4000)
    page.write_text(f"<p>{noise}</p><img src='http://127.0.0.1:9/x.png'><script>console.error('complaint')</script>")
    _, console, asked = open_page(page, tmp_path, 1280)
    assert any("complaint" in line for line in console)
    assert any(url.startswith("http://127.0.0.1:9/") for url in asked)
