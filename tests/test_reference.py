from pathlib import Path

import pytest

from fed_diffmic.compose import GROUPS, compose
from fed_diffmic.config import SimulateConfig
from fed_diffmic.config_text import all_keys
from fed_diffmic.errors import UsageError
from fed_diffmic.reference import configuration_markdown, option_notes, options_text, settings

DOCS = Path(__file__).parents[1] / "docs"


def test_the_documentation_is_current():
    """`make docs` writes it."""
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == configuration_markdown()


def test_every_key_is_there_once():
    assert [s.key for s in settings()] == all_keys(SimulateConfig)
    text = options_text()
    for key in all_keys(SimulateConfig):
        assert f"\n  {key}=" in text


def test_the_defaults_are_those_of_the_embedded_default():
    found = {s.key: s for s in settings()}
    assert found["model.latent"].default == str(compose(None, []).model.latent)
    assert found["model.latent"].options["paper"] == "6144"
    assert found["dataset.root"].default == "null"
    assert found["stages.guidance.rounds"].options.keys() == {"paper", "compact", "tiny"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_says_what_it_is(group):
    assert all(len(note) > 10 for note in option_notes(group).values())


def test_one_group():
    assert {s.key.split(".")[0] for s in settings("run")} == {"run"}
    with pytest.raises(UsageError, match="there is no group 'rum'"):
        settings("rum")
