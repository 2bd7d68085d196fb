"""Who vouches for a run's model, verified while the dossier is made; and what the program is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.exchange.audit_verify import verify as verify_log
from fed_diffmic.provision.keys import PublicKey
from fed_diffmic.release.binding import is_bound
from fed_diffmic.release.dossier.facts import (
    PROVENANCE,
    Block,
    Fact,
    Sources,
    check,
    missing,
    named,
    section,
    table,
    text,
    warning,
)
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.provenance import signed_key

LOG = "audit.jsonl"
SBOM = "sbom.cdx.json"
MOST_PARTS = 2000
_SAID = ("statement",)


def provenance_chain(sources: Sources, final: FinalModel, public_key: PublicKey | None) -> dict[str, Any]:
    """From the key to the rounds: what was verified now, and what the signed statement says.

    Args:
        sources: files of the run.
        final: its model, loaded with every check while the dossier is made.
        public_key: that was asked for; none: whose key it is was not compared.
    """
    checks = [check("every file of the model against its digest", True)]
    blocks: list[Block] = []
    if final.signed_by:
        compared = "compared with the key that was given or pinned" if public_key else "not compared with any other"
        checks.append(check(f"signature over the provenance ({compared})", True, final.signed_by))
        statement = sources.at(PROVENANCE, *_SAID)
        if is_bound(statement):
            checks.append(check("the weights are those that the chosen rounds made", True, final.signed_by))
    else:
        blocks.append(
            warning("Nobody signed this model: a simulation made it, or a coordinator without a signing key.")
        )
    checks += _log(sources, final, public_key)
    blocks.insert(0, table("Verified when this dossier was made", ["what", "holds", "key"], [_row(c) for c in checks]))
    if final.signed_by:
        blocks += _statement(sources)
    blocks.append(
        text(
            "Whether any site was sent these weights shows its own audit log alone: `fed-diffmic audit model RUN --key "
            "coordinator.pub --against SITE/audit.jsonl --against-key SITE/site.key.pub`."
        )
    )
    return section("provenance", "Provenance", *blocks)


def _row(found: Fact) -> list[Any]:
    return [found["check"], found, found["by"] or "none"]


def _log(sources: Sources, final: FinalModel, public_key: PublicKey | None) -> list[Fact]:
    """The coordinator's own log, if it lies in the run, under the key that signed the model."""
    path = sources.path(LOG)
    if not path.is_file() or not final.signed_by:
        return []
    key = public_key or signed_key(sources.path(PROVENANCE))
    return [check("the coordinator's audit log is whole, in order and by that key", not verify_log(path, key))]


def _statement(sources: Sources) -> list[Block]:
    rows = named(
        sources,
        [
            ("made", PROVENANCE, (*_SAID, "made")),
            ("version of the program", PROVENANCE, (*_SAID, "code", "version")),
            ("digest of its source files", PROVENANCE, (*_SAID, "code", "source")),
            ("digest of the model's file", PROVENANCE, (*_SAID, "model_json")),
            ("lines of the coordinator's log, when signed", PROVENANCE, (*_SAID, "coordinator_head", "length")),
            ("its last line's digest", PROVENANCE, (*_SAID, "coordinator_head", "digest")),
        ],
    )
    lines = sources.lines(LOG)
    rows += [["lines of the coordinator's log, now", lines]] if lines else []
    blocks = [table("What was signed", ["what", "value"], rows)]
    stages = sources.at(PROVENANCE, *_SAID, "stages") or {}
    keys = ("round", "candidate", "base", "result")
    kept = [[s, *(sources.fact(PROVENANCE, *_SAID, "stages", s, key) for key in keys)] for s in sorted(stages)]
    if kept:
        columns = ["stage", "round kept", "weights exchanged", "base", "result"]
        blocks.append(table("Which round made it (SHA-256)", columns, kept))
    heads = sources.at(PROVENANCE, *_SAID, "heads") or {}
    found = [
        [site, *(sources.fact(PROVENANCE, *_SAID, "heads", site, key) for key in ("length", "digest"))]
        for site in sorted(heads)
        if isinstance(heads[site], Mapping)
    ]
    if found:
        blocks.append(
            table("Last lines of the sites' logs that the coordinator saw", ["site", "line", "digest"], found)
        )
    return blocks


def materials(sources: Sources) -> dict[str, Any]:
    """Packages that the program stands on: the bill of materials, else the versions that the coordinator signed."""
    tree = sources.tree(SBOM)
    parts = tree.get("components") if isinstance(tree, Mapping) else None
    blocks: list[Block] = []
    if isinstance(parts, list):
        rows = [
            [
                sources.fact(SBOM, "components", k, "name"),
                sources.fact(SBOM, "components", k, "version"),
                _licence(sources, k),
            ]
            for k in range(min(len(parts), MOST_PARTS))
        ]
        blocks.append(table(f"Bill of materials ({SBOM}, CycloneDX; it lies beside this page)", _COLUMNS, rows))
    else:
        said = (
            f"No bill of materials: `make sbom` in the program's source makes one; give it with --sbom, or put it into "
            f"the run's folder as {SBOM}."
        )
        blocks.append(missing(said))
    packages = sources.at(PROVENANCE, *_SAID, "code", "packages") or {}
    if packages:
        rows = [[name, sources.fact(PROVENANCE, *_SAID, "code", "packages", name)] for name in sorted(packages)]
        blocks.append(table("What computed, as the coordinator signed it", ["package", "version"], rows))
    versions = sources.at("summary.json", "versions") or {}
    if versions:
        rows = [[name, sources.fact("summary.json", "versions", name)] for name in sorted(versions)]
        blocks.append(table("What computed, as the run's summary says", ["package", "version"], rows))
    return section("materials", "Software", *blocks)


_COLUMNS = ["package", "version", "licence"]


def _licence(sources: Sources, place: int) -> Fact | None:
    spot = ("components", place, "licenses", 0)
    return (
        sources.fact(SBOM, *spot, "expression")
        or sources.fact(SBOM, *spot, "license", "id")
        or sources.fact(SBOM, *spot, "license", "name")
    )
