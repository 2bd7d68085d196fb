"""Every fenced block of README and docs is run, parsed or marked as output; every command line in one would be taken.

``python`` blocks are run by tests/api/test_page.py and tests/test_tutorials.py, and so are the commands of tutorials.
All other commands are read here by the program's own parsers, and their settings composed as the program does.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from fed_diffmic.cli import _check_commands, _parser
from fed_diffmic.commands.site_models import WAYS
from fed_diffmic.config.compose import compose, compose_server, compose_site
from fed_diffmic.console import Parser, split_settings
from fed_diffmic.errors import ConfigError, UsageError
from simulations.experiments.definition import SHIPPED, load_experiment
from tests.documents import KINDS, PAGES, ROOT, Block, blocks, commands, script_of

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = {"docs/api.md", "docs/plugins.md", "docs/tutorials/researcher.md", "docs/tutorials/hospital.md"}
"""Pages whose Python a test runs."""
SYSTEM = {"cd", "cp", "curl", "docker", "install", "jupyter", "ln", "nft", "openssl", "sed", "systemctl"}
SYSTEM |= {"systemd-sysusers", "umask"}
"""Programs of others: what they are told is not checked here, but for files of ours that they are given."""
SETTINGS = {"simulate": compose, "data": compose, "client": compose_site, "preflight": compose_site}


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


def test_every_block_says_what_it_is() -> None:
    unknown = [f"{block} is {block.kind!r}" for block in BLOCKS if block.kind not in KINDS]
    assert unknown == [], f"say one of {', '.join(KINDS)} behind the fence; `text` is output"
    counts = Counter(block.kind for block in BLOCKS)
    assert counts["sh"] > 40 and counts["console"] > 8 and counts["yaml"] > 3 and counts["python"] > 5, counts


def test_output_holds_no_command() -> None:
    """What is marked as output is not looked at, so nothing that is meant to be typed may hide in it."""
    typed = re.compile(r"^ *(\$ |fed-diffmic |flower-server |sudo |make |import |from \w+ import )", re.M)
    assert [str(block) for block in of_kind("text") if typed.search(block.body)] == []


@pytest.mark.parametrize("block", of_kind("python"), ids=str)
def test_python_stands_only_where_it_is_run(block: Block) -> None:
    compile(block.body, str(block), "exec")
    assert block.page.relative_to(ROOT).as_posix() in RUN


@pytest.mark.parametrize("block", of_kind("csv"), ids=str)
def test_a_table_has_as_many_fields_in_every_row(block: Block) -> None:
    rows = list(csv.reader(io.StringIO(block.body)))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_yaml_is_a_configuration_of_the_program_whose_file_it_shows(block: Block, tmp_path: Path) -> None:
    file = tmp_path / Path(block.title or "simulate.yaml").name
    file.write_text(block.body)
    if "axes" in yaml.safe_load(block.body):
        load_experiment(str(file))
    else:
        {"server.yaml": compose_server, "site.yaml": compose_site}.get(file.name, compose)(file, [])


@pytest.mark.parametrize("block", of_kind("toml"), ids=str)
def test_toml_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.body)


# What docs/plugins.md types needs the package that it shows: tests/test_plugins.py runs it.
TYPED = [block for block in of_kind("sh", "console") if block.page.name != "plugins.md"]


@pytest.mark.parametrize("block", TYPED, ids=str)
def test_every_command_line_would_be_taken(block: Block, tmp_path: Path) -> None:
    script = script_of(block)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = list(commands(script))
    assert lines
    for words in lines:
        check(words, block, tmp_path)


def check(words: list[str], block: Block, scratch: Path) -> None:
    """Whether a command is one: ours is parsed, of others' only the files of ours are looked for."""
    program = words[0]
    if program == "fed-diffmic":
        check_ours(words[1:], block, scratch)
    elif program == "flower-server":
        check_server(words[1:])
    elif program == "make":
        assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.M), words
    elif program == "python" and words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None, words
    elif program == "python" or program.startswith("deploy/"):
        assert (ROOT / (words[1] if program == "python" else program)).is_file(), words
    else:
        assert program in SYSTEM, f"{program}: neither ours nor known here"
        made = {word for line in commands(script_of(block)) if line[0] in ("cp", "install") for word in line[-1:]}
        for word in words[1:]:
            assert not re.match(r"(deploy|docs|configs)/", word) or (ROOT / word).exists() or word in made, word
        images = [place for place, word in enumerate(words) if word.startswith("fed-diffmic-client:")]
        if words[:2] == ["docker", "run"] and images:
            check_ours(words[images[0] + 1 :], block, scratch)


