"""A final model as one site gets it: the same weights, and of what the sites said only what is the run's or its own.

``model.json`` and the signed statement of a run hold every site's metrics, counts and privacy claims. Those left each
site for the coordinator, not for the other sites; so each site is sent an edition of its own, signed by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fed_diffmic.config.spec import without_paths
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.final import FinalModel, final_texts
from fed_diffmic.release.provenance import signed

OF_THE_MODEL = ("digests", "architecture", "spec", "model_json")
OF_SITES = ("sites", "heads", "privacy")
"""Parts of a statement that say something by site."""
FEWEST = 3
"""Of two sites, a mean and one's own figure tell the other's."""


@dataclass(frozen=True)
class Edition:
    """The texts of a site's edition; its weights are the run's.

    Attributes:
        model_json: as it lies in ``final/model.json``.
        provenance: as it lies in ``final/provenance.json``.
    """

    model_json: str
    provenance: str


def site_edition(model: FinalModel, statement: Mapping[str, Any], site: str, signer: PrivateKey) -> Edition:
    """What one site is sent of a run's model beside its weights.

    Args:
        model: of the run, whole.
        statement: of its provenance, verified.
        site: its name.
        signer: the coordinator's key.
    """
    own = replace(
        model,
        spec=without_paths(model.spec),
        history=[_row(row, site) for row in model.history],
        personal={stage: _of(digests, site) for stage, digests in model.personal.items()},
        matrix={stage: _of(cells, site) for stage, cells in model.matrix.items()},
        together={},  # less its own, a site would have those of the others, who are one fewer than the sum's
    )
    facts = {name: value for name, value in statement.items() if name not in OF_THE_MODEL}
    facts |= {name: _of(facts[name], site) for name in OF_SITES if name in facts}
    facts["rounds"] = [_round(row, site) for row in facts.get("rounds", [])]
    facts["edition"] = site
    data, said = final_texts(own, signer, facts)
    return Edition(data.decode(), json.dumps(signed(said, signer), indent=2, allow_nan=False) + "\n")


def _row(row: Mapping[str, Any], site: str) -> dict[str, Any]:
    """A round: who took part, the run's means where they tell of nobody, and the site's own metrics."""
    kept = {**row, **{name: _of(row[name], site) for name in ("val", "missing", "heads", "privacy") if name in row}}
    if "payloads" in row:
        kept["payloads"] = _payloads(row["payloads"], site)
    trained, judged = (dict(row.get(part, {})) for part in ("sites", "val"))
    kept["sites"] = {name: dict(value) if name == site else {} for name, value in trained.items()}
    if "loss" in row and _told(trained, "loss") < FEWEST:
        kept["loss"] = None
    if "mean" in row:
        kept["mean"] = {name: value for name, value in row["mean"].items() if _told(judged, name) >= FEWEST}
    return kept


def _told(by_site: Mapping[str, Mapping[str, Any]], name: str) -> int:
    """How many sites are in a mean: who trained need not have said how well."""
    return sum(name in metrics for metrics in by_site.values())


def _round(row: Mapping[str, Any], site: str) -> dict[str, Any]:
    named = {"payloads": _payloads(row.get("payloads", {}), site)}
    return {**row, **named, "missing": [name for name in row.get("missing", []) if name == site]}


def _payloads(by_task: Mapping[str, Mapping[str, Any]], site: str) -> dict[str, Any]:
    return {task: _of(digests, site) for task, digests in by_task.items()}


def _of(by_site: Mapping[str, Any], site: str) -> dict[str, Any]:
    return {name: value for name, value in by_site.items() if name == site}
