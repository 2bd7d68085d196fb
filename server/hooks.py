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
from fed_diffmic.provision.keys import PrivateKey
from server.bounds import Bounds
from server.seals import Seals

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
        max_update_norm: the largest L2 norm of a site's update that is taken.
        most_images: how many images a site may say that it has, for the sites whose entry in the roster says so; asked
            whenever a site says who it is. None: there is no roster.
        bounds: how far one site may move the run; a simulation may have them too.
        seals: seals requests and opens replies; needs ``audit``. None: nothing is sealed (a simulation, a trial).

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

    def __post_init__(self) -> None:
        if self.seals is not None and self.audit is None:
            raise ValueError("a seal names the head of the coordinator's audit log, and there is none")

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

    def head(self) -> Head | None:
        """Where the coordinator's own chain stands."""
        return None if self.audit is None else self.audit.head()
