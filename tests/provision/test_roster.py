"""The roster: strict when read, atomic when written, and a revoked key never comes back."""

import json
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.errors import CredentialError, MachineError
from fed_diffmic.provision.keys import public_text
from fed_diffmic.provision.roster import Roster, changing

KEYS = [public_text(ec.derive_private_key(n + 7, ec.SECP384R1()).public_key()) for n in range(4)]
TWO = Roster().enrol("b", KEYS[0], "Hospital B").enrol("a", KEYS[1], "Hospital A", "train")


def saved(tmp_path, change):
    value = json.loads(TWO.to_json())
    change(value)
    path = tmp_path / "roster.json"
    path.write_text(json.dumps(value))
    return path


def test_a_roster_is_read_as_it_was_written(tmp_path):
    roster = TWO.revoke("b", "left the consortium")
    roster.save(tmp_path / "roster.json")
    assert Roster.load(tmp_path / "roster.json") == roster
    assert [site.name for site in roster.sites] == ["a"]
    assert roster.site("a").role == "train"
    assert public_text(roster.site("a").key) == KEYS[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["sites"].append(dict(v["sites"][0], public_key=KEYS[2])), "two sites of the name"),
        (lambda v: v["sites"].append(dict(v["sites"][0], name="A", public_key=KEYS[2])), "two sites of the name"),
        (lambda v: v["sites"].append(dict(v["sites"][0], name="c")), "one and the same key"),
        (lambda v: v["sites"].append(dict(v["sites"][0], name="c", public_key=KEYS[1] + " x")), "one and the same"),
        (lambda v: v["sites"][0].update(admin=True), "nothing else"),
        (lambda v: v["sites"][0].pop("role"), "entry 1 must hold"),
        (lambda v: v["sites"][0].update(role="root"), "no role 'root'"),
        (lambda v: v["sites"][0].update(name="../up"), "cannot be called"),
        (lambda v: v["sites"][0].update(name=7), "must be one line of text"),
        (lambda v: v["sites"][0].update(institution="one\ntwo"), "must be one line of text"),
        (lambda v: v["sites"][0].update(public_key="ssh-ed25519 AAAA"), "not a whole line"),
        (lambda v: v.update(version=2), "version 1"),
        (lambda v: v.update(note="x"), "nothing else"),
        (lambda v: v.pop("revoked"), "no list 'revoked'"),
        (lambda v: v.update(sites={}), "no list 'sites'"),
    ],
)
def test_a_slip_of_the_hand_admits_nobody(tmp_path, change, words):
    path = saved(tmp_path, change)
    with pytest.raises(CredentialError, match=words) as refused:
        Roster.load(path)
    assert "roster.json" in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"version": 1, "version": 1, "sites": [], "revoked": []}'])
def test_what_is_no_roster_is_refused(tmp_path, text):
    (tmp_path / "roster.json").write_text(text)
    with pytest.raises(CredentialError, match="cannot be used"):
        Roster.load(tmp_path / "roster.json")


def test_a_missing_roster_says_how_one_starts(tmp_path):
    with pytest.raises(CredentialError, match="there is no roster"):
        Roster.load(tmp_path / "roster.json")


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_json_it_holds_the_answer_is_in_words(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("roster") / "roster.json"
    path.write_text(json.dumps({"version": 1, "sites": [value], "revoked": []}))
    with pytest.raises(CredentialError):
        Roster.load(path)


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a  b", ".a", "a/b", "a\\b", "a|b", "a\nb", "u\u0308", "a\u202eb", "x" * 129]
)
def test_a_name_that_could_be_mistaken_is_refused(name):
    with pytest.raises(CredentialError):
        Roster().enrol(name, KEYS[0], "Hospital")


@pytest.mark.parametrize("name", ["site-1", "Hospital A", "Universitätsklinikum Köln", "東京"])
def test_names_of_hospitals_are_names(name):
    assert Roster().enrol(name, KEYS[0], "Hospital").site(name).name == name


def test_a_revoked_key_never_comes_back_the_name_may():
    roster = TWO.revoke("b", "key stolen")
    with pytest.raises(CredentialError, match="key stolen"):
        roster.enrol("b", KEYS[0], "Hospital B")
    assert roster.enrol("b", KEYS[2], "Hospital B").site("b").public_key == KEYS[2]
    with pytest.raises(CredentialError, match="no site 'b'; it has a"):
        roster.revoke("b", "again")


def test_a_revoked_key_is_nobodys_under_whatever_name(tmp_path):
    roster = TWO.revoke("b", "key stolen")
    for name in ("c", "B", "a2"):
        with pytest.raises(CredentialError, match=rf"key of site '{name}' was revoked \(key stolen\)"):
            roster.enrol(name, KEYS[0], "Hospital C")
    with pytest.raises(CredentialError, match="key of site 'a' was revoked"):
        roster.rekey("a", KEYS[0])
    value = json.loads(roster.to_json())  # and by hand
    value["sites"][0]["public_key"] = KEYS[0]
    (tmp_path / "roster.json").write_text(json.dumps(value))
    with pytest.raises(CredentialError, match="was revoked"):
        Roster.load(tmp_path / "roster.json")


def test_a_new_key_changes_nothing_else_of_a_site():
    """Whoever agreed to a number of images is not free of it with a new key."""
    roster = Roster().enrol("a", KEYS[0], "Hospital A", "train", 500).enrol("b", KEYS[1], "Hospital B")
    again = roster.rekey("a", KEYS[2]).site("a")
    assert (again.institution, again.role, again.max_images) == ("Hospital A", "train", 500)
    assert [gone.name for gone in roster.rekey("a", KEYS[2]).revoked] == ["a"]
    assert roster.rekey("a", KEYS[2]).site("b") == roster.site("b")


def test_a_new_key_takes_the_place_of_the_old_one_which_is_revoked():
    roster = TWO.rekey("a", KEYS[2])
    assert roster.site("a").role == "train"
    assert roster.site("a").public_key == KEYS[2]
    assert [gone.public_key for gone in roster.revoked] == [KEYS[1]]
    with pytest.raises(CredentialError, match="has this key already"):
        roster.rekey("a", KEYS[2])
    with pytest.raises(CredentialError, match="one and the same key"):
        roster.rekey("a", KEYS[0])


def test_two_people_at_once_lose_neithers_change(tmp_path):
    path = tmp_path / "roster.json"
    Roster().save(path)

    def enrol(n):
        with changing(path):
            Roster.load(path).enrol(f"site-{n}", KEYS[n], "Hospital").save(path)

    threads = [threading.Thread(target=enrol, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [site.name for site in Roster.load(path).sites] == [f"site-{n}" for n in range(4)]


def test_nobody_waits_for_ever_for_the_roster(tmp_path):
    with (
        changing(tmp_path / "roster.json"),
        pytest.raises(MachineError, match="someone else"),
        changing(tmp_path / "roster.json", wait_s=0.05),
    ):
        pytest.fail("both hold it")
