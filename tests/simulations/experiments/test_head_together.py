"""Rounds without messages against the same rounds through messages, and what such rounds would leave out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, UsageError
from fed_diffmic.files import read_json, tensors_digest
from fed_diffmic.training.guided import fold_of
from simulations.experiments import head as head_module
from simulations.experiments import head_together
from simulations.experiments.definition import SHIPPED, load_experiment
from simulations.experiments.head import run_head
from simulations.experiments.head_report import report_lines
from simulations.experiments.head_together import check_together, trained_together
from simulations.run import choose_device
from tests import toy
from tests.simulations.experiments.test_head import CROSSED, TEXT, few_resamples

__all__ = ["few_resamples"]


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "scaffold", "feddyn", "fednova"])
@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_its_weights_are_those_of_a_run_through_messages(
    name: str, weighting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    strategy = StrategyConfig(name=name, weighting=weighting)
    spec = toy.toy_spec(keep=True, ema=0.0, rounds=3, strategy=strategy, optimizer="sgd")
    source = toy.ToySource({"a": toy.toy_site("a", 1), "b": toy.toy_site("b", 2, count=40)})
    grid, _ = toy.toy_grid(tmp_path, source=source)
    final = toy.short_run(tmp_path, grid, spec, metrics_every=3)  # so that it keeps the last round
    assert final.history[-1]["best_round"] == 3
    ours = trained_together(spec, "guidance", {name: site.train for name, site in source.sites.items()})
    assert tensors_digest(ours) == tensors_digest(final.states["guidance"])
