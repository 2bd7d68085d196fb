"""The documents name nothing that is not there: links, files, tests, settings, commands and their options."""

import argparse
import functools
import re
from dataclasses import fields
from pathlib import Path

import pytest

from fed_diffmic.cli import _parser
from fed_diffmic.config.compose import CLIENT, SERVER, SIMULATE
from fed_diffmic.config.owners import KINDS, builtins
from fed_diffmic.config.text import all_keys
from server.cli import main as flower_server

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TODAY = [page for page in PAGES if page.parent.name not in ("lab", "results") and page.name != "CHANGELOG.md"]
"""Not the records of their day: what they name may have moved since."""
OPERATIONS = [ROOT / "docs" / name for name in ("hospital-it.md", "operations.md", "threat-model.md")]
KEYS = {key for base in (SERVER, CLIENT, SIMULATE) for key in all_keys(base.config_type)}

KEYS |= {key.replace(".guidance.", ".") for key in KEYS if key.startswith("stages.guidance.")}  # a policy's shorthand
# What each algorithm, data set and partitioner declares beside its code, and the example of docs/plugins.md.
KEYS |= {
    f"{kind.group}.{f.name}" for kind in KINDS.values() for own in builtins(kind).values() for f in fields(own.options)
}
KEYS |= {"strategy.share"}
NO_KEYS = {
    "run.summary": "of Python",
    "run.metrics": "of Python",
    "run.model": "of Python",
    "model.classes": "of Python",
    "partition.alfa": "an example of what is wrong",
}
"""What looks like a setting, and what it is."""
CHECKS = {
    name
    for path in (ROOT / "client" / "preflight").glob("*.py")
    for name in re.findall(r"\"([a-z]+\.[a-z_]+)\"", path.read_text(encoding="utf-8"))
}
"""The checks of preflight have such names too."""

FILES = ("crt", "csv", "json", "jsonl", "key", "kit", "log", "md", "pub", "yaml")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def spans(page: Path) -> list[str]:
    """What stands in code: spans between backticks, and the lines of blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)), *lines]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name) if name else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@functools.cache
def names_of_tests(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", TODAY, ids=ids)
def test_every_test_and_file_of_the_project_that_is_named_exists(page):
    folders = "fed_diffmic|server|client|simulations|configs|tests|deploy|docs|benchmarks"
    for span in spans(page):
        for path, test in re.findall(
            rf"(?<![\w/.-])((?:{folders})/[\w./@-]*\.(?:py|md|sh|yaml|txt|service))(?:::(\w+))?", span
        ):
            if re.search(r"\b[A-Z]+\.", path):  # a placeholder
                continue
            assert (ROOT / path).exists(), path
            assert not test or test in names_of_tests(ROOT / path), f"{path}::{test}"


@pytest.mark.parametrize("page", TODAY, ids=ids)
def test_every_setting_that_is_named_exists(page):
    groups = {key.split(".")[0] for key in KEYS if "." in key}
    found = set()
    for span in spans(page):
        for key in re.findall(r"(?<![\w/.-])([a-z_]+\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/(])", span):
            if key.split(".")[0] in groups and key.rsplit(".", 1)[1] not in FILES and key not in {*NO_KEYS, *CHECKS}:
                assert key in KEYS or any(known.startswith(f"{key}.") for known in KEYS), key
                found.add(key)
    assert found or page not in OPERATIONS


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser that a command line ends at, and what is left of the line."""
    parser: argparse.ArgumentParser = _parser()
    while words:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not below or not below[0].choices.get(words[0]):
            assert not below or words[0].startswith("-"), f"no command {words[0]}"
            break
        parser, words = below[0].choices[words[0]], words[1:]
    return parser, words


@pytest.mark.parametrize("page", TODAY, ids=ids)
def test_every_command_that_is_named_exists_with_its_options(page, capsys):
    of_server = {}
    for command in ("", "study", "status"):
        with pytest.raises(SystemExit):
            flower_server([command, "--help"] if command else ["--help"])
        of_server[command] = capsys.readouterr().out
    count = 0
    for span in spans(page):
        for program, line in re.findall(r"(?:^|[ /])(fed-diffmic|flower-server)((?: [^ |&;]+)+)", span):
            words = line.split()
            if not re.fullmatch(r"[a-z][a-z-]+|--[a-z-]+", words[0]):
                continue
            count += 1
            if program == "flower-server":
                command = "" if words[0].startswith("--") else words[0]
                assert command in of_server, span
                for option in re.findall(r"--[a-z-]+", line):
                    assert option in of_server[command], f"flower-server {command} {option}"
                continue
            parser, rest = parser_of(words)
            known = {name for action in parser._actions for name in action.option_strings}
            for option in [word.split("=")[0] for word in rest if word.startswith("--")]:
                assert option in known, f"{span}: {option}"
            actions = next((str(a.help).split(", ") for a in parser._actions if a.dest == "action"), None)
            if actions is not None and rest and re.fullmatch(r"[a-z]+", rest[0]):
                assert rest[0] in actions, span
    assert count or page not in OPERATIONS or page.name == "threat-model.md"


def test_a_metric_that_is_named_is_exported():
    exported = set(re.findall(r'"(fed_diffmic_\w+)"', (ROOT / "server" / "monitor.py").read_text(encoding="utf-8")))
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = {name.removesuffix("_total") for name in re.findall(r"`(fed_diffmic_\w+)`", text)}
    assert named == exported


def test_the_glossary_stands_on_one_page_and_its_words_are_used():
    """A word that no other document uses is no word of the house."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [row for row in text.split("## Words")[1].split("\n## ")[0].splitlines() if row.startswith("| **")]
    words = [word for row in rows for word in re.findall(r"\*\*([\w ]+)\*\*", row.split(" | ")[0])]
    assert len(rows) > 20 and len(words) == len(set(words)) and {"coordinator", "site", "arm", "stage"} <= set(words)
    others = " ".join(page.read_text(encoding="utf-8").lower() for page in PAGES if page.name != "architecture.md")
    assert [word for word in words if not re.search(rf"\b{word}s?\b", others)] == []
