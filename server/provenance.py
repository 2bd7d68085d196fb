"""What the coordinator states, under its signature, about how a final model came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.audit import Head
from fed_diffmic.files import tensors_digest
from fed_diffmic.privacy.statement import last_claims, last_client_level
from fed_diffmic.release.provenance import code_facts
from server.run_state import RunState
from server.stage import exchanged_kinds
from server.strategy import server_algorithm


def provenance_facts(
    run_state: RunState, spec: RunSpec, head: Head | None, last_heads: Mapping[str, Head]
) -> dict[str, Any]:
    """Configuration, code, sites, rounds with the digests of their payloads, and heads of the audit logs' chains.

    Args:
        run_state: of the run, all stages ended.
        spec: of the run.
        head: of the coordinator's own chain, or none.
        last_heads: of the sites' chains, as each last said; those that came with rounds are in the history.

    Raises:
        ModelFileError: a stage's result is not what its best round made.
    """
    heads: dict[str, Any] = {}
    for row in run_state.history:
        heads |= row.get("heads", {})
    heads |= {site: asdict(last) for site, last in sorted(last_heads.items())}
    rounds = [
        {
            "stage": row["stage"],
            "round": row["round"],
            "weights": row.get("weights", ""),
            "candidate": row.get("candidate", ""),
            "payloads": row.get("payloads", {}),
            "missing": sorted(row.get("missing", {})),
        }
        for row in run_state.history
    ]
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: value for name, value in run_state.settings.items() if name != "spec"},
        "code": code_facts(),
        "sites": run_state.counts,
        "rounds": rounds,
        "stages": {stage: stage_facts(run_state, spec, stage) for stage in run_state.results},
        "heads": heads,
        "privacy": last_claims(run_state.history),
        "client_level": last_client_level(run_state.history),
        "coordinator_head": None if head is None else asdict(head),
        "bytes_sent": run_state.bytes_sent,
    }


def stage_facts(run_state: RunState, spec: RunSpec, stage: str) -> dict[str, Any]:
    """What binds a stage's result to the round that made it, and to what the sites were sent.

    Returns:
        ``round`` that was chosen, ``exchanged`` names, digest of those tensors (``candidate``: the very digest that
        the sites' logs have of the last requests), of all others (``base``) and of all together (``result``).

    Raises:
        ModelFileError: the round made other weights.
    """
    result = run_state.results[stage]
    names = sorted(exchanged_kinds(spec, stage, server_algorithm(spec.strategy, spec.stage(stage))))
    rows = [row for row in run_state.history if row["stage"] == stage]
    chosen = rows[-1]["best_round"] if rows else 0
    candidate = tensors_digest({name: result[name] for name in names})
    made = next((row.get("candidate", "") for row in rows if row["round"] == chosen), "")
    if made and made != candidate:
        raise ModelFileError(
            f"the result of stage {stage} is not what round {chosen} made", "Restore the checkpoints of the run."
        )
    return {
        "round": chosen,
        "exchanged": names,
        "candidate": candidate,
        "base": tensors_digest({name: value for name, value in result.items() if name not in names}),
        "result": tensors_digest(result),
    }
