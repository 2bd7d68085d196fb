"""FedSGD (McMahan et al. 2017, section 2) with noise that the sites share: one step a round, taken by the server.

Each site sends the sum of its drawn units' clipped gradients with its share of noise, as whole numbers
(:mod:`fed_diffmic.privacy.distributed`); the server adds them up, divides by the expected number of units drawn, and
its optimizer makes the step. With ``g_t`` that mean: SGD has ``v_t = beta v_{t-1} + g_t`` and
``w_{t+1} = w_t - eta v_t``; Adam (Kingma and Ba 2015, algorithm 1) ``m_t = b1 m_{t-1} + (1 - b1) g_t``,
``v_t = b2 v_{t-1} + (1 - b2) g_t^2`` and ``w_{t+1} = w_t - eta m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + tau)``.

A round that finds the mean of the features (``model.features=centred``) is no step: the mean is taken as it is, weights
and moments stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Tensors, register_algorithm
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own
from fed_diffmic.errors import ConfigError


@dataclass(frozen=True)
class Options(Own):
    """FedSGD (McMahan et al. 2017), noise shared by the sites (privacy.mechanism=distributed): one step a round."""

    server_optimizer: str = option("adam", "who makes the server's step", choices=("adam", "sgd"))
    step_size: float | None = option(
        0.01, "learning rate of the server's step; null: the stage's own (stages.*.lr)", gt=0, le=1000
    )
    beta1: float = option(0.9, "decay of the first moment (adam), momentum (sgd)", ge=0, lt=1)
    beta2: float = option(0.999, "decay of the second moment (adam)", ge=0, lt=1)
    tau: float = option(1e-8, "added to the root of the second moment (adam)", gt=0, le=1)
    sample_rate: float = option(
        0.05, "probability with which every unit of every site takes part in a round, known to everybody", gt=0, le=1
    )
    clip_norm: float = option(1.0, "largest L2 norm of one unit's gradient", gt=0, le=1e6)
    noise_share: float | None = option(
        None,
        "standard deviation of the noise that each site adds, over what one unit can change in the sum; null: a "
        "simulation computes it from privacy.epsilon, privacy.honest_sites and the rounds",
        gt=0,
        le=1e6,
    )
    wide_words: bool = option(False, "words of 64 bits instead of 32, where sums of very many units would wrap around")


@register_algorithm("fedsgd", Options)
class FedSgd(Algorithm):
    """Sites send noised sums of gradients; State: ``m/<name>`` and ``v/<name>``, float64, and for adam ``steps``."""

    gradient_sums = True
    options: Options

    @property
    def share(self) -> float:
        """``noise_share`` of a run that is under way.

        Raises:
            ConfigError: nobody has said it.
        """
        if self.options.noise_share is None:
            raise ConfigError(
                "strategy.noise_share", "null", "a number", "What every site adds stands in the run's settings."
            )
        return self.options.noise_share

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """One step of the server's optimizer.

        Args:
            updates: each holds, in float64, the weights less the mean gradient over *all* sites, or the mean of their
                features: the sum has no parts.
        """
        own, after = self.options, {}
        means = {name: updates[0].tensors[name] for name, kind in kinds.items() if kind == "buffer"}
        new = {name: np.asarray(value.astype(current[name].dtype)) for name, value in means.items()}
        if any(not np.array_equal(value, current[name], equal_nan=True) for name, value in new.items()):
            return {**current, **new}, server_state
        rate = self.stage.lr if own.step_size is None else own.step_size
        steps = float(server_state.get("steps", np.zeros(1))[0]) + 1
        for name in sorted(set(kinds) - set(means)):
            gradient = current[name].astype(np.float64) - updates[0].tensors[name]
            first = own.beta1 * server_state.get(f"m/{name}", np.zeros_like(gradient))
            if own.server_optimizer == "sgd":
                after[f"m/{name}"] = step = first + gradient
            else:
                after[f"m/{name}"] = first = first + (1.0 - own.beta1) * gradient
                moment = server_state.get(f"v/{name}", np.zeros_like(gradient))
                second = own.beta2 * moment + (1.0 - own.beta2) * gradient**2
                after[f"v/{name}"] = second
                scale = np.sqrt(second / (1.0 - own.beta2**steps)) + own.tau
                step = first / (1.0 - own.beta1**steps) / scale
            moved = current[name].astype(np.float64) - rate * step
            new[name] = np.asarray(moved.astype(current[name].dtype))
        return new, {**after, "steps": np.array([steps])}
