"""Client-level differential privacy: noise of the coordinator's own on every average of the sites' updates.

What it protects is a site as a whole: whoever sees the released weights learns little of whether a site's data took
part. Each site's update is clipped to L2 norm ``S`` over all trained tensors, the updates are averaged with equal
weights, and Gaussian noise of standard deviation ``z S`` is added to their sum (DP-FedAvg with fixed clipping: McMahan
et al. 2018, section 3; Geyer, Klein and Nabi 2017). The algorithm that follows sees the noised average and nothing
else, in the place of every site's update, so whatever it does is post-processing.

It is another guarantee than a site's own (:mod:`fed_diffmic.privacy`): it is counted by itself, stated by itself and
never added to a site's epsilon. It trusts the coordinator, who sees every update.

- *Adjacency*: one site's updates replaced by zero, in all rounds. Who takes part is not hidden.
- *Noise* comes from the operating system's generator, never from the run's seed. So a run does not end with equal bits
  twice, and a round that is computed again is released again: each release is written down before it leaves
  (``client_level.json``), and counted whether or not its round came to an end.
- *Sampling* of sites (``strategy.participation``) is not counted in the guarantee's favour.

Flower's own wrappers (``DifferentialPrivacyServerSideFixedClipping`` and three more) are not used: their noise is
numpy's global generator, whose state a seed gives, and they take a strategy object, which no configuration file can
name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, ModelFileError
from fed_diffmic.files import read_json, write_json
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.randomness import Randomness

FILE = "client_level.json"
FORMAT = 1


class ClientLevel:
    """The noise of one run, and the record of what was released with it.

    Args:
        config: the run's ``strategy`` group.
        folder: of the run; the record lies in it.
        random: where noise comes from; none: the operating system.
    """

    def __init__(self, config: StrategyConfig, folder: Path, random: Randomness | None = None) -> None:
        self.config = config
        self.path = folder / FILE
        self._random = random

    @property
    def on(self) -> bool:
        """Whether the run asks for it."""
        return self.config.client_noise_multiplier > 0

    def protect(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        *,
        stage: str,
        round_index: int,
        rounds_before: int,
    ) -> list[SiteUpdate]:
        """The updates as the algorithm may see them: each the noised average of all; unchanged where it is off.

        Args:
            current: the round's global tensors, from which updates are measured.
            kinds: of the exchanged tensors.
            updates: screened.
            rounds_before: rounds of this run that ended before; the record must know as many.

        Raises:
            ConfigError: the stage exchanges statistics, which noise does not cover.
            ModelFileError: the record is missing or shorter than the run.
            MachineError: the record cannot be written.
        """
        if not self.on:
            return list(updates)
        covered = sorted(name for name, kind in kinds.items() if kind == "parameter")
        if len(covered) < len(kinds):
            raise ConfigError(
                "model.norm",
                "batch",
                "group, with model.encoder_norm=frozen or group, where strategy.client_noise_multiplier is set",
                "The running statistics of batch norm would leave without noise.",
            )
        self._record(stage, round_index, rounds_before)
        mean = {name: np.zeros(current[name].shape) for name in covered}
        for update in sorted(updates, key=lambda u: u.site):
            change = {name: update.tensors[name].astype(np.float64) - current[name] for name in covered}
            factor = clip_factor(change, self.config.client_clip_norm) / len(updates)
            for name in covered:
                mean[name] += factor * change[name]
        random = self._random or Randomness()
        deviation = self.config.client_noise_multiplier * self.config.client_clip_norm / len(updates)
        noised = {}
        for name in covered:
            noise = random.normal(mean[name].size).numpy().reshape(mean[name].shape)
            noised[name] = (current[name] + mean[name] + deviation * noise).astype(current[name].dtype)
        return [replace(update, tensors=dict(noised), num_examples=1, algorithm_tensors={}) for update in updates]

    def facts(self) -> dict[str, Any]:
        """What has been released and what it costs, for a run's record; empty where it is off."""
        if not self.on:
            return {}
        cfg, releases = self.config, len(self._releases())
        spent = epsilon([Mechanism(1.0, cfg.client_noise_multiplier, releases)], cfg.client_delta)
        return {
            "epsilon": spent,
            "delta": cfg.client_delta,
            "noise_multiplier": cfg.client_noise_multiplier,
            "clip_norm": cfg.client_clip_norm,
            "releases": releases,
        }

    def _releases(self) -> list[list[Any]]:
        if not self.path.exists():
            return []
        value = read_json(self.path)
        rows = value.get("releases") if isinstance(value, dict) and value.get("format") == FORMAT else None
        if not isinstance(rows, list):
            raise ModelFileError(f"{self.path} is not a record of noised releases", "Restore it from the backup.")
        return rows

    def _record(self, stage: str, round_index: int, rounds_before: int) -> None:
        releases = self._releases()
        if len(releases) < rounds_before:
            raise ModelFileError(
                f"{self.path} knows of {len(releases)} noised releases, and {rounds_before} rounds of this run ended",
                "Restore it from the backup: without it nobody can say what epsilon the run has spent.",
            )
        write_json(self.path, {"format": FORMAT, "releases": [*releases, [stage, round_index]]})


def clip_factor(change: Mapping[str, np.ndarray], norm: float) -> float:
    """Factor, at most 1, after which the change's L2 norm over all its tensors is at most ``norm``."""
    length = math.sqrt(math.fsum(float(np.vdot(value, value)) for value in change.values()))
    return min(1.0, norm / length) if length > 0 else 1.0
