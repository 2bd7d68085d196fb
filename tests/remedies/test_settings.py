"""Settings that are refused: what the message offers in their place is accepted.

The rows are in ``settings.toml``. What is set instead is read out of the message, so that a message that offers what is
refused in its turn fails here.
"""

from __future__ import annotations

import re

import pytest

from fed_diffmic.config.compose import compose, compose_server, compose_site
from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.models.checks import check_model_config
from tests.remedies.places import table

READ = {"simulate": compose, "server": compose_server, "site": compose_site}


def _network(overrides: list[str]) -> None:
    check_model_config(compose(None, overrides).model)


def changed(given: list[str], put: str) -> list[str]:
    """The settings with others laid over them; ``-KEY`` leaves one out."""
    for change in put.split():
        key = change.lstrip("-").partition("=")[0]
        given = [one for one in given if one.partition("=")[0] != key]
        given += [] if change.startswith("-") else [change]
    return given


def repaired(given: list[str], message: str, read: str, put: str) -> list[str]:
    """The settings with the remedy that a message names."""
    found = re.search(read, message)
    assert found is not None, message
    return changed(given, put.format(*found.groups()))


@pytest.mark.parametrize(("whose", "given", "read", "put"), table("settings", "whose", "given", "read", "put"))
def test_what_is_offered_in_place_of_a_setting_is_accepted(whose, given, read, put, elsewhere) -> None:
    (elsewhere / "table.csv").write_text("image,label\n")
    action = READ.get(whose, lambda _, overrides: _network(overrides))
    overrides = [text.replace("~", " ") for text in given.split()]
    with pytest.raises(FedDiffmicError) as caught:
        action(None, overrides)
    mended = repaired(overrides, str(caught.value), read, put)
    assert mended != overrides
    action(None, [text.replace("~", " ") for text in mended])
