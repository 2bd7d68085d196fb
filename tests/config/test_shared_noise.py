"""Faults seen: a mechanism that one side does not know of, more honest sites than there are, a share nobody gave."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fed_diffmic.config.checks import check_privacy_group
from fed_diffmic.config.compose import compose, compose_server, compose_site
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.errors import ConfigError
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.privacy.distributed.accounting import cost_of
from fed_diffmic.privacy.dp_sgd import count_mechanism
from simulations.arms import Arm
from simulations.shared_noise import with_share

SETTINGS = (
    "model=tiny",
    "model.norm=group",
    "model.encoder_norm=group",
    "stages=linear",
    "stages.plain.steps=1",
    "strategy=fedsgd",
    "strategy.sample_rate=0.2",
    "privacy=dp_sgd",
    "privacy.stages=[plain]",
    "privacy.mechanism=distributed",
    "privacy.honest_sites=2",
    "privacy.epsilon=3",
    "privacy.budget_alone=30",
)
ARM = Arm("federated", ("plain",), ("a", "b", "c", "d"))


def config(*more: str) -> SimulateConfig:
    return compose(None, [*SETTINGS, *more])


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("privacy.mechanism=local", "privacy.mechanism"),
        ("privacy=none", "privacy.mechanism"),
        ("privacy.budget_alone=null", "privacy.budget_alone"),
        ("privacy.noise_multiplier=2", "privacy.noise_multiplier"),
        ("stages.plain.steps=2", "stages.plain.steps"),
        ("strategy.participation=0.5", "strategy.participation"),
        ("baselines=[local]", "baselines"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_name(setting: str, key: str) -> None:
    config()
    with pytest.raises(ConfigError) as refused:
        config(setting)
    assert refused.value.key == key


def test_shared_noise_needs_the_algorithm_that_sums_it() -> None:
    others = [setting for setting in SETTINGS if not setting.startswith("strategy")]
    with pytest.raises(ConfigError) as refused:
        compose(None, others)
    assert (refused.value.key, refused.value.allowed) == ("strategy.name", "fedsgd with privacy.mechanism=distributed")


def test_a_site_needs_a_second_budget_for_shared_noise_only() -> None:
    check_privacy_group(PrivacyConfig(name="dp_sgd"))
    with pytest.raises(ConfigError, match="budget_alone"):
        check_privacy_group(PrivacyConfig(name="dp_sgd", mechanism="distributed"))


def test_a_simulation_computes_the_share_and_its_rounds_cost_what_was_asked() -> None:
    made = config("privacy.count_noise=20")
    share = with_share(made, made.strategy, ARM).options["noise_share"]
    counts = count_mechanism(made.privacy)
    assert counts is not None
    total = epsilon([counts, cost_of(share, 0.2, 2, 30).honest], made.privacy.delta)
    assert 2.97 < total <= 3.0
    given = config("strategy.noise_share=0.7")
    assert with_share(given, given.strategy, ARM).options["noise_share"] == 0.7
    with pytest.raises(ConfigError, match="count_noise"):
        with_share(config("privacy.count_noise=0.5", "privacy.epsilon=0.1"), made.strategy, ARM)


def test_no_more_sites_are_honest_than_a_sum_that_has_its_quorum_holds() -> None:
    for more, fits in (((), True), (("run.quorum=0.75",), True), (("run.quorum=0.5",), False)):
        made = config(*more)
        if fits:
            with_share(made, made.strategy, ARM)
        else:
            with pytest.raises(ConfigError, match="at most 1, the others"):
                with_share(made, made.strategy, ARM)
    with pytest.raises(ConfigError, match="honest_sites"):
        with_share(config(), config().strategy, Arm("federated", ("plain",), ("a", "b")))


def test_a_spec_without_a_share_is_refused_where_it_arrives() -> None:
    made = config()
    facts = {"classes": ("x", "y"), "task": "multiclass", "run_id": "r", "arm": "federated", "device": "cpu"}
    with pytest.raises(ConfigError, match="noise_share"):
        RunSpec.from_json(make_spec(made, **facts).to_json())
    whole = replace(made, strategy=with_share(made, made.strategy, ARM))
    assert RunSpec.from_json(make_spec(whole, **facts).to_json()).strategy.options["sample_rate"] == 0.2


BESIDE = (
    "privacy=dp_sgd",
    "privacy.mechanism=distributed",
    "privacy.budget_alone=30",
    "privacy.honest_sites=3",
    "policy.min_sites=3",
)


@pytest.mark.parametrize(
    ("setting", "key"),
    [("policy.secure_aggregation=off", "policy.secure_aggregation"), ("policy.min_sites=2", "policy.min_sites")],
)
def test_a_site_that_shares_noise_needs_masked_sums_over_as_many_as_it_counts_on(setting: str, key: str) -> None:
    compose_site(None, list(BESIDE))
    compose_site(None, [*(s for s in BESIDE if not s.startswith("privacy")), setting])  # it shares none
    with pytest.raises(ConfigError) as refused:
        compose_site(None, [*BESIDE, setting])
    assert refused.value.key == key


def test_a_coordinator_shares_noise_under_masks_alone_and_says_how_much() -> None:
    run = ["model=tiny", "model.norm=group", "model.encoder_norm=group", "strategy=fedsgd", "strategy.noise_share=0.7",
           *(f"stages.{stage}.steps=1" for stage in ("guidance", "diffusion"))]  # fmt: skip
    masked = "strategy.secure_aggregation=masked"
    assert compose_server(None, [*run, masked]).strategy.options["noise_share"] == 0.7
    for missing, key in ((run, "strategy.secure_aggregation"), ([*run[:4], *run[5:], masked], "strategy.noise_share")):
        with pytest.raises(ConfigError) as refused:
            compose_server(None, missing)
        assert refused.value.key == key
