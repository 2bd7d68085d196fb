"""Did federating help, whom, and by how much: the sentences that a report opens with.

The rule is the same for every run, so that no run can choose its words. Compared is the test metric of the federated
model with that of each baseline, as the mean over sites and at each site. ``helped`` (or ``worse``) is said only where
the 95 % interval of the *paired* difference excludes zero; ``unclear`` where it does not; ``unknown`` where no
paired interval exists. The same holds for patients of other sites and from elsewhere. Which model a site should take is
the run's own advice (:mod:`fed_diffmic.training.choice`), put into words here. With many sites, one in twenty of those
where nothing changed will be called changed by chance; the report says so next to the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fed_diffmic.reporting.view import (
    FEDERATED,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    arm_name,
    arms,
    chance,
    mean_measured,
    measured,
    number,
    paired,
    with_interval,
)

HELPED, WORSE, UNCLEAR, UNKNOWN = "helped", "worse", "unclear", "unknown"
MAIN_METRICS = {
    "multiclass": ("auroc_macro", "balanced_accuracy"),
    "ordinal": ("auroc_macro", "balanced_accuracy", "kappa_quadratic"),
    "multilabel": ("auroc_macro", "auprc_macro", "balanced_accuracy"),
}
_AGAINST = {
    "pooled": "Against the same model trained on all images in one place",
    "plain/federated": "Against a plain classifier on the same backbone, federated alike",
    "guidance": "Against its own guidance network alone (what the diffusion stage added)",
    "guidance/federated": "Against its own guidance network alone (what the diffusion stage added)",
}


@dataclass(frozen=True)
class Story:
    """What the report says first.

    Attributes:
        verdict: helped, worse, unclear or unknown, over all sites.
        headline: one sentence.
        points: what follows, in order.
    """

    verdict: str
    headline: str
    points: tuple[str, ...]


def verdict(difference: Mapping[str, Any] | None, metric: str) -> str:
    """What a paired difference (federated minus baseline) allows to be said."""
    if difference is None or difference.get("low") is None:
        return UNKNOWN
    low, high = difference["low"], difference["high"]
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    return HELPED if low > 0 else WORSE if high < 0 else UNCLEAR


def _amount(difference: Mapping[str, Any], metric: str) -> str:
    text = f"{METRIC_NAMES[metric]} {number(difference['value'], sign=True)}"
    if difference.get("low") is None:
        return f"{text} (no interval)"
    low, high = number(difference["low"], sign=True), number(difference["high"], sign=True)
    return f"{text} (95 % interval {low} to {high})"


def _mean_difference(summary: Mapping[str, Any], arm: str, metric: str) -> dict[str, Any] | None:
    """The paired mean difference, or without an interval the difference of the two means."""
    found = paired(summary, arm, metric)
    models = arms(summary)
    if found is not None or arm not in models:
        return found
    ours, theirs = (mean_measured(models[name], metric) for name in (FEDERATED, arm))
    if ours["value"] is None or theirs["value"] is None or ours.get("sites") != theirs.get("sites"):
        return None
    return {"value": ours["value"] - theirs["value"], "low": None, "high": None}


def _headline(found: Mapping[str, Any] | None, metric: str, has_local: bool) -> tuple[str, str]:
    if not has_local:
        return UNKNOWN, "Whether federating helped cannot be said: this run trained no local baseline to compare with."
    if found is None:
        return UNKNOWN, "Whether federating helped cannot be said: too few test images define the figure at the sites."
    said = verdict(found, metric)
    amount = f"{_amount(found, metric)}, mean over sites, against each site training alone"
    opening = {
        HELPED: "Federating helped",
        WORSE: "Federating made it worse",
        UNCLEAR: "No clear difference between federating and training alone",
        UNKNOWN: "Federating was not shown to help or to harm (no paired interval)",
    }[said]
    return said, f"{opening}: {amount}."


def single_class(summary: Mapping[str, Any]) -> str | None:
    """The class that the federated model calls every test image, or none: then it decides between classes."""
    table = ((summary.get("global") or {}).get("test") or {}).get("confusion")
    decided = [sum(row[column] for row in table) for column in range(len(table))] if table else []
    called = [column for column, count in enumerate(decided) if count]
    held = sum(1 for row in table or [] if sum(row))
    return str(summary["classes"][called[0]]) if len(called) == 1 and held > 1 else None


def by_chance(summary: Mapping[str, Any]) -> str:
    """A sentence where the model is not shown to be better than chance on all test images; else empty."""
    found = measured(arms(summary)[FEDERATED], "balanced_accuracy")
    known = chance("balanced_accuracy", summary["task"], len(found.get("classes") or []))
    if known is None or found["low"] is None or found["low"] > known:
        return ""
    return (
        f"Not shown to be better than chance: balanced accuracy {number(found['value'])} "
        f"({number(found['low'])} to {number(found['high'])}), chance {number(known)}."
    )


def _called_one(summary: Mapping[str, Any], name: str) -> str:
    found = measured(arms(summary)[FEDERATED], "balanced_accuracy")
    known = chance("balanced_accuracy", summary["task"], len(found.get("classes") or summary["classes"]))
    return (
        f"The federated model calls every test image {name}: its decisions are no better than chance (balanced "
        f"accuracy {number(found['value'])}, chance {number(known)})."
    )


def _whom(summary: Mapping[str, Any], metric: str) -> list[str]:
    by_verdict: dict[str, list[str]] = {}
    for site in sorted(summary.get("sites") or {}):
        difference = paired(summary, "local", metric, site)
        said = verdict(difference, metric)
        amount = "" if difference is None else f" ({number(difference['value'], sign=True)})"
        by_verdict.setdefault(said, []).append(f"{site}{amount}")
    words = {
        HELPED: "Better than alone, beyond chance",
        WORSE: "Worse than alone, beyond chance",
        UNCLEAR: "No clear difference",
        UNKNOWN: "Cannot be said (figure undefined, or no interval)",
    }
    return [f"{words[said]}: {', '.join(by_verdict[said])}." for said in words if said in by_verdict]


def _by_verdict(differences: Mapping[str, Mapping[str, Any] | None], metric: str) -> str:
    """``better than alone: A (+0.1); no clear difference: B`` for differences federated minus alone."""
    words = {HELPED: "better", WORSE: "worse", UNCLEAR: "no clear difference", UNKNOWN: "cannot be said"}
    found: dict[str, list[str]] = {}
    for name, entry in sorted(differences.items()):
        value = (entry or {}).get("value")
        amount = "" if value is None else f" ({number(value, sign=True)})"
        found.setdefault(verdict(entry, metric), []).append(f"{name}{amount}")
    return "; ".join(f"{words[said]}: {', '.join(found[said])}" for said in words if said in found)


def _elsewhere(summary: Mapping[str, Any], metric: str) -> list[str]:
    """On other sites' patients and on those from elsewhere, against the model that each site trained alone."""
    points = []
    advice = summary.get("advice") or {}
    away = {site: said["elsewhere"]["local"] for site, said in advice.items() if "local" in said.get("elsewhere", {})}
    if away:
        points.append(
            "On the other sites' patients, the federated model against the one that the site trained alone: "
            f"{_by_verdict(away, metric)}."
        )
    for name, table in sorted((summary.get("external") or {}).items()):
        own = {
            model.removeprefix("local/"): gap.get(metric)
            for model, gap in table["differences"].items()
            if model.startswith("local/")
        }
        ours = (table["models"].get(FEDERATED) or {}).get(metric)
        said = f": {METRIC_NAMES[metric]} {with_interval(ours)}" if ours else ""
        against = f"; against the models that sites trained alone: {_by_verdict(own, metric)}" if own else ""
        points.append(f"On {table['n']} images from elsewhere ({name}), the federated model{said}{against}.")
    return points


