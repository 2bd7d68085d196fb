"""The documents as a site: built strictly, every link and anchor leads somewhere, no other machine is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.documents import ROOT
from tests.reporting.test_browser import BROWSER, QUIET

FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
FETCHED |= {"object": "data", "link": "href", "form": "action", "input": "src", "use": "href"}
NOT_FETCHED = {"canonical", "prev", "next", "alternate", "license"}
"""Kinds of ``link`` that only say something."""
THEIRS = {
    "api.github.com": "md-source",  # stars of a repository: only where one is named
    "${e}": "md-source",  # the same of GitLab
    "unpkg.com": "mermaid",  # draws diagrams: only where a page holds one; and ResizeObserver for browsers without it
    "clipboardjs.com": "a comment",
}
"""Machines that the theme's own script names, and what on a page would make it ask them."""


def in_a_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Slow, and skipped where there is no browser."""
    skipped = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the site was not opened in it")
    return pytest.mark.slow(skipped(test))  # type: ignore[no-any-return]


@dataclass
class Page(HTMLParser):
    """What a page points at, what it fetches, and the names that can be pointed at."""

    path: Path
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") not in NOT_FETCHED:
            self.fetched.append(given[FETCHED[tag]])
        self.fetched += re.findall(r"url\(['\"]?([^)'\"]+)", given.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_the_target_of_make_builds_what_is_tested_here() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "mkdocs build --strict" in text.split("\nsite:", 1)[1].split("\n\n", 1)[0]


def test_every_document_is_a_page_of_the_site_and_stands_in_its_menu(site: Path) -> None:
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    notebooks = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.ipynb")}
    assert len(notebooks) == 2
    assert [path for path in sorted(documents | notebooks) if not (site / path).is_file()] == []


def test_every_link_and_anchor_within_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the root of a server
            continue
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            count += 1
            other = (path.parent / unquote(target.path)).resolve() if target.path else path
            assert other.is_file(), f"{path.relative_to(site)}: {link}"
            if target.fragment and other in pages:
                assert unquote(target.fragment) in pages[other].names, f"{path.relative_to(site)}: {link}"
    assert count > 1000


def test_nothing_is_fetched_from_anywhere_else(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        outside = [url for url in page.fetched if re.match(r"(\w+:)?//", url)]
        assert outside == [], path.relative_to(site)
        assert "mermaid" not in page.classes and "md-source" not in page.classes, path.relative_to(site)
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", text), path.relative_to(site)


def test_scripts_name_no_machine_but_those_that_the_theme_never_asks_here(site: Path) -> None:
    named = set()
    for path in site.rglob("*.js"):
        if path.name != "search_index.js" and "lunr" not in path.parts:
            named |= {
                urlsplit(url).netloc for url in re.findall(r"https?://[^\"'`\s)]+", path.read_text(encoding="utf-8"))
            }
    assert named - {"bit.ly", "www.w3.org", "lunrjs.com", "tartarus.org"} <= set(THEIRS)


def test_the_search_of_a_page_opened_as_a_file_finds_what_every_page_says(site: Path, pages: dict[Path, Page]) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for words in ("differential privacy", "policy explain", "fd.simulate", "Not a medical device"):
        assert words in index, words
    for path, page in pages.items():
        if path.name != "404.html":
            scripts = [url for url in page.fetched if url.endswith(".js")]
            assert scripts[0].endswith("assets/iframe-worker.js"), path.relative_to(site)


def test_every_role_finds_its_page_with_three_commands_and_its_answers_first() -> None:
    menu = yaml.safe_load(re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))["nav"]
    roles = next(entry["Start here"] for entry in menu if "Start here" in entry)
    files = [file for role in roles for file in role.values()]
    assert len(files) == 5
    for file in files:
        text = (ROOT / "docs" / file).read_text(encoding="utf-8")
        first, _, rest = text.partition("## Three commands")
        assert first.count("\n- **") >= 5 and first.count("\n") < 30, file
        block = rest.split("```sh\n")[1].split("```")[0].replace("\\\n", " ").strip().splitlines()
        assert len(block) == 3, file


def opened(address: str, scratch: Path, width: int) -> tuple[str, list[str], list[str]]:
    """A page as the browser made it, what it said on its console, and every address that was asked for."""
    log = scratch / "net.json"
    size = [f"--window-size={width},1600", "--virtual-time-budget=10000"]
    options = [*QUIET, *size, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run([str(BROWSER), *options, address], capture_output=True, text=True, timeout=120, check=True)
    facts = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser asks its maker for things of its own; what the page asks for is isolated under the page's address.
    asked = [f["url"] for f in facts if "url" in f and f.get("network_isolation_key", "").startswith("file:")]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], asked


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["index", "start/data-protection", "reference/python", "notebooks/hospital"])
def test_a_browser_finds_nothing_to_complain_of_and_asks_nobody(
    name: str, width: int, site: Path, tmp_path: Path
) -> None:
    """Opened as a file, as a hospital's reader does who has the folder and no network."""
    _, console, asked = opened((site / f"{name}.html").as_uri(), tmp_path, width)
    assert console == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []


@in_a_browser
def test_the_search_answers_in_a_browser_without_a_server(site: Path, tmp_path: Path) -> None:
    page, console, asked = opened((site / "index.html").as_uri() + "?q=epsilon+ledger", tmp_path, 1280)
    assert console == [] and [url for url in asked if not url.startswith(("data:", "file:"))] == []
    results = re.findall(r'<a href="[^"]*?/(\w+)\.html[^"]*" class="md-search-result__link', page)
    assert "privacy" in results
