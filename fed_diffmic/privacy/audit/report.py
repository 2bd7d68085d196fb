"""An audit as a whole: every attack, its bound against the claim, and what that says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from fed_diffmic.privacy.audit.attacks import computed_again, made_up_gradients, real_pictures
from fed_diffmic.privacy.audit.bound import Result, assess
from fed_diffmic.privacy.audit.subject import Subject

REFUTED, WEAK, CONSISTENT = "refuted", "inconclusive", "consistent"
WORDS = {
    REFUTED: "REFUTED: an attack told members from non-members better than the claimed epsilon allows, or the noise "
    "can be computed again. The privacy of this installation does not hold; do not train with it.",
    WEAK: "INCONCLUSIVE: no attack contradicts the claim, but the sharpest one stayed below a third of it, so that "
    "little was proved. Use more runs.",
    CONSISTENT: "CONSISTENT: no attack contradicts the claim, and the sharpest one reached more than a third of it. "
    "That is evidence, not proof: an audit finds faults and cannot exclude them.",
}
ABOUT = {
    "gradient": "made-up gradients, every step seen",
    "picture": "pictures, every step seen",
    "loss": "pictures, the final loss alone",
    "again": "computed again from the run's seed",
}
_PROBES = 12


@dataclass(frozen=True)
class Size:
    """How many runs, and canaries in each, of the attacks.

    With some 10,000 canaries that count the first attack's bound comes out between 0.36 and 0.5 of a claim of 4.
    """

    gradient_runs: int = 160
    gradient_canaries: int = 128
    picture_runs: int = 96
    picture_canaries: int = 8
    again_runs: int = 600

    def scaled(self, runs: int) -> Size:
        """As many runs of the first attack, the others in proportion, at least two."""
        picture, again = (max(2, n * runs // self.gradient_runs) for n in (self.picture_runs, self.again_runs))
        return replace(self, gradient_runs=runs, picture_runs=picture, again_runs=again)


@dataclass(frozen=True)
class Report:
    """Attacks by name, with the claim they are held against.

    Attributes:
        claim: epsilon at ``delta``, as the ledger would say of the rounds observed.
        confidence: of each bound by itself.
        results: by attack.
        settings: of the mechanism.
        repeatable: a round that was computed again came out equal in every bit. No noise that is worth the name does
            that, so it refutes any claim, also one for which there are too few runs to say so in numbers.
    """

    claim: float
    delta: float
    confidence: float
    results: dict[str, Result]
    settings: dict[str, Any]
    repeatable: bool = False

    @property
    def verdict(self) -> str:
        """One of :data:`WORDS`."""
        if self.repeatable or any(result.bound > self.claim for result in self.results.values()):
            return REFUTED
        return CONSISTENT if self.results["gradient"].bound > self.claim / 3 else WEAK

    def to_json(self) -> dict[str, Any]:
        """As a file holds it."""
        return {
            "verdict": self.verdict,
            "claim": {"epsilon": self.claim, "delta": self.delta},
            "confidence": self.confidence,
            "repeatable": self.repeatable,
            "attacks": {name: asdict(result) for name, result in self.results.items()},
            "settings": self.settings,
        }

    def lines(self) -> list[str]:
        """A table and the verdict, for people."""
        rows = [f"{'attack':40}{'canaries':>9}{'guesses':>9}{'right':>7}{'epsilon at least':>18}"]
        for name, r in self.results.items():
            rows.append(f"{ABOUT[name]:40}{r.canaries:>9}{r.guesses:>9}{r.correct:>7}{r.bound:>18.3f}")
        rows.append(f"claimed: epsilon {self.claim:.3f} at delta {self.delta:g}; each bound at {self.confidence:.0%}")
        return [*rows, WORDS[self.verdict]]


def audit(
    subject: Subject,
    size: Size,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    tell: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Report:
    """Attack the mechanism in all ways and hold the bounds against the claim.

    Args:
        seed: of the attacker's own choices; never of the mechanism's noise.
        tell: called with attack, runs done and runs in all.

    Raises:
        ConfigError: the mechanism cannot be run so.
        OutOfTimeError: a bound on the time that the caller set is over.
    """

    def told(name: str, total: int) -> Callable[[int], None]:
        return lambda done: tell(name, done, total)

    gradient = made_up_gradients(
        subject, size.gradient_runs, size.gradient_canaries, seed, told("gradient", size.gradient_runs)
    )
    steps, loss = real_pictures(
        subject, size.picture_runs, size.picture_canaries, seed, told("picture", size.picture_runs)
    )
    again = computed_again(subject, _PROBES, seed, told("again", _PROBES))
    repeatable = again.said is not None and bool(again.said.any())
    if repeatable:  # now with enough runs for a bound
        again = computed_again(subject, size.again_runs, seed, told("again", size.again_runs))
    trials = {"gradient": gradient, "picture": steps, "loss": loss, "again": again}
    privacy, plan = subject.privacy, subject.plan
    return Report(
        claim=subject.claim,
        delta=privacy.delta,
        confidence=confidence,
        results={name: assess(t.scores, t.included, privacy.delta, confidence, t.said) for name, t in trials.items()},
        settings={
            "unit": privacy.unit,
            "stage": subject.stage,
            "max_grad_norm": privacy.max_grad_norm,
            "accountant": privacy.accountant,
            "sample_rate": plan.sample_rate,
            "noise_multiplier": plan.noise_multiplier,
            "rounds": subject.rounds,
            "steps": plan.steps,
            "test_seed": privacy.test_seed,
        },
        repeatable=repeatable,
    )