def _takes(summary: Mapping[str, Any]) -> list[str]:
    """Which model each site should take, why, and how sure that is."""
    advice = summary.get("advice") or {}
    if not advice:
        return []
    chosen: dict[str, list[str]] = {}
    for site, said in sorted(advice.items()):
        take = said["take"]
        reason = next((step for step in reversed(take["steps"]) if step["candidate"] == take["model"]), None)
        why = "" if reason is None else f" (better on its own patients by {number(reason['value'])})"
        chosen.setdefault(take["model"], []).append(f"{site}{why}")
    names = {FEDERATED: "the federated one", "local": "its own, trained alone"}
    which = "; ".join(f"{', '.join(sites)}: {names.get(model, arm_name(model))}" for model, sites in chosen.items())
    images = ", ".join(
        f"{site} {(summary.get('sites') or {}).get(site, {}).get('n_test', 0)}" for site in sorted(advice)
    )
    fold = summary.get("partition") or {}
    part = f" This is fold {fold['fold'] + 1} of {fold['folds']}." if fold.get("folds") else ""
    return [
        f"Which model to take: {which}. The federated one is the default; another is named only where it is shown to "
        "be better on the site's own test patients.",
        f"How sure: own test images {images}. The intervals say what other patients of these sites would change, not "
        f"what another training or another split would.{part}",
    ]


def tell(summary: Mapping[str, Any]) -> Story:
    """The story of a run, from its ``summary.json``."""
    metric = MAIN_METRICS[summary["task"]][0]
    models = arms(summary)
    found = _mean_difference(summary, "local", metric)
    said, headline = _headline(found, metric, "local" in models)
    points = _whom(summary, metric) if "local" in models else ["Add one with baselines=[local]."]
    for arm, opening in _AGAINST.items():
        difference = _mean_difference(summary, arm, metric)
        if difference is not None:
            words = {HELPED: "better", WORSE: "worse", UNCLEAR: "no clear difference", UNKNOWN: "difference"}
            points.append(f"{opening}: {words[verdict(difference, metric)]}, {_amount(difference, metric)}.")
    points += [*_elsewhere(summary, metric), *_takes(summary)]
    only = single_class(summary)
    if only is not None:  # whoever reads one sentence must read this one
        return Story(WORSE, _called_one(summary, only), (headline, *points))
    doubt = by_chance(summary)
    return Story(said, headline, (doubt, *points) if doubt else tuple(points))
