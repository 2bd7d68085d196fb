"""Which trainings a run makes, and where they lie."""

from dataclasses import replace
from pathlib import Path

from fed_diffmic.config.simulation import RunConfig, StageConfig, StagesConfig
from simulations.arms import arms_of, budget, scaled, trials_of

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


def test_who_has_all_images_takes_as_many_steps_as_all_sites_together():
    stages = replace(TWO, guidance=StageConfig(rounds=2, steps=16), diffusion=StageConfig(rounds=1, epochs=2.0))
    federated, *alone, pooled = arms_of(["local", "pooled"], ["b", "a"], stages)
    for arm in (federated, *alone):
        assert budget(arm, stages, 2) == stages
    assert budget(pooled, stages, 2) == replace(stages, guidance=replace(stages.guidance, steps=32))
    assert budget(pooled, stages, 10**6).guidance.steps == 10**6  # what the setting allows at most


def test_a_site_alone_tries_what_a_hospital_would_and_the_others_do_not():
    run = RunConfig(lr_scales=[0.5, 1.0], local_optimizers=["adamw", "sgd"])
    federated, *alone, pooled = arms_of(["local", "pooled"], ["b", "a"], TWO)
    assert [(t.lr_scale, t.optimizer) for t in trials_of(federated, run)] == [(0.5, ""), (1.0, "")]
    assert trials_of(pooled, run) == trials_of(federated, run) == trials_of(alone[0], RunConfig(lr_scales=[0.5, 1.0]))
    for arm in alone:
        found = [(t.lr_scale, t.optimizer) for t in trials_of(arm, run)]
        assert found == [(0.5, "adamw"), (1.0, "adamw"), (0.5, "sgd"), (1.0, "sgd")]
        assert len({t.name for t in trials_of(arm, run)}) == 4
    sgd = trials_of(alone[0], run)[2].stages(TWO)
    assert (sgd.guidance.optimizer, sgd.guidance.lr, sgd.guidance.rounds) == ("sgd", 0.05, 2)
    assert trials_of(alone[0], run)[0].stages(TWO).guidance == replace(TWO.guidance, lr=0.5e-3)


def test_every_arm_tries_the_optimizers_and_a_site_alone_its_own_where_it_has_any():
    every = RunConfig(optimizers=["adamw", "sgd"])
    for arm in arms_of(["local", "pooled", "plain"], ["b", "a"], TWO):
        assert [t.optimizer for t in trials_of(arm, every)] == ["adamw", "sgd"]
    federated, *alone, pooled = arms_of(["local", "pooled"], ["b", "a"], TWO)
    both = replace(every, local_optimizers=["sgd"])
    assert [[t.optimizer for t in trials_of(arm, both)] for arm in alone] == [["sgd"], ["sgd"]]
    assert trials_of(federated, both) == trials_of(pooled, both) == trials_of(pooled, every)
