"""The attacks: made-up gradients, pictures, the final model's loss, and a run computed again.

Each gives, for every run and canary, a score (larger: more likely in the training set) and the truth;
:func:`fed_diffmic.privacy.audit.bound.assess` makes a lower bound on epsilon of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.privacy.audit.subject import CLASSES, Observer, Subject, pictures, with_labels
from fed_diffmic.training.stage import Batch, StageModule

_LEAST_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class Trials:
    """What an attacker thinks of each canary, and the truth.

    Attributes:
        scores: ``(R, m)`` float64.
        included: ``(R, m)`` bool.
        said: ``(R, m)`` bool, where the attacker says anything; none: everywhere.
    """

    scores: np.ndarray
    included: np.ndarray
    said: np.ndarray | None = None


def log_ratio(moved: np.ndarray, precision: np.ndarray | float, rate: float) -> np.ndarray:
    """Logarithm of how much likelier it is that a unit was in the training set, from one step.

    Args:
        moved: estimate of the unit's clipped contribution, in its own length: 1 if it took part, 0 if not, and noise.
        precision: one over the noise's variance.
        rate: sample rate of units that are in the training set.
    """
    with np.errstate(divide="ignore"):  # rate 1: log1p(-1)
        return np.logaddexp(np.log1p(-rate), np.log(rate) + precision * (moved - 0.5))


def made_up_gradients(subject: Subject, runs: int, canaries: int, seed: int, tell: Callable[[int], None]) -> Trials:
    """Canaries whose gradients lie along single coordinates, longer than the clipping bound; all steps are seen.

    The strongest attack that the accounting allows for (Nasr et al. 2021, "adversary instantiation", gradient attack).
    """
    rng = np.random.default_rng([seed, 1])
    observer, plan = Observer(subject), subject.plan
    examples = pictures(subject.spec, subject.ordinary + canaries, subject.images_each)
    numbers = np.arange(canaries)
    examples = with_labels(examples, (subject.ordinary + numbers).tolist(), (len(CLASSES) + numbers).tolist())
    scores, included = np.zeros((runs, canaries)), rng.random((runs, canaries)) < 0.5
    for run in range(runs):
        stage, name, places = observer.canaries(canaries, rng)
        train = _with(subject, examples, included[run])
        observer.begin()
        for index in range(1, subject.rounds + 1):
            check_time()
            # A loss goes down against its gradient, and what moved is the sum of gradients.
            moved = observer.round(stage, train, index)[name].ravel()[places]
            scores[run] += log_ratio(moved, plan.noise_multiplier**-2, plan.sample_rate)
        tell(run + 1)
    return Trials(scores, included)


def real_pictures(
    subject: Subject, runs: int, canaries: int, seed: int, tell: Callable[[int], None]
) -> tuple[Trials, Trials]:
    """Canaries that are images: by each step's weights, and by the final model's loss alone.

    - *steps*: the attacker knows every image, so also each clipped gradient, and finds by least squares which of them
      are in what was released.
    - *loss*: the loss of each canary under the last weights, against its losses in the runs of the first half, with it
      and without (likelihood ratio, Carlini et al. 2022). Those runs are the shadow runs.
    """
    rng = np.random.default_rng([seed, 2])
    observer, plan = Observer(subject), subject.plan
    examples = pictures(subject.spec, subject.ordinary + canaries, subject.images_each)
    known = np.full(subject.ordinary + canaries, 1.0)
    known[subject.ordinary :] = 0.5
    scores, losses = np.zeros((runs, canaries)), np.zeros((runs, canaries))
    included = rng.random((runs, canaries)) < 0.5
    for run in range(runs):
        train = _with(subject, examples, included[run])
        observer.begin()
        for index in range(1, subject.rounds + 1):
            check_time()
            gradients = _clipped_gradients(observer, examples)
            released = observer.round(observer.module, train, index)
            estimate, precision = _least_squares(
                gradients, _flat(released), plan.noise_multiplier**2, known * plan.sample_rate
            )
            scores[run] += log_ratio(estimate, precision, plan.sample_rate)[subject.ordinary :]
        losses[run] = _losses(observer, examples)[subject.ordinary :]
        tell(run + 1)
    return Trials(scores, included), Trials(_likelihood_ratio(losses, included), included)


def computed_again(subject: Subject, runs: int, seed: int, tell: Callable[[int], None]) -> Trials:
    """Whoever knows the run's seed computes the round again, with the canary and without, and compares.

    Every generator of the process is set to the run's seed before each of the three, as an implementation would that
    takes its noise from there. Only a result that is equal in every bit counts: of others nothing is said.
    """
    rng = np.random.default_rng([seed, 3])
    observer = Observer(subject)
    examples = pictures(subject.spec, subject.ordinary + 1, subject.images_each)
    included = rng.random((runs, 1)) < 0.5
    scores, said = np.zeros((runs, 1)), np.zeros((runs, 1), dtype=bool)

    def weights(there: bool, index: int) -> dict[str, np.ndarray]:
        for begin in (torch.manual_seed, np.random.seed, random.seed):
            begin(subject.spec.seed)
        observer.begin()
        observer.round(observer.module, _with(subject, examples, np.array([there])), index)
        return observer.weights()

    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        for run in range(runs):
            check_time()
            seen, with_it, without = (weights(there, run + 1) for there in (bool(included[run, 0]), True, False))
            scores[run, 0] = float(_equal(seen, with_it)) - float(_equal(seen, without))
            said[run, 0] = scores[run, 0] != 0
            tell(run + 1)
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
    return Trials(scores, included, said)


def _with(subject: Subject, examples: Examples, included: np.ndarray) -> Examples:
    """The ordinary units and the canaries that are in."""
    inside = np.concatenate([np.ones(subject.ordinary, dtype=bool), included])
    return examples.subset(np.repeat(inside, subject.images_each))


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _flat(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def _unit_losses(module: StageModule, examples: Examples, unit: int, images_each: int) -> torch.Tensor:
    """Losses of a unit's images, differentiable; draws from a fixed seed (the site's own are unknown)."""
    index = np.arange(unit * images_each, (unit + 1) * images_each)
    images = normalise(examples.images(index), module.spec.mean, module.spec.std)
    draws = module.draws(len(index), torch.Generator().manual_seed(unit), "cpu")
    return module.losses(Batch(module.inputs(images), torch.from_numpy(examples.labels[index])), draws)


def _clipped_gradients(observer: Observer, examples: Examples) -> np.ndarray:
    """``(U, P)`` clipped gradient of every unit at the present weights, in clipping bounds, one at a time."""
    subject, module = observer.subject, observer.module
    parameters = [module.network.get_parameter(name) for name in observer.names]
    rows = []
    module.train()
    for unit in range(len(examples) // subject.images_each):
        loss = _unit_losses(module, examples, unit, subject.images_each).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        rows.append(gradient / max(subject.privacy.max_grad_norm, gradient.norm().item()))
    return torch.stack(rows).numpy()


@torch.no_grad()
def _losses(observer: Observer, examples: Examples) -> np.ndarray:
    """``(U,)`` loss of each unit at the present weights."""
    each = observer.subject.images_each
    units = range(len(examples) // each)
    return np.array([_unit_losses(observer.module, examples, unit, each).mean().item() for unit in units])


def _least_squares(
    gradients: np.ndarray, released: np.ndarray, variance: float, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each unit took part in a step, with the precision of that estimate.

    A Gaussian model of ``released = sum_j b_j gradients_j + noise``, where ``b_j`` is 1 with probability ``mean_j``:
    the posterior of each ``b_j``, what was assumed of itself taken out again.

    Returns:
        Estimates and precisions, ``(U,)`` each.
    """
    spread = mean * (1 - mean)
    covariance = np.linalg.inv(gradients @ gradients.T / variance + np.diag(1 / spread))
    posterior = covariance @ (gradients @ released / variance + mean / spread)
    own = np.diag(covariance)
    precision = np.maximum(1 / own - 1 / spread, 1e-12)
    return (posterior / own - mean / spread) / precision, precision


def _likelihood_ratio(losses: np.ndarray, included: np.ndarray) -> np.ndarray:
    """How much likelier a loss is with the unit in, from normal fits to the first half of the runs."""
    half = len(losses) // 2
    result = np.zeros_like(losses)
    for canary in range(losses.shape[1]):
        value, there = losses[:half, canary], included[:half, canary]
        if there.sum() < 2 or (~there).sum() < 2:
            continue  # too few shadow runs: nothing is known of it
        fits = [(part.mean(), max(part.std(), _LEAST_SPREAD)) for part in (value[there], value[~there])]
        inside, outside = (-(((losses[:, canary] - m) / s) ** 2) / 2 - np.log(s) for m, s in fits)
        result[:, canary] = inside - outside
    return result
