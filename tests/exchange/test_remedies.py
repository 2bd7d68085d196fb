"""What people are told to do names commands and keys that there are."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from fed_diffmic import cli
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.remedies import AT_COORDINATOR, AT_SITE, OF_REFUSALS, at_coordinator, at_site
from fed_diffmic.exchange.screening import REFUSALS

SAID = sorted({*AT_SITE.values(), *AT_COORDINATOR.values(), *OF_REFUSALS.values(), at_site(2099), at_coordinator(2099)})
COMMANDS = sorted({c for text in SAID for c in re.findall(r"`(?:fed-diffmic )?([a-z][a-z -]+?)(?: -| RUN|`)", text)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_is_named_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    if words[0] == "client":  # its actions are no commands of their own
        assert f"client {words[1]} " in _help(["client"], capsys)
        return
    assert "usage: fed-diffmic " + " ".join(words) in _help(words, capsys)


def _help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_key_that_is_named_is_there() -> None:
    keys = {key for text in SAID for key in re.findall(r"policy\.([a-z_]+)", text)}
    assert keys <= {f.name for f in fields(PolicyConfig)} and len(keys) > 15


def test_every_rule_of_a_policy_has_its_key() -> None:
    rules = {value for name, value in vars(failures).items() if name.startswith("POLICY_")}
    assert rules <= AT_SITE.keys() and rules <= AT_COORDINATOR.keys()
    assert OF_REFUSALS.keys() <= REFUSALS.keys()
    assert at_coordinator("malformed") == "" and "client status" in at_coordinator(failures.UNEXPECTED)
