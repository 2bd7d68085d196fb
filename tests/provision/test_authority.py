"""The CA and the coordinator's certificate: seen from a TLS client, not from our own reading of them."""

import asyncio
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from fed_diffmic.errors import CredentialError
from fed_diffmic.provision.authority import Authority, make_authority
from fed_diffmic.provision.certificates import days_left, issued_by, load_certificate, server_names


def shakes_hands(certificate, key, ca, host):
    """Whether a client that trusts ``ca`` alone accepts the server by the name ``host``."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    async def run():
        async def serve(reader, writer):
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            opened = asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=host)
            _, writer = await asyncio.wait_for(opened, 10)
            writer.close()

    try:
        asyncio.run(run())
    except ssl.SSLCertVerificationError:
        return False
    return True


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca", "Skin consortium")


@pytest.mark.parametrize("host", ["fl.example.org", "10.1.2.3", "2001:db8::1", "localhost", "127.0.0.1", "::1"])
def test_a_client_with_the_ca_accepts_every_name(authority, tmp_path, host):
    certificate, key = authority.issue_server(["FL.example.org."], ["10.1.2.3", "[2001:db8::1]"], tmp_path / "server")
    assert shakes_hands(certificate, key, authority.certificate_path, host)


def test_a_client_refuses_another_name_and_another_ca(authority, tmp_path):
    certificate, key = authority.issue_server(["fl.example.org"], [], tmp_path / "server")
    other = make_authority(tmp_path / "other", "Skin consortium")
    assert not shakes_hands(certificate, key, authority.certificate_path, "evil.example.org")
    assert not shakes_hands(certificate, key, other.certificate_path, "fl.example.org")
    assert not issued_by(load_certificate(certificate), other.certificate)


def test_the_coordinators_certificate_can_issue_nothing(authority, tmp_path):
    certificate = load_certificate(authority.issue_server(["a.example"], [], tmp_path / "server")[0])
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


def test_private_files_are_their_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        made = make_authority(tmp_path / "ca")
        _, key = made.issue_server([], [], tmp_path / "server")
    finally:
        os.umask(before)
    for path, mode in ((made.folder, 0o700), (made.folder / "ca.key", 0o600), (key, 0o600), (key.parent, 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_nothing_is_overwritten(authority, tmp_path):
    made = make_authority(tmp_path / "ca")
    with pytest.raises(CredentialError, match=r"ca\.key is there already"):
        make_authority(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key").unlink()
    with pytest.raises(CredentialError, match=r"ca\.crt is there already"):
        make_authority(tmp_path / "ca")
    assert os.listdir(tmp_path / "ca") == ["ca.crt"]
    assert load_certificate(tmp_path / "ca" / "ca.crt") == made.certificate
    authority.issue_server([], [], tmp_path / "server")
    kept = (tmp_path / "server" / "server.key").read_bytes()
    with pytest.raises(CredentialError, match="there already"):
        authority.issue_server([], [], tmp_path / "server")
    assert (tmp_path / "server" / "server.key").read_bytes() == kept


@pytest.mark.parametrize(
    ("names", "addresses", "words"),
    [
        (["https://fl.example.org"], [], "bare name"),
        (["fl.example.org:9443"], [], "bare name"),
        (["*.example.org"], [], "bare name"),
        (["fl..example.org"], [], "bare name"),
        (["-fl.example.org"], [], "bare name"),
        ([""], [], "bare name"),
        (["10.0.0.1"], [], "is an address"),
        ([], ["fl.example.org"], "not an IP address"),
        ([], ["0.0.0.0"], "what a listener binds"),
    ],
)  # fmt: skip
def test_names_that_no_site_could_use_are_refused(authority, tmp_path, names, addresses, words):
    with pytest.raises(CredentialError, match=words):
        authority.issue_server(names, addresses, tmp_path / "server")
    assert not list((tmp_path / "server").glob("*"))


def test_a_name_in_another_script_becomes_what_dns_has(authority, tmp_path):
    certificate, _ = authority.issue_server(["klinik-münchen.example"], [], tmp_path / "server")
    assert server_names(load_certificate(certificate))[0] == ["xn--klinik-mnchen-3ob.example", "localhost"]


def test_a_certificate_never_outlives_its_ca_and_is_good_an_hour_ago(tmp_path):
    made = make_authority(tmp_path / "ca", days=10)
    certificate = load_certificate(made.issue_server([], [], tmp_path / "server", days=365)[0])
    assert certificate.not_valid_after_utc == made.certificate.not_valid_after_utc
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=59)


@pytest.mark.parametrize("days", [0, -1, 40_000, float("nan")])
def test_a_length_of_life_that_is_none_is_refused(tmp_path, days):
    with pytest.raises(CredentialError, match="days"):
        make_authority(tmp_path / "ca", days=days)


def test_an_expired_ca_issues_nothing_until_it_is_renewed(tmp_path, monkeypatch):
    made = make_authority(tmp_path / "ca", days=1e-9)
    with pytest.raises(CredentialError, match="expired.*") as refused:
        made.issue_server([], [], tmp_path / "server")
    assert "renew ca" in refused.value.remedy
    made.renew().issue_server([], [], tmp_path / "server")


def test_renewal_keeps_key_and_names_and_what_the_sites_trust(tmp_path):
    made = make_authority(tmp_path / "ca", days=10)
    certificate, key = made.issue_server(["fl.example.org"], ["10.0.0.1"], tmp_path / "server", days=1)
    before, kept = load_certificate(certificate), key.read_bytes()
    after = Authority.load(tmp_path / "ca").renew_server(tmp_path / "server", ["new.example.org"], days=5)
    assert key.read_bytes() == kept
    assert after.public_key() == before.public_key()
    assert after.serial_number != before.serial_number
    assert server_names(after)[0] == ["fl.example.org", "new.example.org", "localhost"]
    assert 4.9 < days_left(after) < 5
    assert shakes_hands(certificate, key, made.certificate_path, "new.example.org")


def test_a_renewed_ca_and_the_old_one_both_carry_what_either_issued(tmp_path):
    made = make_authority(tmp_path / "ca", days=10)
    old = tmp_path / "old.crt"
    old.write_bytes(made.certificate_path.read_bytes())
    first = made.issue_server(["a.example"], [], tmp_path / "one")
    renewed = Authority.load(tmp_path / "ca").renew(days=1000)
    second = renewed.issue_server(["a.example"], [], tmp_path / "two")
    assert days_left(renewed.certificate) > 999
    for certificate, key in (first, second):
        for ca in (old, renewed.certificate_path):
            assert shakes_hands(certificate, key, ca, "a.example")


def test_a_client_with_two_cas_in_one_file_accepts_what_either_issued(authority, tmp_path):
    other = make_authority(tmp_path / "other", "Skin consortium")
    both = tmp_path / "both.crt"
    both.write_bytes(authority.certificate_path.read_bytes() + other.certificate_path.read_bytes())
    for n, issuer in enumerate((authority, other)):
        certificate, key = issuer.issue_server(["a.example"], [], tmp_path / f"server-{n}")
        assert shakes_hands(certificate, key, both, "a.example")


def test_a_key_of_another_certificate_is_noticed(tmp_path):
    one, two = make_authority(tmp_path / "one"), make_authority(tmp_path / "two")
    (one.folder / "ca.key").write_bytes((two.folder / "ca.key").read_bytes())
    with pytest.raises(CredentialError, match="do not belong together"):
        Authority.load(one.folder)
    two.issue_server([], [], tmp_path / "server")
    (tmp_path / "server" / "server.key").write_bytes((one.folder / "ca.key").read_bytes())
    with pytest.raises(CredentialError, match="is not the key of"):
        two.renew_server(tmp_path / "server")


@pytest.mark.parametrize(
    ("text", "words"),
    [("hello", "not a certificate"), ("-----BEGIN PRIVATE KEY-----\nA\n", "a PRIVATE key"), ("", "empty")],
)
def test_a_file_that_is_no_certificate_is_named(tmp_path, text, words):
    (tmp_path / "ca.crt").write_text(text)
    with pytest.raises(CredentialError, match=words):
        load_certificate(tmp_path / "ca.crt")
