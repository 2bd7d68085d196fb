"""Attacks on noise that sites share: on the sum of those who are taken to be honest, and on one site's words alone.

The attacker is the coordinator together with every other site: what those sent is known and taken away, so that the sum
of the audited site and of as many others as ``privacy.honest_sites`` is left. Everything from the share to the words is
the code of a real site (``noised_words``). Canaries at the audited site have gradients along single coordinates, longer
than the clipping bound (Nasr et al. 2021), and nothing else is trained on: the worst case, in which all other units are
known. Two things are held against the claim:

- **guesses** who was in, as a lower bound on epsilon (:mod:`fed_diffmic.privacy.audit.bound`). It reaches a half of a
  claim and so misses noise that is a little too small;
- **the noise itself**, where no canary is: the variance of what is left, over the squared length that a unit can have
  (chi-square, at 1e-6). One share of three that is missing is a third of the variance, which no bound on epsilon of
  so few runs could show and this does at once.

A word that comes out equal again, with every generator of the process set to the same seed, refutes any claim.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.compose import compose
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.data.site import Examples
from fed_diffmic.deadline import check_time
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.privacy.audit.attacks import Trials, log_ratio
from fed_diffmic.privacy.audit.bound import Result, assess
from fed_diffmic.privacy.audit.report import CONSISTENT, REFUTED, WEAK, WORDS
from fed_diffmic.privacy.audit.subject import CLASSES, CanaryStage, pictures, with_labels
from fed_diffmic.privacy.distributed.accounting import cost, share_for
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.distributed.step import form_at_site, noised_words
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import build_module
from fed_diffmic.training.update import LocalRound

SUM, ALONE = "sum", "alone"
STAGE = "plain"
_LEVEL = 1e-6  # at which the variance of the noise is called too small
_STRENGTH = 100.0  # a canary's gradient before clipping, in clipping bounds
_RATE = 0.9  # close to one: a higher one audits sharper, one itself no sampling


@dataclass(frozen=True)
class SharedSubject:
    """The mechanism in question.

    Attributes:
        privacy: as a site would have it.
        spec: of a run of ``tiny`` with its encoders frozen.
        rounds: that are observed.
        sites: whose noise is in the sum: the audited one and the others that are taken to be honest.
        form: of the rounds (each has other signs).
        claims: epsilon of all rounds at ``privacy.delta``, as the ledger would say, by :data:`SUM` and :data:`ALONE`.
    """

    privacy: PrivacyConfig
    spec: RunSpec
    rounds: int
    sites: int
    form: NoisyForm
    claims: dict[str, float]

    def multiplier(self, view: str) -> float:
        """Standard deviation of the noise over the clipping bound."""
        shares = self.sites if view == SUM else 1
        return float(self.form.deviation / self.form.quanta * np.sqrt(shares))


def make_shared_subject(
    privacy: PrivacyConfig, *, target: float = 4.0, rounds: int = 2, seed: int = 0
) -> SharedSubject:
    """A subject with a site's settings, its share planned for ``target`` over the few rounds of an audit."""
    sites = privacy.honest_sites + 1
    share = share_for(target, privacy.delta, _RATE, rounds, privacy.honest_sites)
    config = compose(
        None,
        [
            f"seed={seed}", "model=tiny", "model.norm=group", "model.encoder_norm=group", "stages=linear",
            f"stages.plain.rounds={rounds}", "stages.plain.steps=1", "stages.plain.augment=false", "strategy=fedsgd",
            f"strategy.sample_rate={_RATE}", f"strategy.noise_share={share!r}", "strategy.clip_norm=2",
            "privacy=dp_sgd",
            "privacy.mechanism=distributed", "privacy.stages=[plain]", "privacy.budget_alone=1e6",
        ],
    )  # fmt: skip
    spec = make_spec(config, classes=CLASSES, task="multiclass", run_id="audit", arm="audit", device="cpu")
    form = form_at_site(build_module(spec, STAGE), _algorithm(spec), 1)
    price = cost(form, _RATE, privacy.honest_sites, rounds)
    claims = {SUM: epsilon([price.honest], privacy.delta), ALONE: epsilon([price.alone], privacy.delta)}
    return SharedSubject(privacy, spec, rounds, sites, form, claims)


@dataclass(frozen=True)
class SharedReport:
    """What was found of one view of the words.

    Attributes:
        claims: by view.
        results: the guesses of each view.
        noise: by view, measured variance of the noise over what is accounted for.
        short: by view, whether that is too small to be chance.
        repeatable: words came out equal again.
        settings: of the mechanism.
    """

    claims: dict[str, float]
    delta: float
    confidence: float
    results: dict[str, Result]
    noise: dict[str, float]
    short: dict[str, bool]
    repeatable: bool
    settings: dict[str, Any]

    @property
    def verdict(self) -> str:
        """One of :data:`fed_diffmic.privacy.audit.report.WORDS`."""
        broken = any(self.results[view].bound > claim for view, claim in self.claims.items())
        if broken or self.repeatable or any(self.short.values()):
            return REFUTED
        sharp = all(self.results[view].bound > claim / 3 for view, claim in self.claims.items() if view == SUM)
        return CONSISTENT if sharp else WEAK

    def to_json(self) -> dict[str, Any]:
        """As a file holds it."""
        found = {name: asdict(result) for name, result in self.results.items()}
        return {**asdict(self), "verdict": self.verdict, "results": found}

    def lines(self) -> list[str]:
        """A table and the verdict, for people."""
        about = {SUM: "sum of those taken to be honest", ALONE: "one site's words alone"}
        rows = [f"{'seen':34}{'right':>14}{'epsilon at least':>18}{'claimed':>9}{'variance of noise':>19}"]
        for view, r in self.results.items():
            right = f"{r.correct} of {r.guesses}"
            measured = f"{self.noise[view]:.3f}" + (" short" if self.short[view] else "")
            rows.append(f"{about[view]:34}{right:>14}{r.bound:>18.3f}{self.claims[view]:>9.3f}{measured:>19}")
        rows.append(
            f"at delta {self.delta:g}; each bound at {self.confidence:.0%}; variance over what is accounted for"
        )
        return [*rows, WORDS[self.verdict]]


