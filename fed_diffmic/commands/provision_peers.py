"""``fed-diffmic provision peers``: which other sites' keys this site accepts in masked sums."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import DIGITS, asked
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.config.site import SiteConfig

ACTIONS = ("list", "accept", "remove")
_ABOUT = """The other sites that may stand beside this one in a masked sum (docs/secure-aggregation.md).

  fed-diffmic provision peers list --config site.yaml
  fed-diffmic provision peers accept SITE --config site.yaml     its people read the digits of their key by phone
  fed-diffmic provision peers remove SITE --config site.yaml
"""


def register(add: Add) -> None:
    """Add ``provision peers``."""
    peers = add("peers", _peers, "which other sites' keys count in masked sums here: list, accept, remove (site)")
    peers.description = _ABOUT
    peers.add_argument("action", nargs="?", default="list", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    peers.add_argument("name", nargs="?", metavar="SITE", help="accept, remove: the other site")
    peers.add_argument("--config", type=Path, required=True, metavar="FILE", help="this site's site.yaml")
    peers.add_argument("--fingerprint", metavar="DIGITS", help=f"accept: {DIGITS}")


def _peers(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose_site

    config = compose_site(arguments.config, [])
    if config.site.folder is None:
        raise UsageError("site.folder is not set", "Name the site's own folder in its configuration.")
    if arguments.action == "list":
        return _list(config)
    if arguments.name is None:
        raise UsageError(
            f"fed-diffmic provision peers {arguments.action} needs the name of a site",
            "`fed-diffmic provision peers list --config FILE` says them.",
        )
    return _accept(config, arguments) if arguments.action == "accept" else _remove(config, arguments.name)


def _list(config: SiteConfig) -> int:
    from fed_diffmic.provision.peers import load_peers, standing
    from fed_diffmic.provision.site import opened_kit

    peers = load_peers(str(config.site.folder))
    for name, digits, said in standing(opened_kit(config), peers):
        print("  ".join(part for part in (name, digits, said) if part))
    need = config.policy.min_sites
    enough = "enough for" if len(peers) >= need else "too few for"
    print(f"{len(peers)} accepted, {enough} a masked sum: policy.min_sites is {need}")
    return 0


def _accept(config: SiteConfig, arguments: argparse.Namespace) -> int:
    from client.start import site_audit
    from fed_diffmic.files import private_folder
    from fed_diffmic.provision.keys import fingerprint
    from fed_diffmic.provision.peers import FILE, Peer, accept_peer, proposal
    from fed_diffmic.provision.roster import changing
    from fed_diffmic.provision.site import opened_kit

    folder, kit = Path(str(config.site.folder)), opened_kit(config)
    if kit is None:
        raise UsageError(
            "no kit was opened beside coordinator.ca", "`fed-diffmic provision open-kit`: it names the other sites."
        )
    proposal(kit, arguments.name)  # before the call
    digits = asked(arguments.fingerprint, f"The people of {arguments.name} read the digits of their key")

    def written_down(peer: Peer) -> None:
        site_audit(config).append("peer", what="accepted", site=peer.name, key=fingerprint(peer.key))

    private_folder(folder)
    with changing(folder / FILE):
        peer = accept_peer(folder, kit, arguments.name, digits, before=written_down)
    print(f"{peer.name} is accepted: its key counts in masked sums here from the next request on.")
    return 0


def _remove(config: SiteConfig, name: str) -> int:
    from client.start import site_audit
    from fed_diffmic.provision.keys import fingerprint
    from fed_diffmic.provision.peers import FILE, remove_peer
    from fed_diffmic.provision.roster import changing

    folder = Path(str(config.site.folder))
    with changing(folder / FILE):
        peer = remove_peer(folder, name)
    site_audit(config).append("peer", what="removed", site=peer.name, key=fingerprint(peer.key))
    print(f"{peer.name} is no longer accepted: this site does nothing more in a masked sum with it.")
    return 0
