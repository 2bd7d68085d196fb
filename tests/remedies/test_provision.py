"""Keys, rosters, kits and certificates: what a message says is typed, put or made, and then it works."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.certificates import load_certificates, load_pem_key
from fed_diffmic.provision.credentials import read_passphrase
from fed_diffmic.provision.keys import load_private, load_public, make_site_key, parse_public, public_text
from fed_diffmic.provision.roster import Roster, RosterEntry, check_site_name
from tests.commands.provisioning import CONFIG, Consortium
from tests.remedies.places import remedy_in, tries

KEYS, ROSTER = "fed_diffmic/provision/keys.py::", "fed_diffmic/provision/roster.py::"
SECRETS, CERTIFICATES = "fed_diffmic/provision/credentials.py::", "fed_diffmic/provision/certificates.py::"
AUTHORITY, SITE = "fed_diffmic/provision/authority.py::", "fed_diffmic/provision/site.py::"
PARTS, COORDINATOR = "fed_diffmic/commands/provision_parts.py::", "fed_diffmic/provision/coordinator.py::"


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


@tries(
    f"{SECRETS}read_credential | Check the path",
    f"{SECRETS}read_credential | Run `chmod",
    f"{SECRETS}read_credential | Check that",
    f"{SECRETS}read_passphrase | {{HOW_TO_MAKE.format(path='FILE')}}.",
    f"{SECRETS}read_passphrase | Nobody",
    f"{KEYS}load_private | Name the file",
    f"{KEYS}place_new",
)
def test_keys_and_passphrases() -> None:
    make_site_key(Path("site.key"))
    remedy_in(lambda: load_private("none.key"), "Check the path")
    load_private("site.key")
    os.chmod("site.key", 0o644)
    [command] = remedy_in(lambda: load_private("site.key"), r"Run `(chmod 600 \S+)`").groups()
    shell(command)
    load_private("site.key")
    [ending] = remedy_in(lambda: load_private("site.key.pub"), r"Name the file without `(\S+)`").groups()
    load_private("site.key.pub".removesuffix(ending))
    remedy_in(lambda: make_site_key(Path("site.key")), "choose another name")
    make_site_key(Path("another.key"))
    Path("phrase").write_bytes(b"two\nlines\n")
    os.chmod("phrase", 0o600)
    for text in (b"two\nlines\n", b"short\n"):
        Path("phrase").write_bytes(text)
        [command] = remedy_in(lambda: read_passphrase(Path("phrase"), new=True), r"`([^`]*openssl[^`]*)`").groups()
        shell(command.replace("FILE", "phrase"))
        read_passphrase(Path("phrase"), new=True)
    Path("phrase").write_bytes(b"")
    remedy_in(lambda: read_passphrase(Path("phrase")), "Check that it is the right file")


@tries(
    f"{KEYS}parse_public | A private key",
    f"{KEYS}parse_public | {{other}}",
    f"{CERTIFICATES}load_certificates | Use the file",
    f"{CERTIFICATES}load_certificates | It begins",
    f"{CERTIFICATES}load_pem_key | Check that",
)
def test_the_right_one_of_two_files() -> None:
    make_site_key(Path("site.key"))
    text = Path("site.key").read_text()
    [ending] = remedy_in(lambda: parse_public(text, "the key"), r"Send the file that ends in `(\S+)`, as").groups()
    [named] = remedy_in(
        lambda: load_public("site.key"), r"Name the file of the public key: it ends in `(\S+)`"
    ).groups()
    assert named == ending
    public = load_public(f"site.key{ending}")
    Path("other.txt").write_text("no key")
    [start] = remedy_in(lambda: load_public("other.txt"), r"its one line begins with `(\S+)`").groups()
    assert Path("site.key.pub").read_text().startswith(start)
    remedy_in(lambda: parse_public("ecdsa-sha2-nistp384 AAAA", "the key"), r"\.pub")
    assert public_text(parse_public(Path("site.key.pub").read_text(), "the key")) == public_text(public)
    _, key = make_authority(Path("ca")).issue_server(["fl.example.org"], [], Path("coordinator"))
    [ending] = remedy_in(lambda: load_certificates(key.read_bytes(), "it"), r"ends in `(\S+)`").groups()
    load_certificates(key.with_suffix(ending).read_bytes(), "it")
    [first] = remedy_in(lambda: load_certificates(b"no", "it"), r"begins with `([^`]+)`").groups()
    assert key.with_suffix(ending).read_text().startswith(first)
    certificate = key.with_suffix(ending)
    certificate.chmod(0o600)
    remedy_in(lambda: load_pem_key(str(certificate)), "the right file")
    load_pem_key(str(key))


@tries(
    f"{ROSTER}RosterEntry.__post_init__ | Use",
    f"{ROSTER}RosterEntry.__post_init__ | Say how",
    f"{ROSTER}Roster.__post_init__ | Give each",
    f"{ROSTER}Roster.__post_init__ | Each site",
    f"{ROSTER}check_site_name | Use",
    f"{ROSTER}check_site_name | Write letters",
    f"{ROSTER}_check_text",
)
def test_entries_of_a_roster() -> None:
    make_site_key(Path("a.key"))
    make_site_key(Path("b.key"))
    a, b = (public_text(load_public(f"{name}.key.pub")) for name in "ab")

    def entry(
        name: str = "a", key: str = a, institution: str = "A", role: str = "train", **more: object
    ) -> RosterEntry:
        return RosterEntry(name, key, institution, role, "2026-01-01T00:00:00+00:00", **more)

    roles = remedy_in(lambda: entry(role="boss"), r"Use (\w+)").groups()
    entry(role=roles[0])
    remedy_in(lambda: entry(max_images=0), "how many images the site has at most")
    entry(max_images=100)
    remedy_in(lambda: entry(institution=""), "Say what the institution is")
    entry(institution="Hospital A")
    remedy_in(lambda: Roster((entry(), entry(key=b))), "its own name")
    remedy_in(lambda: Roster((entry(), entry("b"))), "`fed-diffmic provision site-key FILE`")
    roster = Roster((entry(), entry("b", b)))
    remedy_in(lambda: roster.site("c"), "it has a, b")
    roster.site("b")
    remedy_in(lambda: check_site_name("a/b"), "printable text without")
    remedy_in(lambda: check_site_name("e\u0301"), "one character")
    check_site_name("\u00e9")


@tries(
    f"{AUTHORITY}self_signed",
    f"{AUTHORITY}_days",
    f"{AUTHORITY}_dns_name | Give addresses",
    f"{AUTHORITY}_dns_name | Give the bare",
    f"{AUTHORITY}_address | Give names",
    f"{AUTHORITY}_address | Give the address",
    "fed_diffmic/provision/kit.py::check_address",
    "fed_diffmic/commands/provision.py::_server",
)
def test_names_and_addresses_of_a_coordinator(says, works) -> None:
    """Each remedy laid over the command that was refused."""
    said = says("provision", "ca", "ca", "--name", "x" * 65)
    assert re.search(r"one line of 1 to 64 characters", said)
    said = says("provision", "ca", "ca", "--days", 40000)
    [most] = re.search(r"at most (\d+)", said).groups()
    works("provision", "ca", "ca", "--name", "x" * 64, "--days", most)
    server = ("provision", "server", "coordinator", "--ca", "ca")
    [option] = re.search(r"addresses by `(--address)`", says(*server, "--name", "10.0.0.1")).groups()
    assert "it as the name" not in says(*server, option, "0.0.0.0")
    [other] = re.search(r"names by `(--name)`", says(*server, option, "fl.example.org")).groups()
    [bare] = re.search(r"bare name, such as (\S+):", says(*server, other, "https://fl.example.org")).groups()
    assert re.search(r"Use 1 to 65535", says(*server, "--port", 0))
    works(*server, option, "10.0.0.1", other, bare, "--port", 65535)
    works("provision", "site-key", "a.key")
    digits = re.search(r"\b\d{5}(?:-\d{5}){5}\b", works("provision", "fingerprint", "a.key.pub"))[0].replace("-", " ")
    who = ("provision", "enrol", "a", "--key", "a.key.pub", "--institution", "A", "--fingerprint", digits, *CONFIG)
    works(*who)
    kit = ("provision", "kit", "a", "--out", "a.kit", *CONFIG)
    [example] = re.search(r"for example (\S+);", says(*kit, "--address", "https://fl.example.org")).groups()
    works(*kit, "--address", example)


@tries(
    f"{PARTS}asked | Give them",
    f"{PARTS}confirm_key",
    f"{ROSTER}Roster.site",
    f"{ROSTER}Roster.rekey",
    f"{ROSTER}Roster.__post_init__ | A revoked",
    f"{COORDINATOR}checked_address",
    f"{COORDINATOR}renew_server",
    f"{COORDINATOR}distrust | First",
    f"{COORDINATOR}needed",
    f"{SITE}open_kit | Give the table",
    f"{SITE}open_kit | For a newer",
    "fed_diffmic/provision/kit.py::check_follows | Open it",
    f"{SITE}_check_digits | Type all",
    f"{SITE}_check_digits | Have them",
    "fed_diffmic/commands/provision.py::_open_kit",
)
def test_a_site_joins_opens_its_kit_and_comes_back(capsys) -> None:
    people = Consortium(capsys)
    people.runs("ca", "ca", "--name", "Consortium")
    Path("bare.yaml").write_text("model: tiny\n")
    [command] = re.search(
        r"`fed-diffmic provision (server)` writes", people.fails("roster", "--config", "bare.yaml")
    ).groups()
    people.runs(command, "coordinator", "--ca", "ca", "--name", "fl.example.org")
    assert "`fed-diffmic provision enrol` adds the first" in people.fails("kit", "a", "--out", "a.kit", *CONFIG)
    digits = people.digits(people.runs("site-key", "a/site.key"))
    enrol = ("enrol", "a", "--key", "a/site.key.pub", "--institution", "A", *CONFIG)
    [option] = re.search(r"`(--fingerprint) DIGITS`", people.fails(*enrol)).groups()
    said = people.fails(*enrol, option, " ".join(["12345"] * 6))
    [again] = re.search(r"`fed-diffmic provision (fingerprint) FILE.pub`", said).groups()
    people.runs(*enrol, option, people.digits(people.runs(again, "a/site.key.pub")))
    assert digits
    said = people.fails("kit", "a", "--out", "a.kit", *CONFIG, "--address", "new.example.org:9443")
    [renew] = re.search(r"`fed-diffmic provision (renew server FOLDER --ca FOLDER --name HOST)`", said).groups()
    words = renew.replace("FOLDER --ca FOLDER", "coordinator --ca ca").replace("HOST", "new.example.org").split()
    people.runs(*words)
    kit = people.kit("a", "a.kit", "--address", "new.example.org:9443")
    opening = ("open-kit", "a.kit", "--key", "a/site.key", "--folder", "a")
    assert "Type all of them" in people.fails(*opening, "--fingerprint", "12345")
    assert "Have them read again" in people.fails(*opening, "--fingerprint", " ".join(["12345"] * 6))
    assert "leave --data out" in people.fails(*opening, "--fingerprint", kit, "--data", "none.csv")
    people.runs(*opening, "--fingerprint", kit)
    newer = people.kit("a", "a2.kit")
    opening = ("open-kit", "a2.kit", "--key", "a/site.key", "--folder", "a")
    [update] = re.search(r"the same command with (--update)", people.fails(*opening, "--fingerprint", newer)).groups()
    assert "Change dataset.root there" in people.fails(*opening, update, "--data", "none.csv")
    people.runs(*opening, update)
    key = "a/site.key.pub"
    rekey = ("renew", "site", "a", *CONFIG, "--fingerprint", digits, "--key")
    assert "a new one under a new file name" in people.fails(*rekey, key)
    people.runs("revoke", "a", "--reason", "lost", *CONFIG)
    assert "the site makes a new one" in people.fails("enrol", "b", "--key", key, *enrol[4:], "--fingerprint", digits)
    fresh = people.digits(people.runs("site-key", "a/second.key"))
    people.runs("enrol", "b", "--key", "a/second.key.pub", *enrol[4:], "--fingerprint", fresh)
    of_b = people.kit("b", "b.kit")
    other = ("open-kit", "b.kit", "--key", "a/second.key", "--update", "--folder")
    assert "Open it in that site's own folder" in people.fails(*other, "a")
    people.runs("open-kit", "b.kit", "--key", "a/second.key", "--folder", "b", "--fingerprint", of_b)
    people.runs("ca", "ca2", "--name", "Second")
    server = ("renew", "server", "coordinator", "--ca", "ca2")
    [trust] = re.search(r"`fed-diffmic provision (renew trust FOLDER --ca NEWFOLDER)`", people.fails(*server)).groups()
    people.runs(*trust.replace("FOLDER --ca NEWFOLDER", "coordinator --ca ca2").split())
    drop = ("renew", "trust", "coordinator", "--drop", "ca")
    [first] = re.search(r"`fed-diffmic provision (renew server FOLDER --ca NEWFOLDER)`", people.fails(*drop)).groups()
    people.runs(*first.replace("FOLDER --ca NEWFOLDER", "coordinator --ca ca2").split())
    people.runs(*drop)