def audit_shared(
    subject: SharedSubject,
    runs: int,
    canaries: int = 128,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    tell: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> SharedReport:
    """Attack the shares in all ways and hold what is found against both claims.

    Args:
        runs: of the attack by canaries, at least two.
        canaries: in each.
        seed: of the attacker's own choices; never of the mechanism's noise.
        tell: called with attack, runs done and runs in all.

    Raises:
        ConfigError: the mechanism cannot be run so.
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    rng = np.random.default_rng([seed, 4])
    scores = {view: np.zeros((runs, canaries)) for view in (SUM, ALONE)}
    included = rng.random((runs, canaries)) < 0.5
    rest: dict[str, list[np.ndarray]] = {SUM: [], ALONE: []}
    module = build_module(subject.spec, STAGE)
    for run in range(runs):
        for index in range(1, subject.rounds + 1):
            check_time()
            for view, (seen, others) in _round(subject, module, included[run], index, rng).items():
                scores[view][run] += log_ratio(seen, subject.multiplier(view) ** -2, _RATE)
                rest[view].append(others)
        tell("shared", run + 1, runs)
    noise = {view: np.concatenate(parts) / subject.multiplier(view) for view, parts in rest.items()}
    trials = {view: Trials(found, included) for view, found in scores.items()}
    privacy, form = subject.privacy, subject.form
    return SharedReport(
        claims=subject.claims,
        delta=privacy.delta,
        confidence=confidence,
        results={v: assess(t.scores, t.included, privacy.delta, confidence) for v, t in trials.items()},
        noise={view: float(np.mean(values**2)) for view, values in noise.items()},
        short={v: bool(stats.chi2.cdf(np.sum(x**2), len(x)) < _LEVEL) for v, x in noise.items()},
        repeatable=_repeatable(subject, module),
        settings={
            "unit": privacy.unit, "honest_sites": privacy.honest_sites, "sample_rate": _RATE, "rounds": subject.rounds,
            "noise_share": form.share, "deviation": form.deviation, "quanta": form.quanta,
            "test_seed": privacy.test_seed,
        },
    )  # fmt: skip


def _round(
    subject: SharedSubject, module: StageModule, included: np.ndarray, index: int, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One round by each view: what is seen of each canary, and of the places without one, in clipping bounds."""
    name = max(subject.form.shapes, key=lambda n: int(np.prod(subject.form.shapes[n])))
    places = rng.permutation(int(np.prod(subject.form.shapes[name])))[: len(included)]
    stage = CanaryStage(module, name, places, _STRENGTH * subject.form.clip_norm)
    train = _canaries(subject, included)
    own = _words(subject, stage, train, "audited", index)
    nobody = train.subset(np.zeros(len(train), dtype=bool))
    total = own.copy()
    for number in range(1, subject.sites):
        total += _words(subject, module, nobody, f"honest {number}", index)
    form = _form(subject, index)
    found = {}
    for view, words in ((SUM, total), (ALONE, own)):
        sums = form.sums(words)
        other = np.delete(sums[name].ravel(), places)
        rest = [value.ravel() for key, value in sums.items() if key != name]
        found[view] = (sums[name].ravel()[places] / form.clip_norm, np.concatenate([other, *rest]) / form.clip_norm)
    return found


def _canaries(subject: SharedSubject, included: np.ndarray) -> Examples:
    """The canaries that are in, one image each, which nobody looks at."""
    numbers = np.arange(len(included))
    examples = with_labels(
        pictures(subject.spec, len(included), 1), numbers.tolist(), (len(CLASSES) + numbers).tolist()
    )
    return examples.subset(included)


def _words(subject: SharedSubject, module: StageModule, train: Examples, site: str, index: int) -> np.ndarray:
    at, form = LocalRound(site, index), _form(subject, index)
    return noised_words(module, train, at, form, _RATE, privacy=subject.privacy)


def _form(subject: SharedSubject, index: int) -> NoisyForm:
    return replace(subject.form, seed=subject.form.seed + index)


def _algorithm(spec: RunSpec) -> FedSgd:
    made = build_algorithm(spec.strategy)
    if not isinstance(made, FedSgd):
        raise ValueError("shared noise is that of strategy=fedsgd")
    return made


def _repeatable(subject: SharedSubject, module: StageModule) -> bool:
    """Whether the same round gives the same words where all that a run's seed decides is the same."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    nobody = _canaries(subject, np.zeros(1, dtype=bool))
    try:
        words = []
        for _ in range(2):
            for begin in (torch.manual_seed, np.random.seed, random.seed):
                begin(subject.spec.seed)
            words.append(_words(subject, module, nobody, "audited", 1))
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
    return np.array_equal(words[0], words[1])
