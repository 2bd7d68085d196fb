"""Two models on a site's own images: is the one that came better than the one in use?

Both are scored on the same images, so that the interval is that of the difference (paired bootstrap over groups). The
metrics stay here; nothing is sent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from client.device import chosen_device
from client.kept import IN_USE
from client.source import SiteSource
from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.errors import DataError, ModelFileError, UsageError
from fed_diffmic.files import sync_folder
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.personal import save_part, sign_parts
from fed_diffmic.release.pinned import pin
from fed_diffmic.release.provenance import PROVENANCE, signed_key
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.choice import choose_model
from fed_diffmic.training.comparison import difference
from fed_diffmic.training.evaluation import judged, metrics_of, predict_scores
from fed_diffmic.training.metrics import METRICS, Scored
from fed_diffmic.training.stages import build_module, load_state

BEFORE, NEW = "model.before", ".model.part"
STAGES = ("diffusion", "guidance", "plain")
BOOTSTRAP = 1000
SMALLER_IS_BETTER = ("brier", "ece")
CAME, KEPT = "the model that came", "the model in use"
RANKED = "auroc_macro"


class Final(Protocol):
    """A finished run's model, verified against its digests by whoever read it."""

    @property
    def spec(self) -> RunSpec:
        """What it was trained as."""

    @property
    def states(self) -> Mapping[str, Tensors]:
        """Full state of each stage."""

    @property
    def calibration(self) -> Mapping[str, Calibration]:
        """Calibration of each stage."""


@dataclass(frozen=True)
class Comparison:
    """Metrics of one or two models on a site's images.

    Attributes:
        site, split, images: on what.
        metrics: of the model that came: ``{metric: {value, low, high}}``.
        other: of the one in use, if there is one.
        difference: the model that came minus the one in use.
        take: the one to use: :data:`CAME` or :data:`KEPT`.
        why: in a sentence.
    """

    site: str
    split: str
    images: int
    metrics: dict[str, Any]
    other: dict[str, Any] | None
    difference: dict[str, Any] | None
    take: str = CAME
    why: str = ""


def compare_models(
    config: SiteConfig, model: Final, other: Final | None, *, split: str = "test", bootstrap: int = BOOTSTRAP
) -> Comparison:
    """Score one or two models on the site's own images.

    Args:
        config: of the site.
        model: that came.
        other: that is in use; none: there is no other.
        split: ``test`` or ``val``.
        bootstrap: resamples of groups.

    Raises:
        DataError: the split is empty, or the site's classes or task are not a model's.
        ModelFileError: weights that do not fit their model.
    """
    source = SiteSource(config)
    device = chosen_device(config.site.device)
    scored = score(source, model, split, device)
    site = config.site.name
    own = _metrics(scored, model.spec, bootstrap)
    if other is None:
        return Comparison(site, split, len(scored.labels), own, None, None, CAME, "There is no model in use.")
    before = score(source, other, split, device)
    try:
        paired = difference({site: scored}, {site: before}, bootstrap=bootstrap, seed=model.spec.seed)
    except ValueError as error:
        raise DataError(
            f"the two models cannot be compared: {error}",
            "Compare them again while nobody changes the site's table or images: each model reads them itself.",
        ) from error
    theirs = _metrics(before, other.spec, bootstrap)
    take, why = which_to_take(paired["sites"][site])
    return Comparison(site, split, len(scored.labels), own, theirs, paired["sites"][site], take, why)


