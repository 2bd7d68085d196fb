"""Two models on a site's own images: is the one that came better than the one in use?

Both are scored on the same images, so that the interval is that of the difference (paired bootstrap over groups). The
metrics stay here; nothing is sent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from client.compared import CAME, KEPT, Comparison, own_name, step_text
from client.device import chosen_devices
from client.kept import IN_USE, model_digest
from client.source import SiteSource
from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.errors import DataError, ModelFileError, UsageError
from fed_diffmic.files import load_tensors, sync_folder, tensors_digest
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.made_at import OWN
from fed_diffmic.release.personal import personal_file, save_part, sign_parts
from fed_diffmic.release.pinned import pin
from fed_diffmic.release.provenance import PROVENANCE, signed_key
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.choice import choose_model
from fed_diffmic.training.comparison import difference
from fed_diffmic.training.evaluation import judged, metrics_of, predict_scores
from fed_diffmic.training.metrics import METRICS, Scored
from fed_diffmic.training.stages import build_module, load_state

BEFORE, NEW, REFUSED = "model.before", ".model.part", "model.refused"
STAGES = ("diffusion", "guidance", "plain")
BOOTSTRAP = 1000
RANKED = "auroc_macro"
MADE_ON_THEM = (
    "The models that this site made were fitted on its validation images, so these cannot say that one is better: they "
    "are shown and not chosen. Compare on --split test, or choose one yourself with --take."
)


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


@runtime_checkable
class Predicts(Protocol):
    """A model that says itself what it makes of images (:class:`fed_diffmic.inference.predictor.Predictor`)."""

    @property
    def spec(self) -> RunSpec:
        """What it was trained as."""

    def predict(self, examples: Examples) -> Scored:
        """Calibrated probabilities and decisions."""


Judged = Final | Predicts


def compare_models(
    config: SiteConfig,
    model: Judged,
    other: Judged | None,
    *,
    split: str = "test",
    bootstrap: int = BOOTSTRAP,
    own: Mapping[str, Predicts] | None = None,
) -> Comparison:
    """Score models on the site's own images.

    Args:
        config: of the site.
        model: that came.
        other: that is in use; none: there is no other.
        split: ``test`` or ``val``.
        bootstrap: resamples of groups.
        own: models that the site made of the one that came, by kind; none: there are none.

    Raises:
        DataError: the split is empty, or the site's classes or task are not a model's.
        ModelFileError: weights that do not fit their model.
    """
    source = SiteSource(config)
    device = chosen_devices(config.site.device)[0]
    site, seed = config.site.name, model.spec.seed
    scored = {CAME: score(source, model, split, device)}
    count, metrics = len(scored[CAME].labels), _metrics(scored[CAME], model.spec, bootstrap)
    found = Comparison(site, split, count, metrics, None, None, CAME, "There is no model in use.")
    if other is not None:
        scored[KEPT] = score(source, other, split, device)
        gap = _difference(site, scored[CAME], scored[KEPT], bootstrap, seed)
        take, why = which_to_take(gap)
        theirs = _metrics(scored[KEPT], other.spec, bootstrap)
        found = replace(found, other=theirs, difference=gap, take=take, why=why)
    if not own:
        return found
    scored |= {own_name(kind): score(source, each, split, device) for kind, each in own.items()}

    def gap_of(first: str, second: str) -> Mapping[str, Any]:
        cell: Mapping[str, Any] = _difference(site, scored[first], scored[second], bootstrap, seed)[RANKED]
        return cell

    of_own = {kind: _metrics(scored[own_name(kind)], model.spec, bootstrap) for kind in own}
    if split == "val":  # its training was stopped, its calibration and its share were fitted on these images
        return replace(found, why=f"{found.why} {MADE_ON_THEM}", own=of_own)
    choice = choose_model(list(scored), gap_of)
    why = " ".join(map(step_text, choice.steps))
    return replace(found, take=choice.model, why=why, own=of_own, steps=[asdict(step) for step in choice.steps])


def _difference(site: str, first: Scored, second: Scored, bootstrap: int, seed: int) -> dict[str, Any]:
    try:
        found = difference({site: first}, {site: second}, bootstrap=bootstrap, seed=seed)
    except ValueError as error:
        raise DataError(
            f"the two models cannot be compared: {error}",
            "Compare them again while nobody changes the site's table or images: each model reads them itself.",
        ) from error
    cells: dict[str, Any] = found["sites"][site]
    return cells


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


def score(source: SiteSource, model: Judged, split: str, device: str) -> Scored:
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
    if isinstance(model, Predicts):
        return model.predict(examples)
    stage = next((name for name in STAGES if name in model.states), None)
    if stage is None or stage not in model.calibration:
        raise ModelFileError("the model has no finished stage", "Give the folder of a run that has ended.")
    module = build_module(spec, stage)
    load_state(module.network, model.states[stage], f"stage {stage}")
    fitted = model.calibration[stage]
    return judged(predict_scores(module, examples, torch.device(device)), examples, fitted, spec)


def is_in_use(final: Path, folder: Path, site: str, parts: Mapping[str, Tensors]) -> bool:
    """Whether a model is the one in use, which is known to hold: to keep it again would push out the one before.

    Args:
        final, folder, site, parts: as :func:`take_over`.

    Raises:
        ModelFileError: one of the two cannot be read.
    """
    ours = folder / IN_USE
    if model_digest(final) != model_digest(ours):  # which names all else by digest but what never left the site
        return False
    files = {stage: personal_file(ours, stage, site) for stage in parts}
    return all(
        file.is_file() and tensors_digest(load_tensors(file)) == tensors_digest(parts[stage])
        for stage, file in files.items()
    )


def take_over(
    final: Path,
    folder: Path,
    site: str,
    parts: Mapping[str, Tensors] | None = None,
    *,
    signer: PrivateKey | None = None,
    before: Callable[[Path], None] | None = None,
    refused: bool = False,
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
        refused: the model in use is not what it should be: it is put aside as ``model.refused``, and what was kept of
            the one before stays.

    Returns:
        The folder of the model in use.

    Raises:
        UsageError: it is the one in use.
        ModelFileError: its signature does not hold.
    """
    target, part, aside = folder / IN_USE, folder / NEW, folder / (REFUSED if refused else BEFORE)
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
    if target.exists():  # else a power cut came between the two names, and the one before is where it belongs
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    part.rename(target)
    sync_folder(folder)
    return target


def _copy(final: Path, part: Path, site: str, parts: Mapping[str, Tensors], signer: PrivateKey | None) -> None:
    part.mkdir(mode=0o700)
    shutil.copytree(final / "final", part / "final")
    if (final / OWN).is_dir():  # a mixture is two models
        shutil.copytree(final / OWN, part / OWN)
    if (part / "final" / PROVENANCE).exists():
        pin(part, signed_key(part / "final" / PROVENANCE))
    for stage, own in parts.items():
        save_part(part, stage, site, own)
    if parts:
        sign_parts(part, site, parts, signer)


def _metrics(scored: Scored, spec: RunSpec, bootstrap: int) -> dict[str, Any]:
    every = metrics_of(scored, spec, bootstrap)
    return {metric: every[metric] for metric in METRICS}
