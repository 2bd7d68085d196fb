"""``fed-diffmic provision peers``: a key counts in masked sums when its digits were read by phone, and not before."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fed_diffmic.config.compose import compose_site
from fed_diffmic.errors import CredentialError
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.provision.keys import fingerprint, load_public
from fed_diffmic.provision.kit import load_kit
from fed_diffmic.provision.peers import load_peers, peer_keys
from tests.commands.provisioning import CONFIG, Consortium, typed


@pytest.fixture
def three(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> Consortium:
    """Sites a, b and c, of which a opened a kit that names the other two."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name in "bc":
        consortium.enrol(name, consortium.digits(consortium.runs("site-key", f"{name}/site.key")))
    consortium.site("a")
    text = Path("a/site.yaml").read_text(encoding="utf-8")
    assert "folder:" in text
    return consortium


def peers(made: Consortium, *words: str, fails: bool = False) -> str:
    given = ("peers", *words, "--config", "a/site.yaml")
    return made.fails(*given) if fails else made.runs(*given)


def digits(name: str) -> str:
    return fingerprint(load_public(f"{name}/site.key.pub"))


def folder() -> Path:
    return Path(str(compose_site(Path("a/site.yaml"), []).site.folder))


def test_a_kit_names_the_others_and_none_of_them_counts_until_its_digits_are_read(three: Consortium) -> None:
    assert set(load_kit("a.kit").peers) == {"b", "c"}
    said = peers(three)
    assert "b  not accepted" in said and "0 accepted, too few for a masked sum: policy.min_sites is 2" in said
    assert digits("b") not in said  # they come from the other site, by phone
    assert load_peers(folder()) == {}
    accepted = peers(three, "accept", "b", "--fingerprint", digits("b").replace("-", " "))
    assert "b is accepted" in accepted
    assert f"b  {digits('b')}  accepted" in peers(three)
    own = load_public("a/site.key.pub")
    assert set(peer_keys(folder(), "a", own)) == {"a", "b"}
    assert stat.S_IMODE((folder() / "peers.json").stat().st_mode) == 0o600
    peers(three, "accept", "c", "--fingerprint", digits("c"))
    assert "2 accepted, enough for a masked sum" in peers(three, "list")
    assert "b is no longer accepted" in peers(three, "remove", "b")
    assert set(load_peers(folder())) == {"c"}
    lines = [line.facts for line in read_lines(folder() / "audit.jsonl") if line.kind == "peer"]
    assert [(line["what"], line["site"]) for line in lines] == [
        ("accepted", "b"), ("accepted", "c"), ("removed", "b"),
    ]  # fmt: skip


def test_other_digits_and_unknown_names_are_refused(three: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not the digits of the key" in peers(three, "accept", "b", "--fingerprint", digits("c"), fails=True)
    assert "names no other site 'x'" in peers(three, "accept", "x", "--fingerprint", digits("c"), fails=True)
    assert "names no other site 'a'" in peers(three, "accept", "a", "--fingerprint", digits("a"), fails=True)
    assert "is no accepted peer" in peers(three, "remove", "b", fails=True)
    assert "digits that the other side reads" in peers(three, "accept", "b", fails=True)
    assert load_peers(folder()) == {}
    typed(monkeypatch, digits("b") + "\n")
    assert "b is accepted" in peers(three, "accept", "b")


def test_a_coordinator_that_exchanges_a_key_is_noticed(three: Consortium) -> None:
    """The kit gives b's name to a key that is the coordinator's own."""
    peers(three, "accept", "b", "--fingerprint", digits("b"))
    other = three.digits(three.runs("site-key", "evil/site.key"))
    three.runs("renew", "site", "b", "--key", "evil/site.key.pub", "--fingerprint", other, *CONFIG)
    three.runs("kit", "a", "--out", "a2.kit", *CONFIG)
    three.runs("open-kit", "a2.kit", *three.opening("a"), "--update")
    said = peers(three)
    assert f"b  {digits('b')}  accepted; the kit names another key" in said
    assert load_peers(folder())["b"].key == load_public("b/site.key.pub")
    assert "not the digits" in peers(three, "accept", "b", "--fingerprint", digits("b"), fails=True)


def test_one_key_under_two_names_is_refused(three: Consortium) -> None:
    peers(three, "accept", "b", "--fingerprint", digits("b"))
    value = json.loads((folder() / "peers.json").read_text(encoding="utf-8"))
    value["peers"].append({**value["peers"][0], "name": "b2"})
    (folder() / "peers.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(CredentialError, match="one and the same key"):
        load_peers(folder())
    assert "cannot be used" in peers(three, fails=True)
