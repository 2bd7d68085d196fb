"""Settings as Python values become the configuration that the command line would make."""

from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.api.settings import configuration
from fed_diffmic.config.compose import compose, to_yaml
from fed_diffmic.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("config", "settings", "same"),
    [
        (None, {}, []),
        (None, {"model": "tiny", "seed": 3}, ["model=tiny", "seed=3"]),
        (
            {"model.image_side": 32, "model": "tiny"},
            {"model": {"regions": 2}},
            ["model=tiny", "model.image_side=32", "model.regions=2"],
        ),
        ({"model": {"image_side": 32, "name": "tiny"}}, {}, ["model.name=tiny", "model.image_side=32"]),
        ({"stages": "linear"}, {"stages": {"plain": {"rounds": 4}}}, ["stages=linear", "stages.plain.rounds=4"]),
        ({"seed": 1}, {"seed": np.int64(2)}, ["seed=2"]),
        ({}, {"baselines": ["local", "pooled"]}, ["baselines=[local,pooled]"]),
        ({}, {"baselines": ()}, ["baselines=[]"]),
        ({}, {"dataset": {"task": None, "cache_dir": Path("a b")}}, ["dataset.task=null", "dataset.cache_dir=a b"]),
        ({}, {"stages": {"guidance": {"lr": 1e-5}}}, ["stages.guidance.lr=1e-5"]),
        ({}, {"run": {"dir": "a=b, [c]"}}, ["run.dir=a=b, [c]"]),
        (
            {},
            {"dataset": {"name": "table", "root": "t.csv", "classes": ["null", "007", "no, none", "a]"]}},
            ["dataset=table", "dataset.root=t.csv", 'dataset.classes=["null", "007", "no, none", "a]"]'],
        ),
        (
            {},
            {"strategy": {"name": "flower", "class_path": "a.B", "options": {"fraction_train": 0.5}}},
            ["strategy=flower", "strategy.class_path=a.B", "strategy.options.fraction_train=0.5"],
        ),
    ],
)
def test_the_same_as_on_the_command_line(config, settings, same):
    assert configuration(config, settings) == compose(None, same)


def test_class_names_are_taken_literally():
    names = ["null", "007", "no, none", "a]", "True"]
    settings = {"name": "table", "root": "t.csv", "classes": names}
    assert configuration(None, {"dataset": settings}).dataset.classes == names


def test_a_file_and_settings_over_it(tmp_path):
    (tmp_path / "c.yaml").write_text("model: tiny\nseed: 4\n")
    for path in (tmp_path / "c.yaml", str(tmp_path / "c.yaml")):
        found = configuration(path, {"model.image_side": 32})
        assert (found.model.name, found.seed, found.model.image_side) == ("tiny", 4, 32)
    whole = compose(None, ["seed=9"])
    assert configuration(whole, {}) is whole
    with pytest.raises(UsageError, match="settings beside it: seed"):
        configuration(whole, {"seed": 1})
    (tmp_path / "saved.yaml").write_text(to_yaml(whole))
    assert configuration(tmp_path / "saved.yaml", {}) == whole


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modl": "tiny"}, "modl"),
        ({"seed": "x"}, "seed=x"),
        ({"seed": True}, "seed=true"),
        ({"model": ["tiny"]}, r"model=\[\"tiny\"\]"),
        ({"partition": {"alpha": float("nan")}}, "partition.alpha"),
        ({"seed": {"a": 1}}, "seed"),
    ],
)
def test_what_is_not_allowed_is_refused_in_the_same_words(settings, said):
    with pytest.raises((ConfigError, UsageError), match=said):
        configuration(None, settings)
