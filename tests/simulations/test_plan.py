"""What a run would do; that it then does so: tests/simulations/test_run.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fed_diffmic import cli
from fed_diffmic.config.compose import compose
from simulations import plan as plan_module
from simulations.plan import make_plan, plan_text
from tests.simulations.test_run import SMALL, config


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    plan_module_s, plan_module.MEASURED_S = plan_module.MEASURED_S, 0.05
    try:
        return folder, make_plan(config(folder, "baselines=[local,pooled]"))
    finally:
        plan_module.MEASURED_S = plan_module_s


def test_sites_rounds_and_arms_are_those_of_the_run(planned):
    folder, plan = planned
    assert list(plan.sites) == ["site-1", "site-2"]
    assert sum(sum(counts) for counts in plan.sites.values()) == 64
    assert plan.rounds == {"guidance": 2, "diffusion": 2}
    assert plan.arms == ("federated", "local/site-1", "local/site-2", "pooled")
    assert plan.seconds > plan.federation_seconds > 0 and set(plan.steps) == {"guidance", "diffusion"}
    assert not (folder / "run").exists()  # nothing is left where the run would go


def test_one_model_of_all_images_is_planned_with_the_steps_of_all_sites(tmp_path, monkeypatch):
    """A second a step and nothing else: both sites alone and all images in one place cost what the federation does."""
    second = SimpleNamespace(train_s=1.0, steps=1, evaluate_s=0.0, first_s=0.0, update_bytes=1, base_bytes=1)
    monkeypatch.setattr(plan_module, "estimate_stage", lambda *_: second)
    counted = ["stages.guidance.steps=5", "stages.diffusion.steps=3"]
    plan = make_plan(config(tmp_path, "baselines=[local,pooled]", *counted))
    assert (plan.federation_seconds, plan.seconds) == (2 * 2 * (5 + 3), 3 * 2 * 2 * (5 + 3))
    both = make_plan(config(tmp_path, "baselines=[local,pooled]", *counted, "run.optimizers=[adamw,sgd]"))
    assert (both.seconds, both.bytes) == (2 * plan.seconds, 2 * plan.bytes) and plan.bytes > 0


def test_people_read_it(planned):
    text = plan_text(planned[1], "r")
    assert text.startswith("plan of a run in r; nothing was trained")
    assert "rounds  guidance 2, diffusion 2" in text and "arms    4: federated, local/site-1" in text
    assert "between 2 sites and the coordinator" in text and "one step: guidance" in text
    assert text.splitlines()[4].split() == ["all", *(str(sum(c)) for c in zip(*planned[1].sites.values(), strict=True))]


def test_the_command_stops_there(planned, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "make_plan", lambda _: planned[1])
    assert cli.main(["simulate", "--plan", *SMALL]) == 0
    assert "bytes   about" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_what_the_run_would_refuse_the_plan_refuses(tmp_path):
    from fed_diffmic.errors import PartitionError

    with pytest.raises(PartitionError):
        make_plan(compose(None, [*SMALL, f"dataset.cache_dir={tmp_path}", "partition.min_images=5000"]))
