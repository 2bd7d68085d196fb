"""Keys of another kind, certificates that are over, rosters and kits in the wrong place: mended as the message says."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fed_diffmic import cli
from fed_diffmic.config.compose import compose_server, compose_site
from fed_diffmic.files import write_json
from fed_diffmic.provision.authority import Authority, _ec, make_authority
from fed_diffmic.provision.certificates import load_pem_key
from fed_diffmic.provision.credentials import CREDENTIALS, read_passphrase
from fed_diffmic.provision.keys import load_private, load_public, parse_public
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport.supernode import ca_certificates
from server import start
from server.ledgers import LedgerMemory
from server.seals import run_reply_key
from tests.commands.provisioning import CONFIG, Consortium
from tests.inference.tiny import write_tiny_run
from tests.provision.test_keys import private_file, public_line
from tests.remedies.places import remedy_in, tries
from tests.remedies.test_commands import Reached

KEYS, ROSTER = "fed_diffmic/provision/keys.py::", "fed_diffmic/provision/roster.py::Roster.load"
COORDINATOR, START = "fed_diffmic/provision/coordinator.py::", "server/start.py::"
CERTIFICATE = "coordinator/server.crt"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def people(capsys: pytest.CaptureFixture[str]) -> Consortium:
    """A coordinator whose roster has one site."""
    found = Consortium(capsys)
    found.runs("ca", "ca", "--name", "Consortium")
    found.runs("server", "coordinator", "--ca", "ca", "--name", "fl.example.org")
    found.enrol("a", found.digits(found.runs("site-key", "a/site.key")))
    return found


def in_words(command: str, ca: str = "ca") -> list[str]:
    """A command of ``provision`` as a message writes it, with the folders that are here."""
    return (
        command.replace("CA_FOLDER", ca).replace("--ca FOLDER", f"--ca {ca}").replace("FOLDER", "coordinator").split()
    )


@tries(
    f"{KEYS}load_private | Flower takes EC ke",
    f"{KEYS}load_private | {{_MAKE}}",
    f"{KEYS}load_private | Flower takes EC P-",
    f"{KEYS}parse_public | Flower takes",
    "fed_diffmic/provision/certificates.py::load_pem_key | Use the file",
    "fed_diffmic/provision/authority.py::_ec",
)
def test_keys_of_another_kind(works) -> None:
    other, key = Path("other.key"), ec.generate_private_key(ec.SECP384R1())
    private_file(other, key)
    head, *lines, end = other.read_text().splitlines()
    raw = base64.b64decode("".join(lines)).replace(b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp38x")
    unknown = "\n".join([head, base64.b64encode(raw).decode(), end]) + "\n"
    wrong = [
        lambda: private_file(other, key, forms.PrivateFormat.PKCS8),
        lambda: private_file(other, ed25519.Ed25519PrivateKey.generate()),
        lambda: other.write_text(unknown),
    ]
    for number, write in enumerate(wrong):
        write()
        [command] = remedy_in(lambda: load_private(other), r"`fed-diffmic (provision site-key) FILE`").groups()
        works(*command.split(), f"{number}.key")
        load_private(f"{number}.key")
    line = public_line(ed25519.Ed25519PrivateKey.generate())
    [command] = remedy_in(lambda: parse_public(line), r"`fed-diffmic (provision site-key) FILE`").groups()
    works(*command.split(), "public.key")
    load_public("public.key.pub")
    large = rsa.generate_private_key(65537, 1024)
    private_file(other, large, forms.PrivateFormat.PKCS8)
    [program] = remedy_in(lambda: load_pem_key(other), r"Use the files that `fed-diffmic (\w+)` made").groups()
    [command] = remedy_in(lambda: _ec(large.public_key()), r"`fed-diffmic (provision ca)` made").groups()
    works(*command.split(), "ca")
    assert command.startswith(program) and load_pem_key("ca/ca.key")
    assert _ec(Authority.load("ca").certificate.public_key())


@tries(
    "fed_diffmic/provision/credentials.py::read_credential | It must be a",
    "fed_diffmic/provision/credentials.py::read_passphrase | Run `chmod 6",
    "fed_diffmic/transport/supernode.py::ca_certificates | a readable P",
    "fed_diffmic/transport/supernode.py::ca_certificates | a PEM file w",
    "server/seals.py::run_reply_key",
    "server/ledgers.py::LedgerMemory.check",
)
def test_files_that_hold_secrets_or_certificates(monkeypatch, works) -> None:
    works("provision", "site-key", "site.key")
    Path("folder").mkdir()
    remedy_in(lambda: load_private("folder"), "It must be a file that the account which runs this may read")
    load_private("site.key")
    phrase = Path("folder/phrase").absolute()
    phrase.write_text("a long enough passphrase\n")
    phrase.chmod(0o644)
    monkeypatch.setenv(CREDENTIALS, str(phrase.parent))
    [mode] = remedy_in(
        lambda: read_passphrase(phrase), rf"Run `chmod (600)` on what LoadCredential= .*{CREDENTIALS}"
    ).groups()
    phrase.chmod(int(mode, 8))
    assert read_passphrase(phrase)
    ca = str(make_authority(Path("ca")).certificate_path)
    remedy_in(lambda: ca_certificates("none.pem"), "coordinator.ca=none.pem .*a readable PEM file")
    remedy_in(lambda: ca_certificates("site.key"), "a PEM file with at least one certificate")
    assert ca_certificates(compose_site(None, [f"coordinator.ca={ca}"]).coordinator.ca)
    run_reply_key(Path("folder"))
    [key] = [path for path in Path("folder").iterdir() if "PHRASE" not in path.name.upper()]
    key.write_text("no")
    remedy_in(lambda: run_reply_key(Path("folder")), "Remove it and resume")
    key.unlink()
    run_reply_key(Path("folder"))
    [named] = remedy_in(lambda: LedgerMemory(Path("none/seen"), Path()).check(), r"all runs share: (\S+)\.").groups()
    LedgerMemory(Path(str(compose_server(None, [f"{named}=seen"]).security.ledgers)), Path()).check()


@tries(
    f"{ROSTER} | Check security",
    f"{ROSTER} | Check the path.",
    f"{ROSTER} | {{error.remed",
    f"{START}expected_sites | `fed-diffmic provision enrol` adds a",
    f"{START}expected_sites | `fed-diffmic provision enrol` adds o",
)
def test_rosters(people) -> None:
    path, digits = Path("coordinator/roster.json"), people.digits(people.runs("fingerprint", "a/site.key.pub"))

    def expected(*settings: str) -> list[str] | None:
        return start.expected_sites(compose_server(Path(CONFIG[1]), list(settings)))

    def enrol(said: str, name: str) -> None:
        [command] = re.search(r"`fed-diffmic provision (enrol)` ", said).groups()
        who = ("--key", f"{name}/site.key.pub", "--institution", "A")
        people.runs(command, name, *who, "--fingerprint", digits, *CONFIG)

    write_json(path, {"version": 1, "sites": [], "revoked": []})
    enrol(remedy_in(expected, ".*").string, "a")
    assert expected() == ["a"]
    digits = people.digits(people.runs("site-key", "b/site.key"))
    enrol(remedy_in(lambda: expected("consortium.sites=[a,b]"), ".*").string, "b")
    assert expected("consortium.sites=[a,b]") == ["a", "b"]
    whole = path.read_text()
    path.write_text(whole.replace('"b"', '"a"'))
    remedy_in(lambda: Roster.load(path), "Give each its own name|its own name")
    path.write_text(whole)
    assert len(Roster.load(path).sites) == 2
    remedy_in(lambda: Roster.load("coordinator"), "Check the path")
    path.unlink()
    said = remedy_in(lambda: Roster.load(path), r"back from the backup: .* `fed-diffmic provision (server)` writes an")
    people.runs(said[1], "new", "--ca", "ca", "--name", "fl.example.org")
    assert Roster.load("new/roster.json").sites == ()
    path.write_text(whole)
    assert len(Roster.load(path).sites) == 2


@tries(
    f"{COORDINATOR}check_chain | Renew it: `f",
    f"{COORDINATOR}check_chain | Issue it by",
    f"{COORDINATOR}distrust | Nothing is t",
    "fed_diffmic/provision/authority.py::Authority.sign_server",
    "fed_diffmic/provision/site.py::update_kit",
)
def test_certificates_and_kits(people) -> None:
    kit = ("kit", "a", "--out", "a.kit", *CONFIG)

    def renewed(said: str, ca: str = "ca") -> None:
        [command] = re.search(r"`fed-diffmic provision (renew [^`]+)`", said).groups()
        people.runs(*in_words(command, ca))

    people.runs("renew", "server", "coordinator", "--ca", "ca", "--days", 1e-9)
    renewed(people.fails(*kit))
    people.runs("renew", "ca", "ca", "--days", 1e-9)
    renewed(people.fails("renew", "server", "coordinator", "--ca", "ca"))
    people.runs("renew", "server", "coordinator", "--ca", "ca")
    ours = Path("coordinator/ca.crt").read_bytes()
    people.runs("ca", "ca2", "--name", "Second")
    Path("coordinator/ca.crt").write_bytes(Path("ca2/ca.crt").read_bytes())
    said = people.fails(*kit)
    assert "Issue it by that CA" in said
    people.runs("renew", "server", "coordinator", "--ca", "ca2")
    fingerprint = people.digits(people.runs(*kit))
    assert ours and "Nothing is to be done" in people.fails("renew", "trust", "coordinator", "--drop", "ca")
    people.runs("open-kit", "a.kit", *people.opening("a"), "--fingerprint", fingerprint)
    people.enrol("b", people.digits(people.runs("site-key", "b/site.key")))
    of_b = people.kit("b", "b.kit")
    wrong = ("open-kit", "b.kit", "--key", "b/site.key", "--folder", "a", "--update", "--fingerprint", of_b)
    assert "Open it in another folder" in people.fails(*wrong)
    people.runs("open-kit", "b.kit", *people.opening("b"), "--fingerprint", of_b)


@tries(
    f"{START}check_credentials | Take the `ca",
    f"{START}check_credentials | Check both p",
    f"{START}check_credentials | Renew it: `f",
    f"{START}check_credentials | `fed-diffmic provision renew server FOLDER --ca CA_FOLDER` makes",
)
def test_what_a_coordinator_shows(people, monkeypatch) -> None:
    def check(*settings: str) -> None:
        start.check_credentials(compose_server(Path(CONFIG[1]), list(settings)))

    def renewed(words: str) -> None:
        [command] = remedy_in(check, rf"{words}.*`fed-diffmic provision (renew server [^`]+)`").groups()
        people.runs(*in_words(command))
        check()

    check()
    people.runs("ca", "ca2", "--name", "Second")
    remedy_in(lambda: check("security.ca=ca2/ca.crt"), "Take the `ca.crt` that belongs to the certificate")
    people.runs("renew", "trust", "coordinator", "--ca", "ca2")
    people.runs("renew", "server", "coordinator", "--ca", "ca2")
    people.runs("renew", "trust", "coordinator", "--drop", "ca")
    people.runs("renew", "trust", "coordinator", "--ca", "ca")
    Path("coordinator/ca.crt").write_bytes(Path("ca/ca.crt").read_bytes())
    renewed("have this one issue it")
    people.runs("server", "another", "--ca", "ca", "--name", "fl.example.org")
    remedy_in(lambda: check("security.key=another/server.key"), "Check both paths")
    check("security.key=another/server.key", "security.certificate=another/server.crt")
    people.runs("renew", "server", "coordinator", "--ca", "ca", "--days", 1e-9)
    renewed("Renew it")
    with monkeypatch.context() as before:  # a certificate as another program makes it
        before.setattr("fed_diffmic.provision.authority._LOOPBACK_ADDRESSES", [])
        before.setattr("fed_diffmic.provision.authority._LOOPBACK_NAMES", [])
        authority = Authority.load("ca")
        made = authority.sign_server(load_pem_key("coordinator/server.key").public_key(), ["fl.example.org"], [], 30)
        Path(CERTIFICATE).write_bytes(made.public_bytes(forms.Encoding.PEM))
    renewed("")


@tries("fed_diffmic/commands/serve.py::_reached_as", "fed_diffmic/commands/serve.py::_tls")
def test_a_service_that_others_reach(people, monkeypatch, capsys) -> None:
    write_tiny_run(Path("run"))
    Path("token").write_text(base64.b64encode(os.urandom(32)).decode())
    Path("token").chmod(0o600)
    people.runs("server", "another", "--ca", "ca", "--name", "fl.example.org")

    def reached(*arguments: object, **options: object) -> None:
        raise Reached

    monkeypatch.setattr("fed_diffmic.commands.serve._listen", reached)
    serve = ["serve", "--model", "run", "--unsigned", "--host", "0.0.0.0", "--token-file", "token"]
    serve += ["--certificate", "another/server.crt", "--tls-key"]

    def says(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.main([*serve, *arguments]) == 2
        return capsys.readouterr().err

    [option] = re.search(r"Add (--name) HOST", says("another/server.key")).groups()
    own = (option, "fl.example.org")
    assert "the private key that it was made for" in says("coordinator/server.key", *own)
    with pytest.raises(Reached):
        cli.main([*serve, "another/server.key", *own])
