import time

import pytest

from fed_diffmic.provision.keys import make_site_key, public_text
from fed_diffmic.provision.roster import Roster
from fed_diffmic.reporting.events import EventLog
from fed_diffmic.transport.superlink import LinkLostError
from server import admission
from server.admission import Admission


class FakeControl:
    """Numbers for keys; as Flower, the same for the same key."""

    numbers: dict[str, int]
    lost = False

    def __init__(self, link):
        self.numbers = {}

    def register(self, keys):
        if self.lost:
            raise LinkLostError("gone")
        return {key: self.numbers.setdefault(key, len(self.numbers) + 1) for key in keys}

    def close(self):
        """Nothing to close."""


@pytest.fixture
def keys(tmp_path):
    return {name: make_site_key(tmp_path / name) for name in ("alpha", "beta")}


@pytest.fixture
def admitted(tmp_path, keys, monkeypatch):
    monkeypatch.setattr(admission, "Control", FakeControl)
    path = Roster().enrol("alpha", keys["alpha"], "Hospital").save(tmp_path / "roster.json")
    seen = []
    found = Admission(None, path, EventLog(None, observers=[seen.append]), pause_s=0.02)
    found.start()
    yield found, path, seen
    found.stop()


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def names(found):
    return sorted(found.names_of_nodes().values())


def test_the_roster_is_followed(admitted, keys):
    found, path, seen = admitted
    assert found.names_of_nodes() == {1: "alpha"}
    Roster.load(path).enrol("beta", keys["beta"], "Hospital").save(path)
    wait_for(lambda: names(found) == ["alpha", "beta"])
    Roster().enrol("beta", keys["beta"], "Hospital").save(path)
    wait_for(lambda: names(found) == ["beta"])
    Roster.load(path).enrol("alpha", keys["alpha"], "Hospital").save(path)
    wait_for(lambda: found.names_of_nodes() == {1: "alpha", 2: "beta"})
    kinds = [(event["kind"], event["site"]) for event in seen]
    assert kinds == [
        ("site_admitted", "alpha"),
        ("site_admitted", "beta"),
        ("site_removed", "alpha"),
        ("site_admitted", "alpha"),
    ]


def test_a_reply_is_verified_with_the_key_that_the_roster_names_now(admitted, keys):
    found, path, _ = admitted
    assert public_text(found.key_of("alpha")) == keys["alpha"]
    assert found.key_of("beta") is None and found.key_of("") is None
    Roster().enrol("beta", keys["beta"], "Clinic").save(path)
    wait_for(lambda: names(found) == ["beta"])
    assert found.key_of("alpha") is None and public_text(found.key_of("beta")) == keys["beta"]


def test_a_new_key_of_a_site_is_another_node(admitted, keys):
    found, path, _ = admitted
    Roster.load(path).rekey("alpha", keys["beta"]).save(path)
    wait_for(lambda: found.names_of_nodes() == {2: "alpha"})
    assert names(found) == ["alpha"]


def test_a_torn_roster_changes_nothing_and_is_said_once(admitted):
    found, path, seen = admitted
    path.write_text("{")
    wait_for(lambda: any(event["kind"] == "warning" for event in seen))
    time.sleep(0.1)
    assert names(found) == ["alpha"]
    assert len([event for event in seen if event["kind"] == "warning"]) == 1


def test_a_lost_superlink_ends_the_following_quietly(admitted, keys):
    found, path, _ = admitted
    found._control.lost = True
    Roster.load(path).enrol("beta", keys["beta"], "Hospital").save(path)
    wait_for(lambda: not found._thread.is_alive())
    assert names(found) == ["alpha"]
