"""The kit: whatever is changed in it has other digits, and a later one must follow from the first."""

import contextlib
import json
from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.errors import CredentialError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import public_text
from fed_diffmic.provision.kit import Kit, check_follows, check_for_site, load_kit

SIGNER, OTHER = (ec.derive_private_key(n, ec.SECP384R1()) for n in (11, 12))
SITE_KEY, OTHER_SITE_KEY = (public_text(ec.derive_private_key(n, ec.SECP384R1()).public_key()) for n in (13, 14))


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    authority = make_authority(tmp_path_factory.mktemp("kit") / "ca")
    return Kit(
        site="Köln",
        institution="Hospital A",
        role="train",
        site_key=SITE_KEY,
        address="fl.example.org:9443",
        ca=authority.certificate_path.read_text(),
        coordinator_key=public_text(SIGNER.public_key()),
        classes=["benign", "malignant"],
        task="multiclass",
        seed=7,
        made="2026-11-22T15:00:00+00:00",
    )


def saved(tmp_path, kit, change=None):
    path = tmp_path / "a.kit"
    value = json.loads(kit.sealed(SIGNER))
    if change:
        change(value)
    path.write_text(json.dumps(value))
    return path


def test_a_kit_is_read_as_it_was_sealed(tmp_path, kit):
    (tmp_path / "a.kit").write_bytes(kit.sealed(SIGNER))
    assert load_kit(tmp_path / "a.kit") == kit
    assert load_kit(tmp_path / "a.kit").fingerprint == kit.fingerprint


def test_spaces_that_a_mail_program_adds_change_nothing(tmp_path, kit):
    path = tmp_path / "a.kit"
    path.write_bytes(kit.sealed(SIGNER).replace(b"\n", b"\r\n  "))
    assert load_kit(path) == kit


CHANGES = {
    "site": "b",
    "institution": "Hospital B",
    "role": "admin",
    "site_key": OTHER_SITE_KEY,
    "address": "evil.example.org:9443",
    "ca": None,
    "coordinator_key": public_text(OTHER.public_key()),
    "classes": ["malignant", "benign"],
    "task": "ordinal",
    "seed": 8,
    "made": "2026-11-22T15:00:01+00:00",
}


def test_every_field_is_changed_below():
    assert set(CHANGES) == {f.name for f in fields(Kit)}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_anywhere_breaks_the_seal_and_a_new_seal_has_other_digits(tmp_path, kit, field):
    value = CHANGES[field] or make_authority(tmp_path / "ca").certificate_path.read_text()
    with pytest.raises(CredentialError, match="changed after it was sealed|no role 'admin'"):
        load_kit(saved(tmp_path, kit, lambda v: v["kit"].update({field: value})))
    if field == "role":  # there is no other yet
        return
    # Whoever exchanges the signing key too can seal it again: what is read by phone tells.
    other = replace(kit, **{field: value, "coordinator_key": public_text(OTHER.public_key())})
    (tmp_path / "b.kit").write_bytes(other.sealed(OTHER))
    assert load_kit(tmp_path / "b.kit").fingerprint != kit.fingerprint
    assert not set(load_kit(tmp_path / "b.kit").fingerprint.split("-")) & set(kit.fingerprint.split("-"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(form="fed_diffmic kit, version 9"), "version 9"),
        (lambda v: v.update(more=1), "nothing else"),
        (lambda v: v["kit"].update(more=1), "nothing else"),
        (lambda v: v["kit"].pop("ca"), "nothing else"),
        (lambda v: v["kit"].update(ca="hello"), "not a certificate"),
        (lambda v: v["kit"].update(address="https://fl.example.org"), "not an address"),
        (lambda v: v["kit"].update(address="fl.example.org:99999"), "not an address"),
        (lambda v: v["kit"].update(site="../x"), "cannot be called"),
        (lambda v: v["kit"].update(site="a\nb: c"), "line of text"),
        (lambda v: v["kit"].update(classes=["a", "a"]), "classes"),
        (lambda v: v["kit"].update(classes=["a\nb", "c"]), "classes"),
        (lambda v: v["kit"].update(classes="ab"), "classes"),
        (lambda v: v["kit"].update(classes=["a"]), "at least 2"),
        (lambda v: v["kit"].update(task="regression"), "task"),
        (lambda v: v["kit"].update(seed=True), "seed"),
        (lambda v: v["kit"].update(seed=-1), "seed"),
        (lambda v: v["kit"].update(made="yesterday"), "yesterday"),
        (lambda v: v["kit"].update(made="2026-11-22T15:00:00"), "zone"),
        (lambda v: v["kit"].update(coordinator_key="ssh-ed25519 AAAA"), "not a whole line"),
        (lambda v: v.update(signature="?"), "cannot|can be used"),
        (lambda v: v.update(signature=7), "can be used"),
        (lambda v: v.update(signature="AAAA"), "changed after"),
    ],
)
def test_what_is_not_a_kit_is_refused_in_words(tmp_path, kit, change, words):
    with pytest.raises(CredentialError, match=words) as refused:
        load_kit(saved(tmp_path, kit, change))
    assert "send the kit again" in refused.value.remedy


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path_factory, kit, at, bit):
    data = bytearray(kit.sealed(SIGNER))
    data[int(at * len(data))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "a.kit"
    path.write_bytes(data)
    with contextlib.suppress(CredentialError):
        assert load_kit(path) == kit


def test_a_kit_is_sealed_by_the_key_that_it_names_only(kit):
    with pytest.raises(CredentialError, match="another signing key"):
        kit.sealed(OTHER)


def test_a_kit_for_another_key_is_refused(kit):
    check_for_site(kit, ec.derive_private_key(13, ec.SECP384R1()).public_key())
    with pytest.raises(CredentialError, match="another key than the one given"):
        check_for_site(kit, ec.derive_private_key(14, ec.SECP384R1()).public_key())


def test_a_later_kit_follows_an_older_or_anothers_does_not(kit):
    check_follows(kit, kit)
    check_follows(replace(kit, made="2026-11-22T17:00:00+01:00"), kit)
    for change, words in (
        ({"site": "b"}, "site 'b'"),
        ({"coordinator_key": public_text(OTHER.public_key())}, "signed by another key"),
        ({"made": "2026-11-22T15:30:00+01:00"}, "not later"),
        ({"address": "other.example.org:9443"}, "not later"),
    ):
        with pytest.raises(CredentialError, match=words):
            check_follows(replace(kit, **change), kit)