parser_of_ours = functools.cache(_parser)


def check_ours(words: list[str], block: Block, scratch: Path) -> None:
    """Parse as ``fed-diffmic`` does, and compose the settings."""
    parser = parser_of_ours()
    _check_commands(parser, parser, words)
    known, left = parser.parse_known_args(words)
    settings = split_settings(known.parser, getattr(known, "settings", []), left)
    assert hasattr(known, "settings") or not left, left
    if words[:2] == ["client", "model"]:  # what is done with which model stands among the settings
        assert settings[0] in WAYS
        settings = [word for word in settings if "=" in word]
    if words[0] == "experiment" and settings and hasattr(known, "name"):
        check_experiment(experiment_file(known.name, block, scratch), settings)
    elif settings and words[:2] == ["data", "from-dicom"]:
        compose_site(existing(known.config), settings)
    elif settings and words[0] in SETTINGS:
        SETTINGS[words[0]](existing(known.config), settings)
    elif settings:
        assert words[0] in ("evaluate", "policy", "ledger", "audit"), words
        (compose if words[0] == "evaluate" else compose_site)(None, settings)


def check_server(words: list[str]) -> None:
    """Parse as ``flower-server`` does, and compose the settings."""
    parser = Parser()
    if words[0] == "status":
        parser.add_argument("command")
        parser.add_argument("run")
        parser.parse_args(words)
        return
    parser.add_argument("--config")
    parser.add_argument("--out" if words[0] == "study" else "--resume")
    parser.add_argument("--show-config", action="store_true")
    parser.add_argument("settings", nargs="*")
    known, left = parser.parse_known_args(words[1:] if words[0] == "study" else words)
    compose_server(None, split_settings(parser, known.settings, left))


def existing(file: Path | None) -> Path | None:
    """The configuration that a command names, if it is one of ours."""
    return ROOT / file if file is not None and (ROOT / file).is_file() else None


def experiment_file(name: str, block: Block, scratch: Path) -> Path:
    """An experiment that is shipped, one of ours, or the one that the same page shows."""
    shown = [other for other in blocks(block.page) if other.title == name]
    if shown:
        (scratch / name).write_text(shown[0].body)
        return scratch / name
    return ROOT / name if "/" in name else SHIPPED / f"{name}.yaml"


def check_experiment(file: Path, settings: list[str]) -> None:
    """The axes are the file's, with its values; the other settings compose. Its own cells are tested elsewhere."""
    axes = yaml.safe_load(file.read_text())["axes"]
    for setting in [s for s in settings if s.startswith("axes.")]:
        axis, _, values = setting.removeprefix("axes.").partition("=")
        assert axis in axes, setting
        assert not isinstance(axes[axis], dict) or set(values.split(",")) <= set(axes[axis]), setting
    compose(None, [s for s in settings if not s.startswith("axes.")])


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("fed-diffmic simulat", UsageError),
        ("fed-diffmic simulate partition.alfa=1", ConfigError),
        ("fed-diffmic simulate stages.guidance.rounds=-1", ConfigError),
        ("fed-diffmic data inspect --into x", UsageError),
        ("fed-diffmic client --config site.yaml policy.runs=pilot.x.y policy.rnus=[a]", ConfigError),
        ("sudo flower-server --config s.yaml listen.prot=1", ConfigError),
        ("flower-server study --config s.yaml --into x", UsageError),
        ("fed-diffmic experiment run phantoms --out x axes.sead=1", AssertionError),
        ("make demonstration", AssertionError),
        ("python benchmarks/none.py", AssertionError),
        ("rm -rf /", AssertionError),
        ("for x in 1; do\n  fed-diffmic simulate model=none\ndone", ConfigError),
    ],
)
def test_a_wrong_command_is_seen(script: str, error: type[Exception], tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, "sh", "", script)
    lines = list(commands(script_of(block)))
    with pytest.raises(error):
        check(lines[0], block, tmp_path)
    assert len(lines) == 1


def test_what_is_typed_is_told_from_what_is_answered() -> None:
    body = "$ fed-diffmic provision enrol A \\\n    --key k\n> 123\nA is enrolled\nsite  $ make demo  # a comment\n"
    assert list(commands(script_of(Block(ROOT / "README.md", 1, "console", "", body)))) == [
        ["fed-diffmic", "provision", "enrol", "A", "--key", "k"],
        ["make", "demo"],
    ]


def test_a_fence_that_is_not_closed_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "x.md"
    page.write_text("```sh\nmake demo\n```\n\n```sh\nmake test\n")
    with pytest.raises(ValueError, match="3 fences"):
        blocks(page)
