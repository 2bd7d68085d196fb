"""Masked sums at this site: whether enough other sites were accepted, and whether its rules hold against a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from client.preflight.check import Check, failed, passed, warning
from client.preflight.credentials import read_kit
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import CredentialError
from fed_diffmic.exchange.masking.session import STRANGER, MaskingError, Session
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import MemoryStore
from fed_diffmic.provision.keys import PrivateKey, load_private
from fed_diffmic.provision.peers import load_peers, peer_keys, standing

NAME = "credentials.peers"
_ACCEPT = "`fed-diffmic provision peers accept SITE --config FILE`, with that site's people on the phone."


def check_peers(config: SiteConfig) -> Iterator[Check]:
    """What a masked sum would meet here, by the site's policy and by the keys that its people accepted."""
    way, rule, need = config.coordinator, config.policy.secure_aggregation, config.policy.min_sites
    if rule == "off" or way.insecure or way.key is None:
        yield passed(NAME, "this site takes part in no masked sum")
        return
    peers = load_peers(str(config.site.folder))
    if len(peers) < need and rule == "required":
        yield failed(
            NAME,
            f"every run will be refused: policy.secure_aggregation is required, and {len(peers)} other sites are "
            f"accepted where policy.min_sites is {need}",
            f"Accept them by their digits: {_ACCEPT}",
            exit_code=CredentialError.exit_code,
            accepted=len(peers),
        )
        return
    others = [f"{name}: {said}" for name, _, said in standing(read_kit(way), peers) if "kit" in said]
    if others:
        yield warning(NAME, "; ".join(others), f"Ask both, then accept or remove it: {_ACCEPT}")
    if len(peers) < need:
        yield passed(NAME, f"masked sums would be refused ({len(peers)} other sites are accepted, {need} are needed)")
        return
    key = load_private(way.key, way.key_passphrase)
    if not _holds(config, key):
        yield failed(NAME, "a masked sum with a stranger was not refused", "This is a defect: report it.", exit_code=1)
        return
    yield passed(NAME, f"masked sums over {need} other sites or more, of {len(peers)} that are accepted; a stranger "
                       "among them is refused", accepted=len(peers))  # fmt: skip


def _holds(config: SiteConfig, key: PrivateKey) -> bool:
    """Whether a sum with the accepted sites is begun, and one with a stranger, or with too few, is not."""
    name, folder, need = config.site.name, Path(str(config.site.folder)), config.policy.min_sites
    part = MaskingSite(name, key, peer_keys(folder, name, key.public_key()), MemoryStore(), need)
    session = Session("preflight", "federated", "guidance", "train", 1, 1, "trial", 64, 40, 1)
    known = sorted(part.roster)
    part.advertise(session, known)
    try:
        part.advertise(session, [*known, "a stranger of preflight"])
    except MaskingError as error:
        return error.reason == STRANGER
    return False
