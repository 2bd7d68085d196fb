"""What a stolen disk, a backup or a copied folder gives away: no key that opens, no image of a site that withdrew."""

import gc
import re
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization as S
from flwr.supercore.inflatable.inflatable_object import get_object_id
from PIL import Image

from client.control import WITHDRAW, read_control
from client.copies import copies_folder, site_copies
from client.housekeeping import Housekeeping
from client.leaving import forget
from fed_diffmic import cli
from fed_diffmic.config.compose import compose_site
from fed_diffmic.data.cache import build_cache
from fed_diffmic.errors import CredentialError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.credentials import read_passphrase
from fed_diffmic.provision.keys import load_private, make_site_key, private_bytes
from fed_diffmic.provision.roster import Roster, RosterEntry, utc_now
from fed_diffmic.transport.contact import read_contact
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.processes import free_port, lock_file
from fed_diffmic.transport.spool import Spool
from fed_diffmic.transport.superlink import LinkSettings, start_superlink
from fed_diffmic.transport.supernode import INBOX, NodeSettings, start_supernode
from tests.transport.test_spool import CONTENT, NAME, reply, request

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


KEPT_OF_A_SITE = ("audit.jsonl", "privacy/ledger.jsonl", "floors.json", "studies/r.json", "model/m.safetensors")


def withdrawing_site(tmp_path, cache: Path | None):
    """A site with images, their decoded copy, what it kept of runs, and what it must go on keeping."""
    site, images = tmp_path / "site", tmp_path / "data"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(images / f"{number}.png")
    for name in (*KEPT_OF_A_SITE, "bases/b.safetensors", "states/s.safetensors", "updates/u.safetensors"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    config = tmp_path / "site.yaml"
    place = "" if cache is None else f", cache_dir: {cache}"
    config.write_text(f"site: {{name: a, folder: {site}}}\ndataset: {{name: table, root: {images}{place}}}\n")
    composed = compose_site(config, [])
    paths = sorted(map(str, images.iterdir()))
    built = build_cache(paths, image_side=16, folder=copies_folder(composed))
    site_copies(composed).use("run", built.name)
    decoded = built.images([0]).numpy().tobytes()
    return config, composed, built, decoded


def holding(folder: Path, pixels: bytes) -> list[Path]:
    """Files below a folder that hold the pixels of an image."""
    return [path for path in folder.rglob("*") if path.is_file() and pixels in path.read_bytes()]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_withdrawn_site_keeps_no_image_and_what_it_must_answer_for(tmp_path, elsewhere, capsys):
    cache = tmp_path / "cache" if elsewhere else None
    config, composed, built, decoded = withdrawing_site(tmp_path, cache)
    site = tmp_path / "site"
    home = copies_folder(composed)
    others = home / "images-cache" / "other.u8"  # of another site that shares the place
    if elsewhere:
        others.write_bytes(b"not this site's")
    pixels = decoded[:64]
    assert holding(home, pixels)
    # while a process holds the copy, that is said, and nothing pretends to be done
    assert cli.main(["client", "withdraw", "--config", str(config)]) == 6
    assert "NOT removed: 1 decoded copies that another process uses" in capsys.readouterr().out
    del built
    gc.collect()
    assert cli.main(["client", "withdraw", "--config", str(config)]) == 0
    assert "MB of decoded images" in capsys.readouterr().out
    assert holding(site, pixels) == holding(home, pixels) == []
    assert list(home.rglob("*.u8")) == ([others] if elsewhere else [])
    assert all((site / name).read_text() == name for name in KEPT_OF_A_SITE)
    assert not [part for part in ("bases", "states", "updates") if (site / part).exists()]


def test_a_running_client_is_left_to_remove_it_and_one_that_starts_withdrawn_does(tmp_path, capsys, caplog):
    config, composed, built, decoded = withdrawing_site(tmp_path, None)
    site = tmp_path / "site"
    del built
    gc.collect()
    (site / "run").mkdir()
    with lock_file(site / "run" / "site.lock"):
        assert cli.main(["client", "withdraw", "--config", str(config)]) == 0
    assert "The running client removes" in capsys.readouterr().out
    assert holding(site, decoded[:64])
    assert read_control(site).state == WITHDRAW
    Housekeeping(composed, site).forget()
    assert not holding(site, decoded[:64])
    assert "0.0 MB of decoded images" in caplog.text


def test_what_was_computed_for_the_request_in_hand_goes_and_the_request_stays(tmp_path):
    _, composed, built, _ = withdrawing_site(tmp_path, None)
    del built
    gc.collect()
    spool = Spool(tmp_path / "site" / INBOX)
    spool.begin(request())
    spool.put(NAME, CONTENT)
    computed = get_object_id(b"an update")
    spool.put(computed, b"an update")
    spool.keep_reply(reply())
    forget(composed, tmp_path / "site")
    assert spool.request() is not None and spool.get(NAME) == CONTENT
    assert not spool.has_reply() and spool.get(computed) is None
