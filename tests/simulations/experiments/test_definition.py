"""From a file to cells, and every way in which the file can be wrong."""

import pytest
import yaml

from fed_diffmic.config.compose import FOLDER
from fed_diffmic.errors import ConfigError, UsageError
from simulations.experiments.definition import load_experiment, shipped


def test_one_cell_for_each_combination_in_order(experiment_file):
    found = load_experiment(str(experiment_file()))
    assert found.name == "small" and found.about == "a small comparison" and found.axes == ("seed", "method")
    assert [cell.name for cell in found.cells][:4] == [
        "seed-1_method-fedavg", "seed-1_method-scaffold", "seed-1_method-ditto", "seed-2_method-fedavg",
    ]  # fmt: skip
    assert [cell.config.seed for cell in found.cells] == [1, 1, 1, 2, 2, 2]
    assert found.cells[1].config.strategy.name == "scaffold" and found.cells[0].config.baselines == ["local", "pooled"]
    assert len({cell.digest for cell in found.cells}) == 6


def test_settings_for_all_cells_and_axes_that_are_narrowed_or_given_other_values(experiment_file):
    path = str(experiment_file())
    found = load_experiment(path, ["stages.plain.rounds=7", "axes.seed=5,6,7", "axes.method=ditto"])
    assert [(cell.config.seed, cell.config.stages.plain.rounds) for cell in found.cells] == [(5, 7), (6, 7), (7, 7)]
    assert {cell.place["method"] for cell in found.cells} == {"ditto"}
    assert load_experiment(path, ["seed=99"]).cells[0].config.seed == 1  # an axis wins


def test_what_a_user_asks_for_outlives_the_option_that_an_axis_names(experiment_file):
    text = (
        "settings: [strategy.weighting=equal]\naxes: {seed: [1], method: {prox: [strategy=fedprox, strategy.mu=0.2]}}"
    )
    found = load_experiment(str(experiment_file(text)), ["strategy.participation=0.5", "strategy.mu=0.9"])
    strategy = found.cells[0].config.strategy
    assert (strategy.name, strategy.mu, strategy.participation) == ("fedprox", 0.2, 0.5)  # an axis wins
    assert strategy.weighting == "examples"  # the experiment's own setting was of the option that is gone


def test_a_digest_is_of_what_decides_the_metrics(experiment_file):
    path = str(experiment_file())
    first = load_experiment(path).cells[0].digest
    assert load_experiment(path, ["dataset.cache_dir=/elsewhere"]).cells[0].digest == first
    assert load_experiment(path, ["stages.plain.lr=0.5"]).cells[0].digest != first


WRONG = {
    "axes: {seed: [1]}\nmore: 1": "more is not part of an experiment",
    "- 1": "holds no `name: value`",
    "axes: [1]": "axes must be a mapping that names at least seed",
    "axes: {method: {a: [strategy=fedavg]}}": "names at least seed",
    "axes: {seed: []}": "axes.seed is neither",
    "axes: {seed: [1], method: {a: strategy=fedavg}}": "axes.method.a is not a list of key=value",
    "settings: [rounds]\naxes: {seed: [1]}": "settings is not a list of key=value",
    "axes: {seed: [1": "line 1, column",
    "": "holds no `name: value`",
    "axes: {seed: [1], method: {A: [strategy=fedavg], a: [strategy=fedprox]}}": "two cells have the same name",
    "axes: {seed: [1], method: {a: [strategy=fedavg], a: [strategy=fedprox]}}": "'a' is given twice",
    "axes: {seed: [1]}\naxes: {seed: [2]}": "'axes' is given twice",
    "axes: {seed: [1], fold: 1}": "axes.fold is the number of folds",
    "axes: {seed: [1], fold: [0, 1]}": "axes.fold is the number of folds",
    "about: " + "[" * 5000: "nested too deeply|line 1",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_is_no_experiment_is_said(experiment_file, text, message):
    with pytest.raises(UsageError, match=message):
        load_experiment(str(experiment_file(text)))


def test_a_cell_that_cannot_be_is_named(experiment_file):
    text = "axes: {seed: [1], method: {good: [strategy=fedavg], bad: [strategy.muu=1]}}"
    with pytest.raises(ConfigError, match=r"strategy.muu=1.*\(in the cell of seed 1, method bad\)"):
        load_experiment(str(experiment_file(text)))
    with pytest.raises(ConfigError, match="every cell has a folder of its own"):
        load_experiment(str(experiment_file()), ["run.dir=/tmp/x"])
    with pytest.raises(UsageError, match="has no value 'none'"):
        load_experiment(str(experiment_file()), ["axes.method=none"])
    with pytest.raises(UsageError, match="is not allowed"):
        load_experiment(str(experiment_file()), ["axes.speed=1"])
    with pytest.raises(UsageError, match="at most 10000"):
        load_experiment(str(experiment_file()), [f"axes.seed={','.join(map(str, range(5000)))}"])


def test_there_is_no_such_experiment():
    with pytest.raises(UsageError, match="there is no experiment 'nothing'"):
        load_experiment("nothing")


def seeds_of(name):
    """Seeds differ in a number alone: the cells of one of them are looked at (each costs 25 ms to compose)."""
    seeds = yaml.safe_load((FOLDER / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))["axes"]["seed"]
    assert len(set(seeds)) == len(seeds) and all(isinstance(seed, int) for seed in seeds)
    return seeds


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_experiment_is_whole(name):
    assert len(shipped()[name]) > 10
    seeds = seeds_of(name)
    found = load_experiment(name, [f"axes.seed={seeds[0]}"])
    assert len(found.cells) * len(seeds) > 3 and len({cell.digest for cell in found.cells}) == len(found.cells)


@pytest.mark.parametrize("name", ["decide-linear", "decide-small", "ham10000-decide", "ham10000-decide-small"])
def test_the_experiments_that_decide_test_every_image_once_and_name_their_method_first(name):
    """Parsed with what a user gives; what the answer speaks of is the first method, with both references beside it."""
    given = ["dataset.root=/x", "model.weights=/x/w", "external.elsewhere=/x/table.csv", "axes.seed=1"]
    found = load_experiment(name, given)
    assert found.axes == ("seed", "fold", "method")
    configs = [cell.config for cell in found.cells]
    folds = {config.partition.folds for config in configs}
    assert len(folds) == 1 and {c.partition.fold for c in configs} == set(range(folds.pop()))
    first = configs[0]
    assert first.baselines == ["local", "pooled"] and "mixture" in first.strategy.personal
    assert all(config.external == {"elsewhere": "/x/table.csv"} for config in configs)
    assert len({config.partition.name for config in configs}) == 1
    assert len({(config.strategy.weighting, config.strategy.keep_optimizer_state) for config in configs}) == 1
    assert len(configs) * len(seeds_of(name)) >= 6
