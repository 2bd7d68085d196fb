"""What a real coordinator adds to the round loop, and a simulation does not: who may speak for whom, and the log.

The round loop calls a :class:`Hooks` in every case; one without an audit log writes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fed_diffmic.exchange.audit import AuditLog, Head
from fed_diffmic.provision.keys import PrivateKey

NamesOfNodes = Callable[[], Mapping[int, str]]


@dataclass(frozen=True)
class Hooks:
    """What a real coordinator adds.

    Attributes:
        names_of_nodes: the site that each of Flower's nodes is, by its key in the roster; asked at every exchange,
            so that a site removed from the roster is dropped. None: a node is whom it says it is.
        audit: the coordinator's own log.
        signer: signs the final model's provenance.
        max_update_norm: the largest L2 norm of a site's update that is taken.
    """

    names_of_nodes: NamesOfNodes | None = None
    audit: AuditLog | None = None
    signer: PrivateKey | None = None
    max_update_norm: float = math.inf

    def log(self, kind: str, **facts: Any) -> None:
        """A line of the audit log, if there is one."""
        if self.audit is not None:
            self.audit.append(kind, **facts)

    def head(self) -> Head | None:
        """Where the coordinator's own chain stands."""
        return None if self.audit is None else self.audit.head()
