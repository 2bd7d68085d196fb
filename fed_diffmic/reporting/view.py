"""Reading ``summary.json``: which models were compared, under what name, and how a figure is written in text.

Shape of a summary (docs/metrics.md): ``global.{val,test}`` and ``sites.NAME.{val,test}`` hold what
:func:`fed_diffmic.training.metrics.compute_metrics` returns; ``mean.{val,test}`` the mean over sites; ``baselines.ARM``
the same three blocks for ``local``, ``pooled`` and ``guidance``, and one level deeper for ``plain``
(``plain.{federated,local,pooled}``); ``differences.ARM`` the paired difference federated minus that arm
(:func:`fed_diffmic.training.comparison.difference`), with ``plain/federated`` as the name of a nested arm. Blocks that
a run did not make are simply not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEDERATED = "federated"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
LOWER_IS_BETTER = ("brier", "ece", "loss")
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "auroc_macro": "macro AUROC",
    "auprc_macro": "macro AUPRC",
    "kappa_quadratic": "quadratic kappa",
    "brier": "Brier score",
    "ece": "calibration error",
    "loss": "loss",
}
_ARM_NAMES = {
    FEDERATED: "federated",
    "local": "each site alone",
    "pooled": "all data pooled",
    "finetune": "federated, then fine-tuned at each site",
    "head": "federated, heads fine-tuned at each site",
    "mixture": "federated and each site's own, mixed",
    "plain/federated": "plain classifier, federated",
    "plain/local": "plain classifier, each site alone",
    "plain/pooled": "plain classifier, all data pooled",
    "diffusion": "both networks, federated",  # in a deployment's matrix models are called by their stage
    "plain": "plain classifier, federated",
    "guidance": "guidance network alone, federated",
    "guidance/federated": "guidance network alone, federated",
    "guidance/local": "guidance network alone, each site alone",
    "guidance/pooled": "guidance network alone, all data pooled",
}
_BLOCKS = ("global", "sites", "mean")


_SKIN = {  # of HAM10000 (Tschandl, Rosendahl and Kittler 2018)
    "akiec": "actinic keratosis or intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}


def plain_names(classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What classes are called for people: as the run says (``dataset.class_names``), else what published abbreviations
    stand for, if every class is one: a hospital's `df` may be another."""
    known = {name: _SKIN[name] for name in classes} if set(classes) <= set(_SKIN) else {}
    return known | {name: plain for name, plain in (given or {}).items() if name in classes}


def words_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a run's classes are called in words: as its configuration says, else as published; empty: nobody said."""
    return plain_names(summary["classes"], summary.get("class_names"))


def arm_name(arm: str) -> str:
    """An arm in words, a site's own model with the site; one that is not known keeps its own name."""
    kind, _, site = arm.rpartition("/")
    if arm not in _ARM_NAMES and kind in _ARM_NAMES:
        return f"{_ARM_NAMES[kind]}: {site}"
    return _ARM_NAMES.get(arm, arm)


def arms(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every model of the run by arm, the federated one first, each with its ``global``, ``sites`` and ``mean``."""
    found = {FEDERATED: {key: summary[key] for key in _BLOCKS if key in summary}}
    for name, block in (summary.get("baselines") or {}).items():
        if not isinstance(block, Mapping):
            continue
        if any(key in block for key in _BLOCKS):
            found[name] = dict(block)
        else:
            found.update({f"{name}/{inner}": dict(part) for inner, part in block.items() if isinstance(part, Mapping)})
    return found


def measured(block: Mapping[str, Any], metric: str, *, site: str | None = None, split: str = "test") -> dict[str, Any]:
    """``{value, low, high, n, ...}`` of an arm at a site (``None``: global), or an undefined one if it is not there."""
    part = (block.get("sites") or {}).get(site) if site is not None else block.get("global")
    found = ((part or {}).get(split) or {}).get(metric)
    return (
        dict(found) if isinstance(found, Mapping) else {"value": None, "low": None, "high": None, "n": 0, "classes": []}
    )


def mean_measured(block: Mapping[str, Any], metric: str, split: str = "test") -> dict[str, Any]:
    """The mean over sites: as the run measured it, else (without an interval) from the sites' own values."""
    found = ((block.get("mean") or {}).get(split) or {}).get(metric)
    if isinstance(found, Mapping):
        return dict(found)
    names = sorted(block.get("sites") or {})
    each = {name: measured(block, metric, site=name, split=split) for name in names}
    defined = {name: entry["value"] for name, entry in each.items() if entry["value"] is not None}
    value = sum(defined.values()) / len(defined) if defined else None
    n = sum(each[name]["n"] for name in defined)
    return {"value": value, "low": None, "high": None, "n": n, "sites": list(defined)}


def chance(metric: str, task: str, classes: int) -> float | None:
    """What a model reaches that knows nothing of the images; none where that depends on the images' own mix.

    Args:
        metric: a figure's name.
        task: of the model.
        classes: over which the figure is a mean: those that the images hold.
    """
    if classes < 1:
        return None
    if metric == "balanced_accuracy":
        return 0.5 if task == "multilabel" else 1.0 / classes
    return {"auroc_macro": 0.5, "kappa_quadratic": 0.0}.get(metric)


def paired(summary: Mapping[str, Any], arm: str, metric: str, site: str | None = None) -> dict[str, Any] | None:
    """Paired difference federated minus ``arm`` on test images (``site=None``: mean over sites), if measured."""
    block = (summary.get("differences") or {}).get(arm) or {}
    part = block.get("mean") if site is None else (block.get("sites") or {}).get(site)
    found = (part or {}).get(metric)
    return dict(found) if isinstance(found, Mapping) and found.get("value") is not None else None


def number(value: float | None, *, sign: bool = False, digits: int = 3) -> str:
    """A figure in text; a dash for what is undefined; a true minus."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if sign and float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def with_interval(entry: Mapping[str, Any], *, sign: bool = False) -> str:
    """``0.812 (0.780 to 0.840)``, without the bracket where there is no interval."""
    text = number(entry.get("value"), sign=sign)
    if entry.get("value") is None or entry.get("low") is None:
        return text
    return f"{text} ({number(entry['low'], sign=sign)} to {number(entry['high'], sign=sign)})"


def duration(seconds: float | None) -> str:
    """Seconds in words: ``3.1 s`` (whole numbers stay whole), ``4 min 10 s``, ``2 h 05 min``."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 and not isinstance(seconds, int) else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in words (powers of 1000)."""
    if count is None:
        return DASH
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
