"""How sure each prediction is: its prediction set, measures of uncertainty that passed their test, and referral."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fed_diffmic.errors import UsageError
from fed_diffmic.training import conformal
from fed_diffmic.training.conformal import LEVELS, USUAL, Rule
from fed_diffmic.training.sureness import Sureness
from fed_diffmic.training.uncertainty import SHARES, Measured, Referral

STATES = ("absent", "present")


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside probabilities.

    Attributes:
        level: of the prediction sets, one of :data:`fed_diffmic.training.conformal.LEVELS`.
        method: ``lac`` or ``aps``; none: the first that the task has.
        by_class: sets whose promise is one for the images of each class. Without it, a class of a few per cent of the
            images may be in no set at all, and the promise still holds.
        refer: share of images that are referred to a person, one of :data:`fed_diffmic.training.uncertainty.SHARES`;
            none: nobody is.
    """

    level: float = USUAL
    method: str | None = None
    by_class: bool = True
    refer: float | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (("level", self.level, LEVELS), ("refer", self.refer, (None, *SHARES))):
            if value not in allowed:
                known = ", ".join(f"{v:g}" for v in allowed if v is not None)
                raise UsageError(f"{name} {value:g} is not one that was worked out", f"Choose one of {known}.")


@dataclass(frozen=True, eq=False)
class Sure:
    """How sure a model is of ``N`` images.

    Attributes:
        rule: thresholds of the sets; none: it has no prediction sets.
        by_class: whether those of each class are used.
        sets: ``(N, Q, S)`` bool (:func:`fed_diffmic.training.conformal.members`); none: there are none.
        doubts: ``(N,)`` of each measure that was shown to rank errors above chance, the best first; no other.
        measures: the test of each of these.
        point: the operating point of referral; none: not asked for.
        referred: ``(N,)`` bool; none: not asked for.
        unfamiliar: ``(N,)`` bool, images unlike the site's own; none: nobody said what those look like.
        known: what the model knows of its doubts; none: nothing.
        classes: names.
    """

    classes: tuple[str, ...]
    task: str
    known: Sureness | None = None
    rule: Rule | None = None
    by_class: bool = False
    sets: np.ndarray | None = None
    doubts: Mapping[str, np.ndarray] = field(default_factory=dict)
    measures: Sequence[Measured] = ()
    point: Referral | None = None
    referred: np.ndarray | None = None
    unfamiliar: np.ndarray | None = None

    def set_of(self, image: int) -> list[str] | dict[str, str] | None:
        """Names of the classes in an image's set; multi-label: ``absent``, ``present``, ``either`` or ``neither``."""
        if self.sets is None:
            return None
        if self.task != "multilabel":
            return [name for name, inside in zip(self.classes, self.sets[image, 0], strict=True) if inside]
        words = {(True, True): "either", (False, False): "neither", (True, False): STATES[0], (False, True): STATES[1]}
        return {c: words[bool(a), bool(b)] for c, (a, b) in zip(self.classes, self.sets[image], strict=True)}

    def row(self, image: int) -> dict[str, Any]:
        """What is said of one image, for JSON."""
        said: dict[str, Any] = {}
        if self.sets is not None:
            said["set"] = self.set_of(image)
        if self.doubts:
            said["uncertainty"] = {name: float(values[image]) for name, values in self.doubts.items()}
        if self.referred is not None:
            said["referred"] = bool(self.referred[image])
        if self.unfamiliar is not None:
            said["unfamiliar"] = bool(self.unfamiliar[image])
        return said

    def facts(self) -> dict[str, Any]:
        """What holds for all images, for JSON; empty where nothing is known."""
        found: dict[str, Any] = {}
        if self.rule is not None and self.known is not None:
            found["prediction_sets"] = {
                "method": self.rule.method,
                "level": self.rule.level,
                "by_class": self.by_class,
                "images": self.known.n,
                "sites": list(self.known.sites),
                "silent_sites": list(self.known.silent),
            }
        if self.measures:
            keys = ("auroc", "low", "high", "n", "errors", "aurc")
            found["uncertainty"] = {m.measure: {key: getattr(m, key) for key in keys} for m in self.measures}
        if self.point is not None:
            point = {key: getattr(self.point, key) for key in ("share", "referred", "kept", "risk", "low", "high")}
            found["referral"] = {"measure": self.measures[0].measure, **point}
        sentences = self.sentences()
        return {**found, "sure": sentences} if sentences else {}

    def sentences(self) -> list[str]:
        """The same for a reader: what is promised, on what it rests, and what is not known."""
        said = []
        if self.known is None:
            said.append(
                "Nothing is known of how sure this model is; `fed-diffmic reference` counts it on labelled images."
            )
        elif self.rule is None:
            said.append("No prediction sets: no site told how its validation images scored.")
        else:
            said.append(_promise(self.rule, self.known, self.by_class, self.task))
        if self.known is not None and self.known.rules and not self.known.offered:
            said.append("No uncertainty is shown: no measure was shown to find errors better than a coin.")
        for measure in self.measures:
            said.append(
                f"{measure.measure}: of a wrong and a right prediction the wrong one is less certain in "
                f"{measure.auroc:.0%} of cases ({measure.low:.0%} to {measure.high:.0%}; n = {measure.n})."
            )
        if self.point is not None:
            p = self.point
            said.append(
                f"Refer {p.share:.0%} by {self.measures[0].measure}: of the validation images {p.referred:.0%} were "
                f"referred, and of the other {p.kept} {p.risk:.1%} were wrong ({p.low:.1%} to {p.high:.1%})."
            )
        return said


