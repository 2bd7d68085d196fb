"""Which trainings a run makes, and where they lie."""

from dataclasses import replace
from pathlib import Path

from fed_diffmic.config.simulation import StageConfig, StagesConfig
from simulations.arms import arms_of, scaled

TWO = StagesConfig(guidance=StageConfig(rounds=2), diffusion=StageConfig(rounds=1))


def names(*baselines, stages=TWO):
    return [arm.name for arm in arms_of(baselines, ["b", "a"], stages)]


def test_every_baseline_in_its_three_ways():
    assert names() == ["federated"]
    assert names("local", "pooled") == ["federated", "local/a", "local/b", "pooled"]
    assert names("plain") == ["federated", "plain/federated", "plain/local/a", "plain/local/b", "plain/pooled"]


def test_stages_without_rounds_are_left_out_unless_a_file_stands_in():
    only = replace(TWO, diffusion=StageConfig(rounds=0))
    assert arms_of([], ["a"], only)[0].stages == ("guidance",)
    given = replace(TWO, guidance=StageConfig(rounds=0, init="g.safetensors"))
    assert arms_of([], ["a"], given)[0].stages == ("guidance", "diffusion")


def test_folders_are_distinct_and_inside_the_run():
    run = Path("runs/x")
    folders = [arm.folder(run) for arm in arms_of(["local", "pooled", "plain"], ["St. A", "St_ A", "ü"], TWO)]
    assert len(set(folders)) == len(folders)
    assert folders[0] == run and all(run in folder.parents for folder in folders[1:])


def test_a_grid_of_learning_rates_scales_every_stage():
    changed = scaled(TWO, 0.5)
    assert [getattr(changed, s).lr for s in ("guidance", "diffusion", "plain")] == [5e-4] * 3
    assert changed.guidance.rounds == 2
