from pathlib import Path

import pytest

from fed_diffmic.config.compose import CLIENT, SERVER, SIMULATE, compose
from fed_diffmic.config.reference import (
    COMMANDS,
    configuration_markdown,
    groups_of,
    option_notes,
    options_text,
    settings,
)
from fed_diffmic.config.text import all_keys
from fed_diffmic.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documentation_is_current():
    """`make docs` writes it."""
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == configuration_markdown()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_there_once(command):
    base = COMMANDS[command]
    assert [s.key for s in settings(base)] == all_keys(base.config_type)
    text = options_text(command)
    for key in all_keys(base.config_type):
        assert text.count(f"\n  {key}=") == 1
    assert command != "simulate" or options_text() == text


def test_the_defaults_are_those_of_the_embedded_default():
    found = {s.key: s for s in settings()}
    assert found["model.latent"].default == str(compose(None, []).model.latent)
    assert found["model.latent"].options["paper"] == "6144"
    assert found["dataset.root"].default == "null"
    assert found["stages.guidance.rounds"].options.keys() == {"paper", "compact", "tiny", "linear"}


@pytest.mark.parametrize("group", sorted({g for base in COMMANDS.values() for g in base.groups}))
def test_every_option_says_what_it_is(group):
    assert all(len(note) > 10 for note in option_notes(group).values())


def test_one_group():
    text = options_text("listen")
    assert text.startswith("listen\n") and "listen.port=9443" in text and "site.name" not in text
    assert options_text("run").count("run.dir=") == 2, "simulation and coordinator have a group of that name"
    assert options_text("model").count("model.latent=") == 1, "the same group of two commands is said once"
    with pytest.raises(UsageError, match="there is no group 'polcy'") as caught:
        options_text("polcy")
    assert "Did you mean policy?" in str(caught.value)


def test_the_groups_of_each_command():
    assert groups_of(SIMULATE) == [
        "dataset",
        "model",
        "stages",
        "strategy",
        "partition",
        "conditions",
        "privacy",
        "run",
    ]
    assert groups_of(SERVER) == ["consortium", "model", "stages", "strategy", "listen", "security", "run"]
    assert groups_of(CLIENT) == ["site", "coordinator", "dataset", "policy", "privacy", "dicom"]
