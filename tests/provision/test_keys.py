"""Keys: what Flower takes is taken, everything else is named with what to do."""

import base64
import importlib
import os
import stat
import struct
import types

import pytest
from cryptography.hazmat.primitives import serialization as S
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.errors import CredentialError, MachineError
from fed_diffmic.provision import keys

OPENSSH, PKCS8, SEC1 = S.PrivateFormat.OpenSSH, S.PrivateFormat.PKCS8, S.PrivateFormat.TraditionalOpenSSL


def private_file(path, key, form=OPENSSH, lock=None):
    locked = S.NoEncryption() if lock is None else S.BestAvailableEncryption(lock)
    path.write_bytes(key.private_bytes(S.Encoding.PEM, form, locked))
    path.chmod(0o600)
    return path


def locked_file(path):
    """A key in OpenSSH's form whose header says that it is locked."""
    field = lambda data: struct.pack(">I", len(data)) + data  # noqa: E731
    public = base64.b64decode(public_line(ec.generate_private_key(ec.SECP384R1())).split()[1])
    options = field(b"s" * 16) + struct.pack(">I", 16)
    body = b"openssh-key-v1\0" + field(b"aes256-ctr") + field(b"bcrypt") + field(options) + struct.pack(">I", 1)
    body = base64.encodebytes(body + field(public) + field(b"0" * 64)).decode()
    path.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{body}-----END OPENSSH PRIVATE KEY-----\n")


def public_line(key):
    return key.public_key().public_bytes(S.Encoding.OpenSSH, S.PublicFormat.OpenSSH).decode()


def test_a_made_key_is_the_one_that_flower_reads_and_presents(tmp_path):
    path = tmp_path / "new" / "site.key"
    text = keys.make_site_key(path)
    flower_supernode = importlib.import_module("flwr.supernode.cli.flower_supernode")
    private, public = flower_supernode._try_setup_client_authentication(
        types.SimpleNamespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None)
    )
    assert private.curve.name == "secp384r1"
    assert public == keys.parse_public(text) == keys.load_public(f"{path}.pub") == keys.load_private(path).public_key()
    assert keys.public_pem(keys.parse_public(text)) == public_key_to_bytes(public)


def test_the_private_key_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        keys.make_site_key(tmp_path / "new" / "site.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "site.key").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path / "new")) == ["site.key", "site.key.pub"]


@pytest.mark.parametrize("taken", ["site.key", "site.key.pub"])
def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(CredentialError, match=f"{taken} is there already"):
        keys.make_site_key(tmp_path / "site.key")
    assert os.listdir(tmp_path) == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "site.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CredentialError, match="there already"):
        keys.make_site_key(tmp_path / "site.key")
    assert not (tmp_path / "elsewhere").exists()


def test_no_key_is_made_where_others_could_exchange_it(tmp_path):
    open_to_all = tmp_path / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(MachineError, match="chmod 700"):
        keys.make_site_key(open_to_all / "site.key")
    assert not os.listdir(open_to_all)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: private_file(p, ed25519.Ed25519PrivateKey.generate()), "is Ed25519"),
        (lambda p: private_file(p, rsa.generate_private_key(65537, 2048)), "is RSA"),
        (lambda p: private_file(p, ec.generate_private_key(ec.SECP521R1())), "curve secp521r1"),
        (lambda p: private_file(p, ec.generate_private_key(ec.SECP384R1()), PKCS8), "PKCS8"),
        (lambda p: private_file(p, ec.generate_private_key(ec.SECP384R1()), SEC1), "SEC1"),
        (locked_file, "passphrase"),
        (lambda p: private_file(p, ec.generate_private_key(ec.SECP384R1()), PKCS8, b"secret"), "passphrase"),
        (lambda p: p.write_text(public_line(ec.generate_private_key(ec.SECP384R1()))), "is a public key"),
        (lambda p: p.write_text("-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"), "is a certificate"),
        (lambda p: p.write_text("PuTTY-User-Key-File-3: ecdsa-sha2-nistp384\n"), "PuTTY"),
        (lambda p: p.write_text("hello"), "is not an OpenSSH key"),
        (lambda p: p.write_text(" \n"), "empty"),
        (lambda p: p.write_bytes(b"x" * 100_000), "too large"),
        (lambda p: p.mkdir(), "cannot be read"),
        (lambda p: None, "there is no private key"),
    ],
)  # fmt: skip
def test_another_private_key_is_refused_by_what_it_is(tmp_path, make, words):
    path = tmp_path / "site.key"
    make(path)
    if path.is_file():
        path.chmod(0o600)
    with pytest.raises(CredentialError, match=words) as refused:
        keys.load_private(path)
    assert refused.value.remedy


