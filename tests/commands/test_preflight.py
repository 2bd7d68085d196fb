"""``fed-diffmic preflight``: what it prints and how it ends."""

import json

import pytest
import yaml

from fed_diffmic.commands import preflight
from fed_diffmic.console import Parser
from fed_diffmic.errors import ConfigError, UsageError


def run(*arguments):
    parser = Parser(prog="fed-diffmic")
    below = parser.add_subparsers(parser_class=Parser)

    def add(name, run, about):
        command = below.add_parser(name, help=about)
        command.set_defaults(run=run, parser=command)
        return command

    preflight.register(add)
    known = parser.parse_args(["preflight", *map(str, arguments)])
    return known.run(known, [])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"site": {"name": "north", "folder": str(tmp_path / "state"), "device": "cpu"}}))
    return path


def test_json_is_one_object_and_the_code_is_in_it(config, capsys):
    code = run("--config", config, "--json", "--only", "machine,credentials")
    said = json.loads(capsys.readouterr().out)
    assert code == said["exit_code"] == 2  # there is no address, no CA, no key
    assert said["site"] == "north" and said["result"] == "failed"
    assert {check["level"] for check in said["checks"]} >= {"passed", "failed"}
    assert all(check["cause"] for check in said["checks"])


def test_for_people(config, capsys):
    assert run("--config", config, "--only", "machine") == 2
    out = capsys.readouterr().out
    assert "failed   configuration: coordinator.address" in out
    assert "What to do:" in out
    assert "passed   machine.packages:" in out
    assert out.strip().splitlines()[-1].startswith("failed: ")


def test_settings_and_mistakes(config, tmp_path):
    with pytest.raises(UsageError, match="weather"):
        run("--config", config, "--only", "weather")
    with pytest.raises(ConfigError, match="model"):
        run("--config", config, "--only", "machine", "--model", "huge")
    with pytest.raises(UsageError):
        run("--config", tmp_path / "none.yaml")
    (tmp_path / "file").write_text("")
    assert run("--config", config, "--only", "machine", f"site.folder={tmp_path / 'file'}") == 2
