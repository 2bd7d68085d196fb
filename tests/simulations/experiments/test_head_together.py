"""Rounds without messages against the same rounds through messages, and what such rounds would leave out."""

from pathlib import Path

import pytest

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, UsageError
from fed_diffmic.files import read_json, tensors_digest
from fed_diffmic.training.guided import fold_of
from simulations.experiments import head_together
from simulations.experiments.definition import SHIPPED, load_experiment
from simulations.experiments.head import run_head
from simulations.experiments.head_report import report_lines
from simulations.experiments.head_together import check_together, trained_together
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


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch):
    """What every local update of a federation was given."""
    seen = []
    update = head_together.local_update

    def spy(module, train, algorithm, at, memory=None):
        seen.append((module.stage, at.site, at.round_index, train, getattr(module, "table", None)))
        return update(module, train, algorithm, at, memory)

    monkeypatch.setattr(head_together, "local_update", spy)
    return seen


def test_every_network_is_trained_by_the_sites_in_rounds(experiment_file, drawn, tmp_path, rounds):
    settings = [*drawn, "axes.seed=1", "stages.guidance.rounds=2", "strategy.weighting=equal"]
    found = load_experiment(str(experiment_file(TEXT)), settings)
    out = tmp_path / "out"
    run_head(found, out, federated=True, say=lambda line: None)
    told = [(stage, site, number) for stage, site, number, *_ in rounds]
    guidance = [("guidance", site, number) for number in (1, 2) for site in ("site-1", "site-2")]
    assert told == guidance + 2 * [("diffusion", site, 1) for site in ("site-1", "site-2")]
    one, two = rounds[0][3], rounds[1][3]
    assert not set(one.groups) & set(two.groups)
    table = rounds[-1][4]  # what the guidance network that all trained says of everybody's images
    assert sorted(table.keys) == sorted([*one.keys, *two.keys])
    facts = read_json(out / "cells" / "seed-1_method-chain" / "facts.json")
    assert (facts["federated"], facts["sites"], facts["steps"]) == ("fedavg", 2, 6)
    assert "images, trained by 2 sites (fedavg).** " in report_lines(out, "val")[0]
    run_head(found, out, federated=True, test=True, say=lambda line: None)
    assert len(rounds) == 8  # nothing again


def test_a_federations_cross_fitting_leaves_a_folds_images_out_at_every_site(experiment_file, drawn, tmp_path, rounds):
    text = experiment_file(TEXT + CROSSED)
    found = load_experiment(str(text), [*drawn, "axes.seed=1", "axes.method=crossfit"])
    run_head(found, tmp_path / "out", federated=True, say=lambda line: None)
    assert [(stage, site) for stage, site, *_ in rounds] == 3 * [("guidance", "site-1"), ("guidance", "site-2")] + [
        ("diffusion", "site-1"),
        ("diffusion", "site-2"),
    ]
    whole = rounds[-2][3]
    for fold, of_site_one in enumerate((rounds[2][3], rounds[4][3])):
        kept = set(whole.groups[fold_of(whole.groups, 2, 1) != fold])
        assert set(of_site_one.groups) == kept and 0 < len(kept) < len(set(whole.groups))


def test_a_folder_is_held_to_the_way_in_which_it_was_begun(experiment_file, drawn, tmp_path):
    found = load_experiment(str(experiment_file(TEXT)), [*drawn, "axes.seed=1", "axes.method=guidance"])
    pooled, together = tmp_path / "pooled", tmp_path / "together"
    run_head(found, pooled, say=lambda line: None)
    run_head(found, together, federated=True, say=lambda line: None)
    said = [next((out / "cells").glob("*/val.safetensors")).read_bytes() for out in (pooled, together)]
    assert said[0] != said[1]
    with pytest.raises(UsageError, match="on all images in one place") as refused:
        run_head(found, pooled, federated=True, say=lambda line: None)
    assert refused.value.remedy.startswith("Leave --federated away")
    with pytest.raises(UsageError, match="as a federation") as refused:
        run_head(found, together, say=lambda line: None)
    assert refused.value.remedy.startswith("Give --federated again")
    (pooled / "trained.json").unlink()  # as one that was begun before there were two ways
    with pytest.raises(UsageError, match="in one place"):
        run_head(found, pooled, federated=True, say=lambda line: None)
    run_head(found, pooled, say=lambda line: None)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("strategy=median", "strategy.name"),
        ("strategy=fedper", "strategy.name"),
        ("strategy.participation=0.5", "strategy.participation"),
        ("strategy.codec=int8", "strategy.codec"),
        (
            "strategy.client_noise_multiplier=1 model.encoder_norm=frozen strategy.weighting=equal",
            "strategy.client_noise_multiplier",
        ),
        ("stages.guidance.ema=0.5", "stages.guidance.ema"),
        ("conditions.dropout=0.1 run.quorum=0.5", "conditions.dropout"),
        ("conditions.absent=[site-1:1] run.quorum=0.5", "conditions.absent"),
    ],
)
def test_what_rounds_without_messages_would_leave_out_is_refused(experiment_file, drawn, tmp_path, setting, named):
    found = load_experiment(str(experiment_file(TEXT)), [*drawn, *setting.split()])
    with pytest.raises(ConfigError) as refused:
        run_head(found, tmp_path / "out", federated=True, say=lambda line: None)
    assert refused.value.key == named and "--federated" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_shipped_one_can_be_run_so_and_its_methods_train_alike():
    cells = load_experiment(str(SHIPPED / "head-federated.yaml"), ["axes.seed=1"]).cells
    for cell in cells:
        check_together(cell.config)
        stages = cell.config.stages
        assert stages.guidance == cells[0].config.stages.guidance
        if stages.diffusion.rounds:
            assert (stages.diffusion.rounds, stages.diffusion.steps) == (stages.guidance.rounds, stages.guidance.steps)
            assert not stages.diffusion.augment and stages.diffusion.blend
