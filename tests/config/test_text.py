import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.config.simulation import DatasetConfig, SimulateConfig, StrategyConfig
from fed_diffmic.config.text import Scalar, all_keys, nearest_keys, parse_text, to_yaml, typed
from fed_diffmic.errors import ConfigError, UsageError

TEXT = st.text(min_size=1, max_size=30).filter(lambda t: "${" not in t)


def read(text: str) -> dict:
    return typed(SimulateConfig, parse_text(text, "t.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classes: [no, yes]", ["no", "yes"]),
        ("classes: [0, 1, 2]", ["0", "1", "2"]),
        ("classes: [007, 1e3, null]", ["007", "1e3", "null"]),
        ("classes: ['a, b', c]", ["a, b", "c"]),
        ("classes: a,b", ["a", "b"]),
        ("classes: null", None),
        ("classes:", None),
    ],
)
def test_names_stay_as_they_are_written(text, expected):
    assert read(f"dataset:\n  {text}")["dataset"]["classes"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-3", 1e-3), ("0.5", 0.5), ("3", 3.0), (".5", 0.5), ("1.", 1.0), ("+2E1", 20.0), ("'0.25'", 0.25)],
)
def test_numbers_in_every_notation(text, expected):
    value = read(f"strategy: {{mu: {text}}}")["strategy"]["mu"]
    assert value == expected
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: 1.0", "seed"),
        ("seed: true", "seed"),
        ("seed: 1_000", "seed"),
        ("seed: '9999999999999999999999'", "seed"),
        ("seed: [1]", "seed"),
        ("seed: null", "seed"),
        ("strategy: {mu: nan}", "strategy.mu"),
        ("strategy: {mu: .inf}", "strategy.mu"),
        ("strategy: {mu: 1e999}", "strategy.mu"),
        ("strategy: {mu: 0x10}", "strategy.mu"),
        ("strategy: {keep_optimizer_state: yes}", "strategy.keep_optimizer_state"),
        ("strategy: {options: [1]}", "strategy.options"),
        ("strategy: {options: {a: nan}}", "strategy.options.a"),
        ("dataset: {root: ''}", "dataset.root"),
        ("dataset: {root: {a: b}}", "dataset.root"),
        ("dataset: {classes: {a: b}}", "dataset.classes"),
        ("dataset: {classes: ['']}", "dataset.classes[0]"),
        ("dataset: {root: '${oc.env:HOME}'}", "dataset.root"),
        ("dataset: 3", "dataset"),
        ("stages: {guidance: []}", "stages.guidance"),
        ("partition: {sites: 0}", "partition.sites"),
        ("stages: {guidance: {rounds: -1}}", "stages.guidance.rounds"),
        ("baselines: [local, lokal]", "baselines"),
    ],
)
def test_wrong_values_are_named_with_their_full_key(text, key):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.key == key
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("modle: {name: tiny}", "model"),
        ("partition: {alfa: 0.3}", "partition.alpha"),
        ("stages: {guidance: {round: 3}}", "stages.guidance.rounds"),
        ("rounds: 3", "stages.diffusion.rounds"),
        ("dataset: {on_bad_images: skip}", "dataset.on_bad_image"),
        ("'seed ': 3", "seed"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(text, near):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert near in caught.value.remedy
    assert "there is no key" in str(caught.value)
    assert "+" not in str(caught.value)


def test_a_key_unlike_any_other_gets_the_list_only():
    assert nearest_keys("zzzzqqqq", SimulateConfig) == []
    with pytest.raises(ConfigError, match="seed, baselines, external, dataset"):
        read("zzzzqqqq: 1")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("seed: 1\nseed: 2", "line 2, column 1: 'seed' is given twice"),
        ("a: [1", "line 1"),
        ("a: b: c", "line 1, column 5"),
        ("\tseed: 1", "line 1"),
        ("? [a]\n: b", "a key must be a name"),
        ("x: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("seed: 1\x00", "t.yaml"),
        ("a: *b", "undefined alias"),
    ],
)
def test_text_that_is_not_yaml_is_placed(text, where):
    with pytest.raises(UsageError) as caught:
        parse_text(text, "t.yaml")
    assert where in str(caught.value)
    assert "t.yaml" in str(caught.value)


def test_yaml_tags_build_nothing():
    assert parse_text("!!python/object/apply:os.system ['true']", "t") == ["true"]


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert read("dataset: {root: some/where}")["dataset"]["root"] == str(tmp_path / "some/where")
    assert read("dataset: {root: ~/x}")["dataset"]["root"] == "/home/somebody/x"
    assert read("model: {guidance_backbone: ~x}")["model"]["guidance_backbone"] == "~x"


def test_values_of_undeclared_type_are_read_as_yaml_reads_them():
    text = "{a: 1, b: 1e-2, c: true, d: word, e: null, f: '1', g: [1, x], h: {i: 2.5}}"
    expected = {"a": 1, "b": 0.01, "c": True, "d": "word", "e": None, "f": "1", "g": [1, "x"], "h": {"i": 2.5}}
    assert read(f"strategy: {{options: {text}}}")["strategy"]["options"] == expected
    assert typed(StrategyConfig, {"options": Scalar.of(text)}) == {"options": expected}


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, st.floats(0, 1e6), st.integers(0, 2**31 - 1))
def test_what_is_written_is_read_back(classes, root, mu, seed):
    config = SimulateConfig(
        seed=seed,
        dataset=DatasetConfig(classes=classes, root=str(Path("/") / root.replace("\0", "_"))),
        strategy=StrategyConfig(mu=mu, options={"k": root, "n": [mu, seed, None, True]}),
    )
    again = typed(SimulateConfig, parse_text(to_yaml(config), "t"))
    assert again["dataset"]["classes"] == classes
    assert again["strategy"]["mu"] == mu
    assert again["strategy"]["options"] == config.strategy.options
    assert again["dataset"]["root"] == config.dataset.root
    assert again["seed"] == seed


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused_in_our_words(text):
    with suppress(ConfigError, UsageError):
        assert isinstance(typed(SimulateConfig, parse_text(text, "t") or {}), dict)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(st.sampled_from([*all_keys(SimulateConfig), "dataset", "name", "options"]), v, max_size=3)
        ),
    )
)
def test_any_tree_is_understood_or_refused_in_our_words(tree):
    with suppress(ConfigError, UsageError):
        assert isinstance(typed(SimulateConfig, parse_text(json.dumps(tree), "t")), dict)


def test_keys_are_listed_once():
    keys = all_keys(SimulateConfig)
    assert len(keys) == len(set(keys))
    assert "stages.plain.lr" in keys


def test_replace_checks_too():
    with pytest.raises(ConfigError):
        replace(DatasetConfig(), on_bad_image="ignore")
