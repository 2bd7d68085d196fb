"""Keys that are locked by a passphrase: made, opened, changed, and every way in which that cannot be done."""

import stat

import pytest

from client.supervisor import lock_key
from fed_diffmic.errors import CredentialError, MachineError
from fed_diffmic.provision.authority import Authority, make_authority
from fed_diffmic.provision.certificates import load_pem_key
from fed_diffmic.provision.credentials import is_locked, read_passphrase
from fed_diffmic.provision.keys import load_private, load_public, make_site_key
from fed_diffmic.provision.locking import change_passphrase

GOOD = "a passphrase of one line"


def words(path, text=GOOD + "\n", mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def phrase(tmp_path):
    return words(tmp_path / "phrase")


@pytest.fixture
def site(tmp_path, phrase):
    make_site_key(tmp_path / "keys/site.key", read_passphrase(phrase, new=True))
    return tmp_path / "keys/site.key"


@pytest.fixture
def ca(tmp_path, phrase):
    make_authority(tmp_path / "ca", passphrase=phrase)
    return tmp_path / "ca/ca.key"


def test_a_locked_key_opens_with_its_passphrase_alone(site, ca, phrase, tmp_path):
    assert load_private(site, phrase).public_key() == load_public(f"{site}.pub")
    assert Authority.load(ca.parent, phrase).key()
    wrong = words(tmp_path / "wrong", "another passphrase, as long\n")
    for load, key in ((load_private, site), (load_pem_key, ca)):
        assert is_locked(key)
        with pytest.raises(CredentialError, match="locked by a passphrase, and none was given") as refused:
            load(key)
        assert f"LoadCredential={key.name}.passphrase:FILE" in refused.value.remedy
        with pytest.raises(CredentialError, match=f"{wrong} does not open") as refused:
            load(key, wrong)
        assert "restore both" in refused.value.remedy
        assert GOOD not in str(refused.value)


def test_a_service_is_handed_the_passphrase_by_systemd(site, phrase, tmp_path, monkeypatch):
    folder = tmp_path / "credentials"
    folder.mkdir()
    handed = words(folder / "site.key.passphrase", mode=0o440)  # the group's bits are the mask of systemd's access list
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert load_private(site)
    handed.chmod(0o444)
    with pytest.raises(CredentialError, match="read by everybody"):
        load_private(site)
    handed.unlink()
    with pytest.raises(CredentialError, match="none was given"):
        load_private(site)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (GOOD, 0o640, "may be read by others"),
        (GOOD, 0o604, "may be read by others"),
        ("", 0o600, "is empty"),
        ("two\nlines", 0o600, "one line"),
        ("x" * 1024, 0o600, "one line"),
        ("a\0b", 0o600, "one line"),
    ],
)
def test_a_passphrase_file_that_cannot_be_used_is_refused_in_words(site, tmp_path, text, mode, said):
    with pytest.raises(CredentialError, match=said) as refused:
        load_private(site, words(tmp_path / "file", text, mode))
    assert refused.value.remedy
    with pytest.raises(CredentialError, match="there is no passphrase file"):
        load_private(site, tmp_path / "missing")


def test_the_remedy_for_a_file_that_others_read_is_the_right_one(site, tmp_path):
    path = words(tmp_path / "phrase2", mode=0o644)
    with pytest.raises(CredentialError) as refused:
        load_private(site, path)
    assert f"chmod 600 {path}" in refused.value.remedy
    path.chmod(0o600)
    assert load_private(site, path)


def test_no_key_is_locked_with_what_can_be_guessed(tmp_path):
    short = words(tmp_path / "short", "hospital\n")
    with pytest.raises(CredentialError, match="8 characters; 16 are the least"):
        make_authority(tmp_path / "new", passphrase=short)
    assert not (tmp_path / "new/ca.key").exists()
    assert read_passphrase(short) == b"hospital"  # what opens a key that somebody else locked


@pytest.mark.parametrize("which", ["site", "ca"])
def test_a_passphrase_is_taken_away_set_and_changed(which, site, ca, phrase, tmp_path):
    path, load = {"site": (site, load_private), "ca": (ca, load_pem_key)}[which]
    public = load(path, phrase).public_key()
    assert change_passphrase(path, old=phrase, new=None) is True
    assert load(path).public_key() == public
    assert change_passphrase(path, old=None, new=phrase) is False
    other = words(tmp_path / "other", "another passphrase, as long")
    assert change_passphrase(path, old=phrase, new=other) is True
    assert load(path, other).public_key() == public
    with pytest.raises(CredentialError):
        load(path, phrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(path.parent.glob(".*"))


def test_a_change_that_cannot_be_made_leaves_the_key_as_it_was(site, phrase, tmp_path, monkeypatch):
    before = site.read_bytes()
    for old, new in ((None, phrase), (tmp_path / "no", phrase), (phrase, words(tmp_path / "short", "abc"))):
        with pytest.raises(CredentialError):
            change_passphrase(site, old=old, new=new)
    with lock_key(site), pytest.raises(CredentialError, match="in use by a client"):
        change_passphrase(site, old=phrase, new=phrase)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MachineError):
        change_passphrase(site, old=phrase, new=None)
    assert site.read_bytes() == before
    assert not list(site.parent.glob(".*"))
