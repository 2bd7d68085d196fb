"""What a run advises each site: on its own patients, on others', and by which comparisons.

The candidates are the models that a site could take home: the federation's, the one it trained alone, and personal
ones. Pooled data are no candidate: no site has them. The rule is :func:`fed_diffmic.training.choice.choose_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fed_diffmic.training.choice import choose_model
from fed_diffmic.training.comparison import difference
from simulations.metrics import MethodResult, Row

METRIC = "auroc_macro"
CANDIDATES = ("federated", "local", "finetune", "head", "mixture")


def advice(
    results: Mapping[str, MethodResult], rows: Mapping[str, Row], *, bootstrap: int, seed: int
) -> dict[str, dict[str, Any]]:
    """For each site: ``take`` (the choice with its steps) and, where others' patients tell, ``elsewhere``.

    Args:
        results: own test predictions of each method at each site.
        rows: test predictions of every model at every site.
        bootstrap: resamples of groups; 0: no interval, so nothing is shown and the federation's model stays.
        seed: of the resamples.

    Returns:
        ``elsewhere`` holds for each other candidate the paired difference federated minus it on the test images of all
        other sites, mean over sites.
    """
    candidates = [name for name in CANDIDATES if name in results]
    if len(candidates) < 2:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for site in results["federated"].test:

        def gap(first: str, second: str, place: str = site) -> Mapping[str, Any]:
            ours, theirs = ({place: results[name].test[place]} for name in (first, second))
            entry: Mapping[str, Any] = difference(ours, theirs, bootstrap=bootstrap, seed=seed)["sites"][place][METRIC]
            return entry

        choice = choose_model(candidates, gap)
        found[site] = {
            "take": {"model": choice.model, "metric": METRIC, "steps": [asdict(step) for step in choice.steps]}
        }
        elsewhere = {
            name: away
            for name in candidates[1:]
            if (away := _away(rows, name, site, bootstrap=bootstrap, seed=seed)) is not None
        }
        if elsewhere:
            found[site]["elsewhere"] = elsewhere
    return found


def _away(rows: Mapping[str, Row], name: str, site: str, *, bootstrap: int, seed: int) -> dict[str, Any] | None:
    """Federated minus the site's own model of that name, on the other sites' test images; none without such rows."""
    ours = rows.get("federated") or rows.get(f"federated/{site}")
    theirs = rows.get(f"{name}/{site}")
    if ours is None or theirs is None or len(ours.parts) < 2:
        return None
    first, second = ({n: p for n, p in row.parts.items() if n != site} for row in (ours, theirs))
    entry: dict[str, Any] = difference(first, second, bootstrap=bootstrap, seed=seed)["mean"][METRIC]
    return entry