def test_a_damaged_private_key_is_refused(tmp_path):
    keys.make_site_key(tmp_path / "site.key")
    lines = (tmp_path / "site.key").read_text().splitlines()
    (tmp_path / "site.key").write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))
    with pytest.raises(CredentialError, match="damaged"):
        keys.load_private(tmp_path / "site.key")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_private_key_that_others_may_read_is_refused(tmp_path, mode):
    keys.make_site_key(tmp_path / "site.key")
    (tmp_path / "site.key").chmod(mode)
    with pytest.raises(CredentialError, match="chmod 600"):
        keys.load_private(tmp_path / "site.key")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_a_comment_does_not_make_another_key(curve):
    line = public_line(ec.generate_private_key(curve))
    assert keys.public_text(keys.parse_public(f"  {line} someone@there\r\n")) == line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (public_line(ed25519.Ed25519PrivateKey.from_private_bytes(b"7" * 32)), "Ed25519"),
        (public_line(ec.generate_private_key(ec.SECP521R1())), "secp521r1"),
        (public_line(ec.generate_private_key(ec.SECP384R1()))[:-30], "not a whole line"),
        ("\n".join([public_line(ec.generate_private_key(ec.SECP384R1()))] * 2), "is not an OpenSSH key"),
        ("-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----", "form PEM"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nAA\n---- END SSH2 PUBLIC KEY ----", "RFC 4716"),
        ("", "is not an OpenSSH key"),
    ],
)
def test_another_public_key_is_refused_by_what_it_is(text, words):
    with pytest.raises(CredentialError, match=words) as refused:
        keys.parse_public(text)
    assert "PRIVATE" not in str(refused.value)


def test_a_private_key_that_was_sent_is_called_burnt(tmp_path):
    keys.make_site_key(tmp_path / "site.key")
    with pytest.raises(CredentialError, match="PRIVATE key") as refused:
        keys.load_public(tmp_path / "site.key")
    assert "burnt" in refused.value.remedy and "Name the file of the public key" in refused.value.remedy
    assert (tmp_path / "site.key").read_text().splitlines()[1] not in str(refused.value)


def test_who_names_a_file_is_told_to_name_another_and_who_was_sent_one_to_have_another_sent(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n")
    with pytest.raises(CredentialError) as named:
        keys.load_public(tmp_path / "table.csv")
    with pytest.raises(CredentialError) as sent:
        keys.parse_public("image,label")
    assert named.value.remedy.startswith("Name the file") and "Send the" not in named.value.remedy
    assert sent.value.remedy.startswith("Send the file")


@given(st.binary(max_size=300))
def test_whatever_bytes_a_public_key_file_holds_the_answer_is_in_words(data):
    with pytest.raises(CredentialError):
        keys.parse_public(data.decode("utf-8", "replace"))


def test_digits_are_six_groups_that_name_data_and_its_kind():
    digits = keys.digits("kit", b"data")
    assert [len(group) for group in digits.split("-")] == [5] * 6
    assert digits.replace("-", "").isdigit()
    assert len({digits, keys.digits("kit", b"datb"), keys.digits("public key", b"data")}) == 3


def test_digits_are_recognised_however_they_are_separated():
    right = "12345-67890-11111-22222-33333-44444"
    for given_ in (
        "12345 67890 11111 22222 33333 44444",
        right.replace("-", ""),
        f" {right}\n",
        "12345.67890" + right[11:],
    ):
        assert keys.same_digits(given_, right)
    for wrong in ("", right[:-1], right + "1", right[::-1], right.replace("1", "l"), right + " yes"):
        assert not keys.same_digits(wrong, right)


def test_a_signature_holds_for_its_data_and_key_only():
    one, other = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    signature = keys.sign(one, b"data")
    assert keys.verifies(one.public_key(), signature, b"data")
    assert not keys.verifies(one.public_key(), signature, b"date")
    assert not keys.verifies(other.public_key(), signature, b"data")
    assert not keys.verifies(one.public_key(), b"no signature", b"data")
