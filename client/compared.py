"""What a comparison of models on a site's own images found, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fed_diffmic.training.choice import Step
from fed_diffmic.training.metrics import METRICS

SMALLER_IS_BETTER = ("brier", "ece")
CAME, KEPT = "the model that came", "the model in use"


@dataclass(frozen=True)
class Comparison:
    """Metrics of one or more models on a site's images.

    Attributes:
        site, split, images: on what.
        metrics: of the model that came: ``{metric: {value, low, high}}``.
        other: of the one in use, if there is one.
        difference: the model that came minus the one in use.
        take: the one to use: :data:`CAME`, :data:`KEPT`, or one that the site made (:func:`own_name`).
        why: in a sentence or several.
        own: metrics of the models that the site made of the one that came, by kind.
        steps: the comparisons that led to the choice, in order, where there are own models.
    """

    site: str
    split: str
    images: int
    metrics: dict[str, Any]
    other: dict[str, Any] | None
    difference: dict[str, Any] | None
    take: str = CAME
    why: str = ""
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)


def own_name(kind: str) -> str:
    """What a model that the site made is called in a comparison."""
    return f"this site's own model ({kind})"


def step_text(step: Step) -> str:
    """One comparison of several, in a sentence."""
    name = step.candidate[0].upper() + step.candidate[1:]
    if step.value is None or step.low is None or step.high is None:
        return f"{name} against {step.against}: no interval of the difference in macro AUROC can be given."
    said = "better" if step.taken else "worse" if step.worse else "neither better nor worse"
    span = f"{step.value:+.3f} ({step.low:+.3f} to {step.high:+.3f})"
    return f"{name} is shown to be {said} than {step.against} on this site's own images: macro AUROC {span}."


def comparison_text(result: Comparison) -> str:
    """The metrics as a table for a reader."""
    lines = [f"site {result.site}: {result.images} {result.split} images"]
    head = f"{'figure':<20}{'model':>8}"
    lines.append(head if result.other is None else f"{head}{'in use':>8}{'difference':>12}  95 % interval")
    for metric in METRICS:
        value = result.metrics[metric]["value"]
        if value is None:
            continue
        line = f"{metric:<20}{value:>8.3f}"
        if result.other is not None and result.difference is not None:
            cell = result.difference[metric]
            if cell["value"] is None or result.other[metric]["value"] is None:
                continue
            span = "" if cell["low"] is None else f"{cell['low']:+.3f} to {cell['high']:+.3f}"
            note = " (smaller is better)" if metric in SMALLER_IS_BETTER else ""
            line += f"{result.other[metric]['value']:>8.3f}{cell['value']:>+12.3f}  {span}{note}"
        lines.append(line)
    lines += _own_lines(result)
    if result.other is not None or result.own:
        lines.append(f"Take {result.take}. {result.why}")
    lines.append("For research, not a medical device.")
    return "\n".join(lines)


def _own_lines(result: Comparison) -> list[str]:
    """The metrics of the models that the site made, a column each."""
    if not result.own:
        return []
    lines = ["", "models that this site made", f"{'figure':<20}" + "".join(f"{kind:>10}" for kind in result.own)]
    for metric in METRICS:
        values = [metrics[metric]["value"] for metrics in result.own.values()]
        if any(value is not None for value in values):
            lines.append(f"{metric:<20}" + "".join(f"{'' if v is None else f'{v:.3f}':>10}" for v in values))
    return lines
