"""What a remedy names is there: commands and their options, settings, extras, pages, files that the program writes."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache

import pytest

from fed_diffmic.config.compose import CLIENT, SERVER, SIMULATE
from fed_diffmic.config.text import all_keys
from server.cli import main as flower_server
from tests.remedies.places import ROOT, Place, places, text_of
from tests.test_documents import CHECKS, FILES, KEYS, parser_of

GROUPS = {key.split(".")[0] for key in KEYS if "." in key}
PROGRAMS = r"(fed-diffmic|flower-server)((?: (?:'[^']*'|[^ `|;,:'\"()]+))+)"


@cache
def constant(file: str, name: str) -> str:
    """A text that a file's module, or the one that it imports the name from, holds; empty: it is none."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return text_of(node.value)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return constant(f"{str(node.module).replace('.', '/')}.py", name)
    return ""


@cache
def remedy_of(place: Place) -> str:
    """A place's remedy with the constants of its module filled in; what is found out later stays in braces."""
    return re.sub(r"\{(_?[A-Z][A-Z_]*)\}", lambda m: constant(place.file, m[1]) or m[0], place.remedy)


@cache
def remedies() -> tuple[tuple[Place, str], ...]:
    """Every place with its remedy, each remedy of a file once."""
    return tuple({(place.file, remedy_of(place)): (place, remedy_of(place)) for place in places()}.values())


def options_of_server(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        flower_server([*([command] if command else []), "--help"])
    return capsys.readouterr().out


def test_every_command_that_a_remedy_names_exists_with_its_options(capsys) -> None:
    count, of_server = 0, {}
    for place, remedy in remedies():
        for program, line in re.findall(PROGRAMS, remedy):
            words = line.split()
            if not re.fullmatch(r"[a-z][a-z-]*|--[a-z-]+", words[0]):
                continue
            count += 1
            options = [word.strip(".") for word in words if word.startswith("--")]
            if program == "flower-server":
                command = "" if words[0].startswith("--") else words[0]
                if command not in of_server:
                    of_server[command] = options_of_server(command, capsys)
                assert all(option in of_server[command] for option in options), f"{place}"
                continue
            parser, rest = parser_of(words)
            known = {name for action in parser._actions for name in action.option_strings}
            assert set(options) <= known, f"{place}"
            actions = next((str(a.help).split(", ") for a in parser._actions if a.dest == "action"), None)
            assert actions is None or not rest or not re.fullmatch(r"[a-z]+", rest[0]) or rest[0] in actions, f"{place}"
    assert count > 40


def test_every_setting_that_a_remedy_names_exists() -> None:
    count = 0
    for place, remedy in remedies():
        for key in re.findall(r"(?<![\w/.\-{}])([a-z_]+\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/(}*])", remedy):
            head, last = key.split(".")[0], key.rsplit(".", 1)[1]
            if head not in GROUPS or last in FILES or key in CHECKS:
                continue
            assert key in KEYS or any(known.startswith(f"{key}.") for known in KEYS), f"{key}: {place}"
            count += 1
    assert count > 60


def test_every_option_that_a_remedy_names_is_one_of_some_command(capsys) -> None:
    sources = [(ROOT / file).read_text(encoding="utf-8") for file in ("server/cli.py", "fed_diffmic/cli.py")]
    sources += [path.read_text(encoding="utf-8") for path in (ROOT / "fed_diffmic/commands").glob("*.py")]
    known = {"--help", *re.findall(r"\"(--[a-z][a-z-]+)\"", "\n".join(sources))}
    for place, remedy in remedies():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", remedy):
            assert option in known, f"{option}: {place}"


def test_every_extra_and_page_that_a_remedy_names_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for place, remedy in remedies():
        for extra in re.findall(r"fed-diffmic\[(\w+)\]", remedy):
            assert extra in extras, f"{place}"
        for page in re.findall(r"docs/[\w/-]+\.md", remedy):
            assert (ROOT / page).is_file(), f"{place}"


def whose(file: str) -> str:
    """A file, as of whoever meets its errors: a site's own models are made at the site, by the simulation's code."""
    return f"client/{file}" if file == "simulations/own_models.py" else file


def test_settings_of_one_command_are_not_offered_to_another() -> None:
    """What a coordinator's errors offer is a coordinator's setting, and what a site's offer a site's."""
    for folder, base in (("server/", SERVER), ("client/", CLIENT), ("simulations/", SIMULATE)):
        own = set(all_keys(base.config_type))
        others = {key for other in (SERVER, CLIENT, SIMULATE) for key in all_keys(other.config_type)} - own
        for place, remedy in (pair for pair in remedies() if whose(pair[0].file).startswith(folder)):
            named = re.findall(r"(?<![\w/.\-{}])([a-z_]+\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/(}*])", remedy)
            assert not others & set(named) or own & set(named), f"{place}"  # both may be, where both come by