def which_to_take(gap: Mapping[str, Any]) -> tuple[str, str]:
    """The model to use and why, from the paired difference that came minus in use (:mod:`fed_diffmic.training.choice`).

    The model that came is the default: it has seen other sites' patients too, whom these images cannot show.
    """
    cell = gap[RANKED]
    turned = {
        name: None if cell[key] is None else -cell[key]
        for name, key in (("value", "value"), ("low", "high"), ("high", "low"))
    }
    choice = choose_model([CAME, KEPT], lambda *_: turned)
    step = choice.steps[0]
    if step.value is None or step.low is None or step.high is None:
        return choice.model, f"No interval of the difference in macro AUROC can be given, so {CAME} is the default."
    amount = f"macro AUROC {-step.value:+.3f} ({-step.high:+.3f} to {-step.low:+.3f}) against the one in use"
    if step.taken:
        return choice.model, f"The model that came is shown to be worse on this site's own images: {amount}."
    said = "is shown to be better" if step.worse else "is not shown to be better or worse"
    default = "" if step.worse else "; it is the default, for it has seen other sites' patients too"
    return choice.model, f"The model that came {said} on this site's own images: {amount}{default}."


def score(source: SiteSource, model: Final, split: str, device: str) -> Scored:
    """Calibrated predictions of the last stage of a model on one of the site's splits.

    Raises:
        DataError, ModelFileError: see :func:`compare_models`.
    """
    spec = model.spec
    data: SiteData = source(None, spec, {})
    if tuple(data.classes) != spec.classes or data.task != spec.task:
        raise DataError(
            "the model's classes or task are not those of this site's data",
            "Compare it at a site with the consortium's classes, or set dataset.classes and dataset.task.",
        )
    examples: Examples = getattr(data, split)
    if not len(examples):
        raise DataError(f"this site has no {split} images", "Choose --split val, or set site.test_fraction.")
    stage = next((name for name in STAGES if name in model.states), None)
    if stage is None or stage not in model.calibration:
        raise ModelFileError("the model has no finished stage", "Give the folder of a run that has ended.")
    module = build_module(spec, stage)
    load_state(module.network, model.states[stage], f"stage {stage}")
    fitted = model.calibration[stage]
    return judged(predict_scores(module, examples, torch.device(device)), examples, fitted, spec)


def take_over(
    final: Path,
    folder: Path,
    site: str,
    parts: Mapping[str, Tensors] | None = None,
    *,
    signer: PrivateKey | None = None,
    before: Callable[[Path], None] | None = None,
) -> Path:
    """Keep a model as the one in use, with the key that it is verified by; the one before stays beside it.

    Args:
        final: folder of the run that was read and verified; its ``final/`` is copied.
        folder: the site's own.
        site: its name.
        parts: what of the model is the site's own, by stage; kept beside it.
        signer: the site's key, which signs the digests of the parts.
        before: called with the folder of the copy when everything is copied, before it becomes the model in use: the
            place to verify what was copied, for ``final`` may have changed since it was read. If it raises, the copy
            is removed and the model in use stays.

    Returns:
        The folder of the model in use.

    Raises:
        UsageError: it is the one in use.
        ModelFileError: its signature does not hold.
    """
    target, part, older = folder / IN_USE, folder / NEW, folder / BEFORE
    if target.exists() and final.resolve() == target.resolve():
        raise UsageError("this is the model in use already", "Nothing is to be done.")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _copy(final, part, site, parts or {}, signer)
        if before is not None:
            before(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(older, ignore_errors=True)
    if target.exists():
        target.rename(older)
    part.rename(target)
    sync_folder(folder)
    return target


def _copy(final: Path, part: Path, site: str, parts: Mapping[str, Tensors], signer: PrivateKey | None) -> None:
    part.mkdir(mode=0o700)
    shutil.copytree(final / "final", part / "final")
    if (part / "final" / PROVENANCE).exists():
        pin(part, signed_key(part / "final" / PROVENANCE))
    for stage, own in parts.items():
        save_part(part, stage, site, own)
    if parts:
        sign_parts(part, site, parts, signer)


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
    if result.other is not None:
        lines.append(f"Take {result.take}. {result.why}")
    lines.append("For research, not a medical device.")
    return "\n".join(lines)


def _metrics(scored: Scored, spec: RunSpec, bootstrap: int) -> dict[str, Any]:
    every = metrics_of(scored, spec, bootstrap)
    return {metric: every[metric] for metric in METRICS}
