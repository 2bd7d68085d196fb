"""Faults seen: each of those that are planted here has to be refuted, and the mechanism as it is must not be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy.audit import shared
from fed_diffmic.privacy.audit.report import CONSISTENT, REFUTED, WEAK
from fed_diffmic.privacy.audit.shared import ALONE, SUM, SharedReport, audit_shared, make_shared_subject
from fed_diffmic.privacy.distributed.discrete import discrete_gaussian
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.randomness import Randomness

PRIVACY = PrivacyConfig(
    name="dp_sgd", unit="image", mechanism="distributed", honest_sites=2, budget_alone=1e6, physical_batch=64
)


def found(runs: int = 2, privacy: PrivacyConfig = PRIVACY) -> SharedReport:
    return audit_shared(make_shared_subject(privacy), runs)


def test_the_mechanism_as_it_is_stands_and_both_claims_are_attacked() -> None:
    report = found(6)
    assert report.verdict in (CONSISTENT, WEAK)  # so few runs need not be sharp
    assert 3.9 < report.claims[SUM] <= 4.0 < report.claims[ALONE]
    assert report.results[SUM].bound < report.claims[SUM]
    assert report.results[ALONE].bound < report.claims[ALONE]
    assert all(0.9 < value < 1.1 for value in report.noise.values())
    assert report.to_json()["results"][SUM]["canaries"] == 384
    assert report.lines()[-1].startswith(report.verdict.upper())


def none(form: NoisyForm, random: Randomness) -> np.ndarray:
    return np.zeros(form.width, dtype=np.int64)


def half(form: NoisyForm, random: Randomness) -> np.ndarray:
    return discrete_gaussian(random, form.deviation // 2, form.width)


def test_noise_of_another_scale_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoisyForm, "noise", half)
    report = found()
    assert report.verdict == REFUTED
    assert report.short == {SUM: True, ALONE: True}


def test_rounding_without_noise_is_refuted_by_the_guesses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoisyForm, "noise", none)
    report = found(16)  # of eight runs a few guesses that fail by chance already hide it
    assert report.verdict == REFUTED
    assert report.short == {SUM: True, ALONE: True}
    assert report.results[SUM].bound > report.claims[SUM]
    assert report.repeatable  # nobody drawn and no noise: the same words again


def test_one_site_that_adds_no_noise_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shared.noised_words

    def lazy(module: Any, train: Any, at: Any, form: NoisyForm, rate: float, **more: Any) -> np.ndarray:
        if at.site == "honest 1":
            return form.words(np.zeros(form.width, dtype=np.int64))
        return words(module, train, at, form, rate, **more)

    monkeypatch.setattr(shared, "noised_words", lazy)
    report = found()
    assert report.verdict == REFUTED
    assert report.short == {SUM: True, ALONE: False}
    assert report.noise[SUM] == pytest.approx(2 / 3, abs=0.1)


def test_noise_from_a_seed_is_refuted() -> None:
    report = found(privacy=replace(PRIVACY, test_seed=3))
    assert report.repeatable
    assert report.verdict == REFUTED
