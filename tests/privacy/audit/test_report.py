from dataclasses import replace

import pytest

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy.audit.bound import Result
from fed_diffmic.privacy.audit.report import CONSISTENT, REFUTED, WEAK, Report, Size, audit
from fed_diffmic.privacy.audit.subject import make_subject


def report(**bounds):
    results = {name: Result(100, 50, 40, bounds.get(name, 0.0)) for name in ("gradient", "picture", "loss", "again")}
    return Report(4.0, 1e-5, 0.95, results, {})


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({}, WEAK),
        ({"gradient": 1.3}, WEAK),
        ({"picture": 3.9}, WEAK),  # the others say nothing of how sharp the first one is
        ({"gradient": 1.4}, CONSISTENT),
        ({"gradient": 4.0}, CONSISTENT),
        ({"gradient": 4.1}, REFUTED),
        ({"gradient": 1.4, "again": 4.1}, REFUTED),
    ],
)
def test_the_verdict(bounds, verdict):
    found = report(**bounds)
    assert found.verdict == verdict == found.to_json()["verdict"]
    assert found.lines()[-1].startswith(verdict.upper())


def test_a_repeatable_round_refutes_whatever_the_bounds_are():
    found = replace(report(gradient=1.4), repeatable=True)
    assert found.verdict == REFUTED and found.to_json()["repeatable"] is True


def test_the_size_in_proportion():
    assert Size().scaled(160) == Size()
    small = Size().scaled(2)
    assert (small.gradient_runs, small.picture_runs, small.again_runs) == (2, 2, 7)


@pytest.mark.slow
def test_noise_that_can_be_had_again_is_attacked_with_all_runs():
    privacy = PrivacyConfig(name="dp_sgd", unit="image", physical_batch=64, test_seed=3)
    subject = make_subject(privacy, target=1.0, ordinary=2)
    told = []
    found = audit(subject, replace(Size(), gradient_runs=2, gradient_canaries=4, picture_runs=2, picture_canaries=2,
                                   again_runs=40), tell=lambda *facts: told.append(facts))  # fmt: skip
    assert found.verdict == REFUTED and found.results["again"].bound > 1.0
    assert found.results["again"].canaries == 20
    assert told[-1] == ("again", 40, 40) and ("gradient", 2, 2) in told