def _promise(rule: Rule, known: Sureness, by_class: bool, task: str) -> str:
    right = "the right answer for each label" if task == "multilabel" else "the right class"
    whom = "of the images of each class" if by_class else "of images"
    from_ = f"{len(known.sites)} sites" if len(known.sites) != 1 else known.sites[0]
    said = (
        f"Sets hold {right} for {rule.level:.0%} {whom} like those of {from_} together ({rule.method}, {known.n} "
        "validation images); at one site alone it may be less."
    )
    full = [cell == conformal.CELLS for cell in (np.ravel(rule.by_state) if by_class else rule.overall)]
    if all(full):
        said += " These were too few: every set holds everything."
    elif any(full):
        said += " Of some classes these were too few: they are in every set."
    if not by_class:
        said += " A rare class may be in none of them."
    return said


def sure(
    probabilities: np.ndarray,
    doubts: Mapping[str, np.ndarray],
    classes: Sequence[str],
    task: str,
    known: Sureness | None,
    wanted: Wanted,
    unfamiliar: np.ndarray | None = None,
) -> Sure:
    """How sure a model is of images.

    Args:
        probabilities: ``(N, C)``, calibrated.
        doubts: ``(N,)`` of each measure.
        known: of the model; none: nothing.
        unfamiliar: ``(N,)`` images unlike the site's own, where that is known.

    Raises:
        UsageError: a method that the task does not have; referral without a measure that finds errors.
    """
    method = wanted.method or conformal.methods(task)[0]
    if method not in conformal.methods(task):
        raise UsageError(f"method {method} is not for {task}", f"Use {', '.join(conformal.methods(task))}.")
    rule = None if known is None else known.rule(method, wanted.level)
    measures = () if known is None else tuple(m for m in known.offered if m.measure in doubts or not len(probabilities))
    point, referred = None, None
    if wanted.refer is not None:
        point = measures[0].at(wanted.refer) if measures else None
        if point is None:
            raise UsageError(
                "nothing can be referred by: no measure of this model's uncertainty was shown to find errors better "
                "than a coin",
                "Leave referral out, and let a person look at every image.",
            )
        values = doubts.get(measures[0].measure, np.zeros(0))
        referred = conformal.cells(values) > point.cell
        if unfamiliar is not None:
            referred = referred | unfamiliar
    return Sure(
        tuple(classes),
        task,
        known,
        rule,
        wanted.by_class,
        None if rule is None else conformal.members(probabilities, task, rule, by_state=wanted.by_class),
        {m.measure: doubts.get(m.measure, np.zeros(0)) for m in measures},
        measures,
        point,
        referred,
        unfamiliar,
    )
