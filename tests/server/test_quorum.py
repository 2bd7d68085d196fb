"""How many good replies a round needs, and who is named when they do not come."""

import pytest

from fed_diffmic.errors import RoundError
from server.exchange import Site
from server.presence import Presence
from server.terms import RunTerms
from tests.toy import Events, toy_spec


def presence(count, quorum, names=True):
    sites = [f"s{number:02d}" for number in range(count)]
    terms = RunTerms(["plain"], sites if names else None, quorum)
    made = Presence(None, toy_spec(), Events([]), terms)
    if not names:
        made.members = {name: Site(name, node) for node, name in enumerate(sites)}
    return made, sites


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize(
    ("count", "quorum", "needed"),
    [
        (5, 0.5, 3),  # half of five are three, not two
        (3, 0.5, 2),
        (4, 0.5, 2),
        (7, 0.35, 3),
        (3, 2 / 3, 2),  # and what a share cannot say exactly asks for no site more
        (10, 0.3, 3),
        (100, 0.07, 7),
        (49, 1 / 49, 1),
        (3, 1.0, 3),
        (3, 0.01, 1),
        (1, 0.5, 1),
    ],
)
def test_a_quorum_is_rounded_up(count, quorum, needed, names):
    made, sites = presence(count, quorum, names)
    made.check_quorum("round 1", set(sites[:needed]), {})
    with pytest.raises(RoundError, match=f"{needed - 1} of {count} sites replied well, {needed} needed"):
        made.check_quorum("round 1", set(sites[: needed - 1]), {})


def test_nobody_is_never_enough():
    made, _ = presence(0, 0.0, names=False)
    with pytest.raises(RoundError, match="0 of 0 sites replied well, 1 needed"):
        made.check_quorum("round 1", set(), {})


def test_only_those_who_were_asked_are_counted_and_each_missing_one_is_named():
    made, sites = presence(10, 0.5)
    made.check_quorum("round 1", {sites[0], sites[1]}, {}, asked=set(sites[:3]))
    with pytest.raises(RoundError) as caught:
        made.check_quorum("round 1", {sites[0]}, {sites[1]: "it is late"}, asked=set(sites[:3]))
    assert "1 of 3 sites replied well, 2 needed (s01: it is late; s02: it is not connected)" in str(caught.value)
