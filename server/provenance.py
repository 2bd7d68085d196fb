"""What the coordinator states, under its signature, about how a final model came to be."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fed_diffmic.exchange.audit import Head
from fed_diffmic.privacy.statement import last_claims, last_client_level
from fed_diffmic.release.provenance import code_facts

if TYPE_CHECKING:
    from server.checkpoints import RunState


def provenance_facts(state: RunState, head: Head | None) -> dict[str, Any]:
    """Configuration, code, sites, rounds with the digests of their payloads, and heads of the audit logs' chains.

    Args:
        state: of the run, all stages ended.
        head: of the coordinator's own chain, or none.
    """
    heads: dict[str, Any] = {}
    for row in state.history:
        heads |= row.get("heads", {})
    rounds = [
        {
            "stage": row["stage"],
            "round": row["round"],
            "weights": row.get("weights", ""),
            "payloads": row.get("payloads", {}),
            "missing": sorted(row.get("missing", {})),
        }
        for row in state.history
    ]
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: value for name, value in state.settings.items() if name != "spec"},
        "code": code_facts(),
        "sites": state.counts,
        "rounds": rounds,
        "heads": heads,
        "privacy": last_claims(state.history),
        "client_level": last_client_level(state.history),
        "coordinator_head": None if head is None else asdict(head),
        "bytes_sent": state.bytes_sent,
    }
