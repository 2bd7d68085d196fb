"""What a stolen disk, a backup or a copied folder gives away: no key that opens, no image of a site that withdrew."""

import re
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as S

from fed_diffmic.errors import CredentialError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.credentials import read_passphrase
from fed_diffmic.provision.keys import load_private, make_site_key, private_bytes
from fed_diffmic.provision.roster import Roster, RosterEntry, utc_now
from fed_diffmic.transport.contact import read_contact
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.processes import free_port
from fed_diffmic.transport.superlink import LinkSettings, start_superlink
from fed_diffmic.transport.supernode import NodeSettings, start_supernode

BOUND_S = 120.0


@pytest.fixture
def phrase(tmp_path):
    path = tmp_path / "elsewhere" / "phrase"
    path.parent.mkdir()
    path.write_text("a passphrase that lies elsewhere\n")
    path.chmod(0o600)
    return path


def secrets_of(key) -> list[bytes]:
    """What an open copy of a key must hold in one of the forms in which keys lie in files."""
    number = key.private_numbers().private_value.to_bytes(48, "big")
    forms = [
        key.private_bytes(S.Encoding.PEM, form, S.NoEncryption())
        for form in (S.PrivateFormat.PKCS8, S.PrivateFormat.TraditionalOpenSSL)
    ]
    return [number, number.hex().encode(), *(line for form in forms for line in form.splitlines()[1:3])]


def open_copies(folder: Path, key) -> list[Path]:
    """Files below a folder that hold a key as it is, or a private key in a form that opens without a passphrase."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        opens = False
        for block in re.findall(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", data, re.S):
            load = S.load_ssh_private_key if b"OPENSSH" in block else S.load_pem_private_key
            try:
                opens = opens or bool(load(block + b"\n", None))
            except (TypeError, ValueError):
                continue
        if opens or any(secret in data for secret in secrets_of(key)):
            found.append(path)
    return found


def test_a_copied_folder_holds_no_key_that_opens_also_while_a_supernode_and_a_superlink_run(tmp_path, phrase):
    """Both children start with locked keys, over TLS, and the coordinator knows the site by its key."""
    site, coordinator = tmp_path / "site", tmp_path / "coordinator"
    authority = make_authority(coordinator / "ca", passphrase=phrase)
    public = make_site_key(site / "site.key", read_passphrase(phrase, new=True))
    for name, (data, mode) in authority.server_files([], [], passphrase=read_passphrase(phrase)).items():
        (coordinator / name).write_bytes(data)
        (coordinator / name).chmod(mode)
    roster = coordinator / "roster.json"
    Roster((RosterEntry("one", public, "Klinik", "train", utc_now()),)).save(roster)
    settings = LinkSettings(
        folder=str(coordinator / "link"),
        host="127.0.0.1",
        port=free_port(),
        certificate=str(coordinator / "server.crt"),
        key=str(coordinator / "server.key"),
        key_passphrase=str(phrase),
        ca=str(coordinator / "ca/ca.crt"),
        roster=str(roster),
    )
    for name in ("run", "logs"):
        (site / name).mkdir()
    key = load_private(site / "site.key", phrase)
    link = start_superlink(settings, BOUND_S)
    node = None
    try:
        Control(link).register([entry.public_key for entry in Roster.load(roster).sites])
        node = start_supernode(
            NodeSettings(
                address=f"127.0.0.1:{link.public_port}",
                folder=str(site),
                run=str(site / "run"),
                secret="ab" * 32,
                ca=str(coordinator / "ca/ca.crt"),
                key=str(site / "site.key"),
                key_passphrase=str(phrase),
            ),
            site / "logs/supernode.log",
        )
        until = time.monotonic() + BOUND_S
        while not ((said := read_contact(site / "run")) and said.connected):
            assert time.monotonic() < until and node.poll() is None, (site / "logs/supernode.log").read_text()
            assert open_copies(site, key) == []
            time.sleep(0.05)
        assert open_copies(site, key) == []
        assert open_copies(coordinator, key) == []
        command = Path(f"/proc/{node.pid}/cmdline").read_bytes() + Path(f"/proc/{node.pid}/environ").read_bytes()
        assert b"a passphrase that lies elsewhere" not in command
    finally:
        if node is not None:
            node.kill()
        link.child.kill()
    assert open_copies(tmp_path, key) == []
    for path in (site / "site.key",):
        with pytest.raises(CredentialError, match="none was given"):
            load_private(path)


def test_the_search_finds_an_open_copy(tmp_path, phrase):
    make_site_key(tmp_path / "site.key", read_passphrase(phrase))
    key = load_private(tmp_path / "site.key", phrase)
    (tmp_path / "log").write_bytes(b"words " + private_bytes(key) + b" words")
    (tmp_path / "raw").write_bytes(b"x" + secrets_of(key)[0])
    assert sorted(path.name for path in open_copies(tmp_path, key)) == ["log", "raw"]
