"""What a real coordinator adds to the round loop, and a simulation does not: who may speak for whom, and the log.

The round loop calls a :class:`Hooks` in every case; one without an audit log writes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fed_diffmic.exchange.audit import AuditLog, Head
from fed_diffmic.exchange.payload import Limits, Wire
from fed_diffmic.provision.keys import PrivateKey, PublicKey, fingerprint
from server.bounds import Bounds
from server.ledgers import LedgerMemory
from server.seals import Seals
from server.unnamed import new_label

NamesOfNodes = Callable[[], Mapping[int, str]]
MostImages = Callable[[], Mapping[str, int]]


@dataclass(frozen=True)
class Hooks:
    """What a real coordinator adds.

    Attributes:
        names_of_nodes: the site that each of Flower's nodes is, by its key in the roster; asked at every exchange,
            so that a site removed from the roster is dropped. None: a node is whom it says it is.
        audit: the coordinator's own log.
        signer: signs the final model's provenance.
        ledgers: what was seen of the sites' privacy ledgers, over all runs.
        max_update_norm: the largest L2 norm of a site's update that is taken.
        most_images: how many images a site may say that it has, for the sites whose entry in the roster says so; asked
            whenever a site says who it is. None: there is no roster.
        bounds: how far one site may move the run; a simulation may have them too.
        seals: seals requests and opens replies; needs ``audit``. None: nothing is sealed (a simulation, a trial).
        labels: what nodes are called that no roster names.

    Raises:
        ValueError: seals without an audit log.
    """

    names_of_nodes: NamesOfNodes | None = None
    audit: AuditLog | None = None
    signer: PrivateKey | None = None
    max_update_norm: float = math.inf
    most_images: MostImages | None = None
    bounds: Bounds = field(default_factory=Bounds)
    seals: Seals | None = None
    ledgers: LedgerMemory | None = None
    labels: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seals is not None and self.audit is None:
            raise ValueError("a seal names the head of the coordinator's audit log, and there is none")

    def echo(self, site: str) -> str:
        """What was seen last of a site's privacy ledger, in any run; empty: nothing."""
        return "" if self.ledgers is None else self.ledgers.echo(site)

    def saw(self, site: str, header: Mapping[str, Any]) -> None:
        """Keep what a good reply says of the site's privacy ledger."""
        if self.ledgers is not None and header.get("ledger"):
            self.ledgers.saw(site, header["ledger"], header.get("claim", ""), header["run"])

    def log(self, kind: str, **facts: Any) -> None:
        """A line of the audit log, if there is one."""
        if self.audit is not None:
            self.audit.append(kind, **facts)

    def sealed(self, wire: Wire, node: int, named: str) -> Wire | None:
        """A request to a node as it travels, sealed behind its own line of the log; none: the roster admits it no more.

        Args:
            named: what the node is called where there is no roster.
        """
        if self.seals is None or self.audit is None:
            return wire
        to = self._name_of(node, named)
        return None if to is None else self.seals.seal(wire, to=to, head=self.audit.head())

    def opened(self, wire: Wire, node: int, named: str, *, request: str, limits: Limits) -> tuple[Wire, dict[str, str]]:
        """A reply as its site encoded it, and what its seal adds to the line of the log.

        Args:
            node: the node that was asked, whoever the reply seems to come from.
            named: what the node is called where there is no roster.
            request: name of the request.
            limits: what is expected at most.

        Raises:
            SealError: it is not the site's own answer to this request.
            PayloadError: it cannot be read.
        """
        if self.seals is None:
            return wire, {}
        opened, seal = self.seals.open(wire, request=request, site=self._name_of(node, named) or "", limits=limits)
        return opened, seal.signed.facts()

    def _name_of(self, node: int, named: str) -> str | None:
        return named if self.names_of_nodes is None else self.names_of_nodes().get(node)

    def called(self, node: int, bound: Mapping[int, str] | None) -> str:
        """What a node is called before it has said who it is: by its key in the roster, else by a random label.

        Never by Flower's number: logs are shown to other sites, and who knows the number may send it messages.

        Args:
            node: Flower's number.
            bound: the sites of the roster by node; none: there is no roster.
        """
        known = None if bound is None else bound.get(node)
        return known or self.labels.setdefault(node, new_label())

    def is_removed(self, node: int, site: str) -> bool:
        """Whether the roster no longer names the site that this node was."""
        return self.names_of_nodes is not None and self.names_of_nodes().get(node) != site

    def fingerprint_of(self, site: str) -> str:
        """Of an admitted site's key; empty where there is no roster."""
        key = None if self.seals is None else self.seals.key_of(site)
        return "" if key is None else fingerprint(key)

    @property
    def public_key(self) -> PublicKey | None:
        """Public half of the signing key."""
        return None if self.signer is None else self.signer.public_key()

    def head(self) -> Head | None:
        """Where the coordinator's own chain stands."""
        return None if self.audit is None else self.audit.head()
