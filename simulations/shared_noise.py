"""How much noise the virtual sites of a run share: computed once, from the privacy that all of them have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fed_diffmic.algorithms.base import build_algorithm
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.shared_noise import NAME
from fed_diffmic.config.simulation import SimulateConfig, StrategyConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.masking.shamir import most_dishonest, share_threshold
from fed_diffmic.exchange.masking.site import MIN_SITES
from fed_diffmic.privacy.distributed.accounting import share_for
from fed_diffmic.privacy.dp_sgd import count_mechanism
from simulations.arms import Arm


def with_share(config: SimulateConfig, strategy: StrategyConfig, arm: Arm) -> StrategyConfig:
    """The strategy of an arm with ``noise_share`` in it, so that all its rounds cost ``privacy.epsilon`` together.

    That epsilon holds if ``privacy.honest_sites`` others add their shares; each site computes for itself what it costs.

    Raises:
        ConfigError: there are not so many others, or nothing says how much noise.
    """
    if strategy.name != NAME:
        return strategy
    _check_honest(config, arm.sites)
    algorithm = build_algorithm(strategy)
    if not isinstance(algorithm, FedSgd) or algorithm.options.noise_share is not None:
        return strategy
    privacy = config.privacy
    if privacy.epsilon is None:
        raise ConfigError("strategy.noise_share", "null", "a number, or privacy.epsilon to compute it from")
    rounds = sum(getattr(config.stages, stage).rounds or 0 for stage in arm.stages if stage in privacy.stages)
    counts = count_mechanism(privacy)
    try:
        share = share_for(
            privacy.epsilon,
            privacy.delta,
            algorithm.options.sample_rate,
            max(1, rounds),
            privacy.honest_sites,
            [counts] if counts else [],
        )
    except ValueError as error:
        raise ConfigError(
            "privacy.epsilon", privacy.epsilon, "more than the class counts alone cost (privacy.count_noise)"
        ) from error
    return replace(strategy, options={**strategy.options, "noise_share": share})


def _check_honest(config: SimulateConfig, sites: Sequence[str]) -> None:
    """Whether a round that has its quorum has as many others as are taken to be honest."""
    least = math.ceil(config.run.quorum * len(sites) - 1e-9)
    if config.privacy.honest_sites > least - 1:
        raise ConfigError(
            "privacy.honest_sites",
            config.privacy.honest_sites,
            f"at most {least - 1}, the others in the smallest sum of {len(sites)} sites (run.quorum)",
        )
    honest, fewest = config.privacy.honest_sites, fewest_honest(len(sites))
    if config.strategy.secure_aggregation == "masked" and 0 < honest < fewest:
        raise ConfigError(
            "privacy.honest_sites",
            honest,
            f"0, or at least {fewest} where {len(sites)} sites mask their sums",
            "Masks do not bear as many dishonest sites as fewer honest ones would leave in a sum.",
        )


def fewest_honest(sites: int) -> int:
    """How many others a site of so many, under masks, has to assume honest if it assumes any (client.distributed)."""
    return max(MIN_SITES, share_threshold(sites) - 1) - most_dishonest(sites)
