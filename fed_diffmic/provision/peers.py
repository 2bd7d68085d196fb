"""The sites whose keys a site accepts in masked sums: its own roster of the others, and not the coordinator's.

The kit brings names and public keys of the other sites under the coordinator's signature. That is a proposal: who could
write into this roster would make up as many sites as it likes, and learn an update as a sum over itself. So a key
counts only when a person here typed the digits that a person there read by phone: those of the key, as the site read
them to the coordinator when it enrolled. What was accepted lies in the site's folder (``peers.json``, 0600).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fed_diffmic.errors import CredentialError, ModelFileError
from fed_diffmic.files import private_folder, read_json, write_json
from fed_diffmic.provision.keys import PublicKey, fingerprint, parse_public, public_text, same_digits
from fed_diffmic.provision.kit import Kit
from fed_diffmic.provision.roster import check_site_name, utc_now

FILE = "peers.json"
_VERSION = 1
_FIELDS = {"name", "public_key", "accepted"}


@dataclass(frozen=True)
class Peer:
    """Another site whose key was accepted.

    Args:
        name: in the coordinator's roster.
        public_key: one line of OpenSSH text.
        accepted: UTC time, ISO 8601.
    """

    name: str
    public_key: str
    accepted: str

    def __post_init__(self) -> None:
        check_site_name(self.name)
        if not isinstance(self.accepted, str) or not 0 < len(self.accepted) <= 64:
            raise CredentialError(f"peer {self.name!r} was accepted at no time", "Accept it again.")
        object.__setattr__(self, "public_key", public_text(parse_public(self.public_key, f"key of {self.name!r}")))

    @property
    def key(self) -> PublicKey:
        """The public key itself."""
        return parse_public(self.public_key)


def load_peers(folder: str | os.PathLike[str]) -> dict[str, Peer]:
    """What the site accepted, by name; nothing where nothing was.

    Args:
        folder: of the site.

    Raises:
        CredentialError: the file cannot be used, or holds one name or one key twice.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return {}
    try:
        value = read_json(path)
        if not isinstance(value, dict) or set(value) != {"version", "peers"} or value["version"] != _VERSION:
            raise ValueError(f"it must hold version {_VERSION} and peers")
        if not isinstance(value["peers"], list) or any(
            not isinstance(one, dict) or set(one) != _FIELDS for one in value["peers"]
        ):
            raise ValueError(f"each peer must hold {', '.join(sorted(_FIELDS))} and nothing else")
        peers = [Peer(**one) for one in value["peers"]]
        _check_distinct(peers)
    except (ModelFileError, ValueError, TypeError, CredentialError) as error:
        said = error.cause if isinstance(error, (ModelFileError, CredentialError)) else str(error)
        raise CredentialError(
            f"the site's roster of its peers cannot be used: {said}",
            "Restore peers.json in site.folder from the backup, or remove it and accept each peer again by its digits.",
        ) from error
    return {peer.name: peer for peer in peers}


def accept_peer(
    folder: str | os.PathLike[str], kit: Kit, name: str, digits: str, *, before: Callable[[Peer], None]
) -> Peer:
    """Accept another site's key as the opened kit has it; one that was accepted before is replaced.

    Args:
        folder: of the site.
        kit: the opened one.
        name: of the other site.
        digits: as they were read by phone by its people.
        before: called when all is well and nothing is written yet.

    Raises:
        CredentialError: the kit names no such site, these are not the key's digits, or another site has the same key.
    """
    proposed = proposal(kit, name)
    if not same_digits(digits, fingerprint(proposed.key)):
        raise CredentialError(
            f"these are not the digits of the key that the kit gives for {name!r}",
            "Have its people read them again (`fed-diffmic provision fingerprint FILE.pub`, there). If they differ "
            "still, the coordinator's kit names another key than that site's own: do not accept it, and ask both why.",
        )
    peers = load_peers(folder)
    found = {**peers, name: replace(proposed, accepted=utc_now())}
    _check_distinct(found.values())
    before(found[name])
    _save(folder, found)
    return found[name]


def remove_peer(folder: str | os.PathLike[str], name: str) -> Peer:
    """Accept a site's key no longer, from the next step of a masked sum on.

    Raises:
        CredentialError: it was not accepted.
    """
    peers = load_peers(folder)
    if name not in peers:
        known = ", ".join(sorted(peers)) or "none"
        raise CredentialError(f"{name!r} is no accepted peer; accepted: {known}", "Check the name.")
    gone = peers.pop(name)
    _save(folder, peers)
    return gone


def proposal(kit: Kit, name: str) -> Peer:
    """A site as the kit names it.

    Raises:
        CredentialError: it names none of that name.
    """
    if name not in kit.peers:
        known = ", ".join(sorted(kit.peers)) or "none"
        raise CredentialError(
            f"the opened kit names no other site {name!r}; it names {known}",
            "Check the name; for a site that joined later ask the coordinator for a new kit, and open it with "
            "`fed-diffmic provision open-kit --update`.",
        )
    return Peer(name, kit.peers[name], "in the kit")


def standing(kit: Kit | None, peers: Mapping[str, Peer]) -> list[tuple[str, str, str]]:
    """Every site that the kit names or that was accepted: name, the digits of its key, and how it stands here."""
    proposed = {} if kit is None else {name: proposal(kit, name) for name in kit.peers}
    found = []
    for name in sorted(proposed.keys() | peers.keys()):
        peer, said = peers.get(name), proposed.get(name)
        if peer is None and said is not None:
            # The digits are not shown: they must come from the other site, by phone.
            found.append((name, "", "not accepted"))
        elif peer is not None and said is not None and said.public_key != peer.public_key:
            found.append((name, fingerprint(peer.key), "accepted; the kit names another key: accept that one by phone"))
        elif peer is not None:
            missing = "" if said is not None or kit is None else "; the latest kit does not name it"
            found.append((name, fingerprint(peer.key), f"accepted {peer.accepted}{missing}"))
    return found


def peer_keys(folder: str | os.PathLike[str], name: str, own: PublicKey) -> dict[str, PublicKey]:
    """The keys that count at a site: those of its accepted peers, and its own.

    Args:
        name: of the site itself.
        own: its key.

    Raises:
        CredentialError: what was accepted cannot be read.
    """
    return {**{peer.name: peer.key for peer in load_peers(folder).values()}, name: own}


def _check_distinct(peers: Iterable[Peer]) -> None:
    names: set[str] = set()
    keys: dict[str, str] = {}
    for peer in peers:
        if peer.name.casefold() in names:
            raise CredentialError(
                f"two peers have the name {peer.name!r}",
                "Each site has one name: take the other one out with `fed-diffmic provision peers remove SITE --config "
                "FILE`.",
            )
        if peer.public_key in keys:
            raise CredentialError(
                f"the sites {keys[peer.public_key]!r} and {peer.name!r} have one and the same key",
                "One key is one site: ask the coordinator why its roster has it twice. `fed-diffmic provision peers "
                "remove SITE --config FILE` takes one out.",
            )
        names.add(peer.name.casefold())
        keys[peer.public_key] = peer.name


def _save(folder: str | os.PathLike[str], peers: Mapping[str, Peer]) -> None:
    value = {"version": _VERSION, "peers": [asdict(peers[name]) for name in sorted(peers)]}
    write_json(private_folder(folder) / FILE, value, mode=0o600)
