"""When sites may share the noise of differential privacy (``strategy=fedsgd``, ``privacy.mechanism=distributed``)."""

from __future__ import annotations

from fed_diffmic.config.features import Trained
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.errors import ConfigError

NAME = "fedsgd"


def check_shared_noise(config: Trained) -> None:
    """Refuse settings of a run that sums with shared noise could not honour.

    Args:
        config: a simulation's or a coordinator's configuration, or the spec that a site was sent.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed beside the others.
    """
    strategy = config.strategy
    if isinstance(config, SimulateConfig):
        _check_simulation(config)
    if strategy.name != NAME:
        return
    if isinstance(config, ServerConfig) and strategy.secure_aggregation != "masked":
        raise ConfigError(
            "strategy.secure_aggregation",
            strategy.secure_aggregation,
            f"masked with strategy={NAME} at a coordinator",
            "A site's share of the noise alone does not protect it: real sites give such words under masks only.",
        )
    if strategy.participation != 1.0:
        raise ConfigError(
            "strategy.participation",
            strategy.participation,
            f"1 with strategy={NAME}",
            "Every site adds its share of noise to every sum.",
        )
    for stage in ("guidance", "diffusion", "plain"):
        chosen = getattr(config.stages, stage)
        if chosen.rounds and chosen.steps != 1:
            raise ConfigError(
                f"stages.{stage}.steps",
                chosen.steps,
                f"1 with strategy={NAME}",
                "A round is one step of the server; more rounds are more steps.",
            )
    if isinstance(config, SimulateConfig):
        return
    if strategy.options.get("noise_share") is None:
        raise ConfigError(
            "strategy.noise_share",
            "null",
            f"a number with strategy={NAME}",
            "Every site has to know what share of the noise all of them add: `fed-diffmic ledger share` computes it.",
        )


def _check_simulation(config: SimulateConfig) -> None:
    """Noise that is shared by the sites and expected by the run, or neither; among sites that are enough."""
    privacy, named = config.privacy, config.strategy.name == NAME
    shares = privacy.name != "none" and privacy.mechanism == "distributed"
    if shares and not named:
        raise ConfigError("strategy.name", config.strategy.name, f"{NAME} with privacy.mechanism=distributed")
    # A coordinator's run is read in a simulation's form, without the privacy group, which is the sites' own.
    of_sites = config.strategy.secure_aggregation == "masked" and config.strategy.options.get("noise_share") is not None
    if named and not shares and not of_sites:
        raise ConfigError(
            "privacy.mechanism",
            privacy.mechanism if privacy.name != "none" else "local (privacy=none)",
            f"distributed, with privacy=dp_sgd, where strategy={NAME}",
        )
    if named and config.baselines:
        raise ConfigError(
            "baselines",
            config.baselines,
            f"[] with strategy={NAME}",
            "One site alone shares noise with nobody; run baselines under privacy.mechanism=local.",
        )


def check_shared_policy(privacy: PrivacyConfig, policy: PolicyConfig) -> None:
    """A site that shares noise, and whose policy lets its words into no sum, or into one over too few others.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed.
    """
    if privacy.name == "none" or privacy.mechanism != "distributed":
        return
    if policy.secure_aggregation == "off":
        raise ConfigError(
            "policy.secure_aggregation",
            "off",
            "required or allowed with privacy.mechanism=distributed",
            "With its share of the noise alone this site's words leave under masks only.",
        )
    if policy.min_sites < privacy.honest_sites:
        raise ConfigError(
            "policy.min_sites",
            policy.min_sites,
            f"at least {privacy.honest_sites}, which is privacy.honest_sites",
            "A sum over fewer others could not hold the noise that the claim counts on.",
        )


def check_shared_privacy(privacy: PrivacyConfig) -> None:
    """A site's privacy group that shares noise and does not say what that needs.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed.
    """
    if privacy.mechanism != "distributed":
        return
    if privacy.noise_multiplier is not None:
        raise ConfigError(
            "privacy.noise_multiplier",
            privacy.noise_multiplier,
            "null with privacy.mechanism=distributed",
            "What each site adds is the run's strategy.noise_share.",
        )
    if privacy.epsilon is None:
        raise ConfigError(
            "privacy.epsilon",
            "null",
            "a number with privacy.mechanism=distributed",
            "From it the share of noise is computed.",
        )
    if privacy.budget_alone is None:
        raise ConfigError(
            "privacy.budget_alone",
            "null",
            "a number with privacy.mechanism=distributed",
            "Set it to the most that these data may lose if every other site is dishonest and adds no noise.",
        )
