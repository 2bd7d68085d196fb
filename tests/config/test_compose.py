import logging
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config import choices
from fed_diffmic.config import compose as module
from fed_diffmic.config.compose import (
    FOLDER,
    GROUPS,
    compose,
    compose_server,
    compose_text,
    config_from_run_config,
    group_options,
    to_json,
    to_yaml,
)
from fed_diffmic.config.owners import KINDS
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import ConfigError, UsageError
from server.start import as_simulation

OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]
NEEDS = {
    ("strategy", "flower"): ["strategy.class_path=flwr.serverapp.strategy.FedMedian"],
    ("partition", "saved"): ["partition.file=/somewhere/partition.csv"],
    ("conditions", "unreliable"): ["run.quorum=0.5"],
    ("strategy", "fedsgd"): [
        "privacy=dp_sgd",
        "privacy.mechanism=distributed",
        "privacy.budget_alone=50",
        "strategy.noise_share=8",
        "stages.guidance.steps=1",
        "stages.guidance.epochs=1",
        "stages.diffusion.steps=1",
        "stages.diffusion.epochs=1",
        "model.norm=group",
        "model.encoder_norm=group",
    ],
    ("privacy", "dp_sgd"): ["model.norm=group", "model.encoder_norm=group"],
}


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_embedded_default_is_drawn_data_over_four_sites_in_both_stages():
    config = compose(None, [])
    assert (config.dataset.name, config.model.name, config.partition.sites) == ("phantoms", "tiny", 4)
    assert config.stages.guidance.rounds > 0
    assert config.stages.diffusion.rounds > 0


def test_groups_and_options_are_those_of_the_documentation():
    assert set(GROUPS) == {"dataset", "model", "stages", "strategy", "partition", "conditions", "privacy", "run"}
    assert set(group_options("privacy")) == {"none", "dp_sgd"}
    assert set(group_options("model")) == {"paper", "compact", "tiny"}
    assert set(group_options("partition")) == {
        "institution",
        "iid",
        "dirichlet",
        "pathological",
        "quantity",
        "feature",
        "saved",
    }
    assert {"fedavg", "fedprox"} <= set(group_options("strategy"))
    assert {"chestxray14", "ham10000", "aptos2019", "pmg2000", "table", "phantoms"} == set(group_options("dataset"))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_is_named_after_its_file(group, option):
    chosen = getattr(compose(None, [f"{group}={option}", *NEEDS.get((group, option), [])]), group)
    assert getattr(chosen, "name", option) == option


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] not in KINDS])
def test_every_shipped_file_names_its_schema_and_says_what_it_is(group, option):
    text = (FOLDER / group / f"{option}.yaml").read_text()
    assert yaml.safe_load(text)["defaults"] == [f"/fed_diffmic_schema/{group}@_here_", "_self_"]
    assert text.startswith("# ")


@pytest.mark.parametrize("wrong", ["nmae: x", "dropout: many", "dropout: [1]"])
def test_a_shipped_file_with_a_wrong_key_or_type_is_refused(wrong, tmp_path, monkeypatch):
    """The schema line is what refuses it: the same file without that line is accepted in silence."""
    for group in set(GROUPS) - set(KINDS):
        (tmp_path / group).mkdir()
        for option in group_options(group):
            (tmp_path / group / f"{option}.yaml").write_text((FOLDER / group / f"{option}.yaml").read_text())
    (tmp_path / "simulate.yaml").write_text((FOLDER / "simulate.yaml").read_text())
    with (tmp_path / "conditions" / "none.yaml").open("a") as stream:
        stream.write(f"\n{wrong}\n")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(Exception, match="nmae|many|dropout"):
        compose(None, [])


def test_stages_follow_the_model_unless_chosen():
    assert compose(None, ["model=compact"]).stages == compose(None, ["stages=compact"]).stages
    assert compose(None, ["model=compact", "stages=tiny"]).stages == compose(None, []).stages


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.permutations([
    "strategy=fedprox", "strategy.mu=0.5", "stages=compact", "stages.guidance.rounds=7", "model.name=tiny",
    "model.norm=group", "model.encoder_norm=group", "privacy.budget=3", "privacy=dp_sgd", "privacy.epsilon=2",
]))  # fmt: skip
def test_where_an_option_stands_among_the_settings_does_not_matter(overrides):
    config = compose(None, overrides)
    assert (config.strategy.name, config.strategy.mu) == ("fedprox", 0.5)
    assert config.stages == replace_rounds(compose(None, ["stages=compact"]).stages, 7)
    assert (config.model.name, config.model.norm) == ("tiny", "group")
    assert (config.privacy.name, config.privacy.budget, config.privacy.epsilon) == ("dp_sgd", 3.0, 2.0)


def replace_rounds(stages, rounds):
    return replace(stages, guidance=replace(stages.guidance, rounds=rounds))


def test_an_option_on_the_command_line_sets_aside_what_the_file_said(config_file):
    file = config_file("strategy: {name: fedprox, mu: 0.7}\n")
    assert compose(file, ["strategy=fedprox"]).strategy.mu == 0.01
    assert compose(file, ["strategy.mu=0.3", "strategy=fedprox"]).strategy.mu == 0.3
    assert compose(file, ["strategy=fedavg", "strategy=fedprox"]).strategy.name == "fedprox"  # the last one


def test_the_paper_preset_is_as_published():
    model = compose(None, ["model=paper"]).model
    expected = {
        "image_side": 224,
        "regions": 6,
        "crop": 32,
        "latent": 6144,
        "timesteps": 1000,
        "sampling_steps": 10,
        "top_percent": 100.0,
        "guidance_backbone": "resnet18",
        "norm": "batch",
        "encoder_norm": "train",
        "prior_init": "own",
    }
    assert {k: v for k, v in asdict(model).items() if k in expected} == expected
    stages = compose(None, ["model=paper"]).stages
    assert (stages.diffusion.alpha, stages.diffusion.gamma, stages.diffusion.draws) == (10.0, 1.0, 1)


# --- what a user writes in a file


def test_a_name_in_a_file_selects_the_group(config_file):
    config = compose(config_file("partition: dirichlet\nmodel: compact\nseed: 9\n"), [])
    assert (config.partition.name, config.model.latent, config.seed) == ("dirichlet", 128, 9)


def test_a_mapping_with_a_name_starts_from_that_option(config_file):
    config = compose(config_file("model: {name: paper, latent: 64}\npartition: {name: iid, sites: 3}"), [])
    assert (config.model.image_side, config.model.latent, config.partition.sites) == (224, 64, 3)


def test_a_mapping_without_a_name_sets_values(config_file):
    config = compose(config_file("stages:\n  guidance: {rounds: 11}\n"), [])
    assert config.stages.guidance.rounds == 11
    assert config.stages.guidance.lr == compose(None, []).stages.guidance.lr


def test_the_command_line_wins_over_the_file(config_file):
    file = config_file("seed: 1\npartition: {name: dirichlet, alpha: 0.1, sites: 7}")
    assert compose(file, ["seed=2", "partition.alpha=0.2"]).partition.alpha == 0.2
    assert compose(file, ["seed=2"]).seed == 2


def test_an_option_on_the_command_line_sets_the_files_group_aside(config_file):
    file = config_file("model: {name: paper, latent: 64}")
    assert compose(file, ["model=compact"]).model == compose(None, ["model=compact"]).model
    assert compose(file, ["model.name=compact"]).model == compose(None, ["model=compact"]).model


def test_an_empty_file_is_the_default(config_file):
    assert compose(config_file("# nothing yet\n"), []) == compose(None, [])
    assert compose(config_file("\ufeff"), []) == compose(None, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "holds no `key: value`"),
        ("just words", "holds no `key: value`"),
        ("seed: 1\nseed: 2", "line 2"),
        ("defaults: [model: tiny]", "there is no key defaults"),
        ("hydra: {run: {dir: x}}", "there is no key hydra"),
        ("model: tinny", "compact, paper, tiny"),
        ("model: {name: tinny}", "compact, paper, tiny"),
        ("model: [tiny]", "a mapping of name"),
        ("stages: {name: paper}", "there is no key stages.name"),
        ("model: {latent: wide}", "model.latent=wide"),
    ],
)
def test_mistakes_in_a_file_are_named(config_file, text, words):
    with pytest.raises((ConfigError, UsageError)) as caught:
        compose(config_file(text), [])
    assert words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        compose(tmp_path / "none.yaml", [])
    with pytest.raises(UsageError, match="cannot be read"):
        compose(tmp_path, [])
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # né".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        compose(tmp_path / "latin.yaml", [])


# --- key=value


PATHS = ["/a=b", "/a b/c", "/grüße/日本", "/a,b", "/{a}", "/[a]", "/a'b", '/a"b', "/a:b", "/a#b", "/null", "/%(x)s"]


@pytest.mark.parametrize("path", [*PATHS, "/$HOME", "/a\\b", "/~x"])
def test_paths_need_no_grammar(path):
    config = compose(None, [f"run.dir={path}", f"dataset.root={path}"])
    assert (config.run.dir, config.dataset.root) == (path, path)
    assert compose_text(to_yaml(config), []) == config


@given(st.text(min_size=1, max_size=20).filter(lambda t: "${" not in t))
def test_any_name_is_taken_as_it_is(name):
    config = compose(None, [f"model.guidance_backbone={name}"])
    assert config.model.guidance_backbone == name


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+model.depth=3", "neither be added nor removed"),
        ("++seed=3", "`seed=value`"),
        ("~model", "`model=value`"),
        ("seed", "is not key=value"),
        ("", "is not key=value"),
        ("=3", "is not key=value"),
        ("modl=tiny", "model"),
        ("model=tny", "compact, paper, tiny"),
        ("model=compact,tiny", "compact, paper, tiny"),
        ("seed=", "a whole number"),
        ("seed=1,2", "a whole number"),
        ("seed.x=1", "there is no key seed.x"),
        ("stages.guidance.rounds.x=1", "there is no key stages.guidance.rounds.x"),
        ("stages.guidance=3", "a mapping of rounds"),
        ("partition.sites=0", "partition.sites=0 is not allowed; allowed: a whole number >= 1"),
        ("model..latent=3", "there is no key"),
        ("hydra.run.dir=/x", "there is no key"),
        ("dataset.root=", "a path or null"),
        ("strategy.options=3", "a mapping of names"),
        ("strategy.options.a.b.c=1", "strategy=flower"),
    ],
)
def test_mistakes_on_the_command_line_are_named(override, words):
    with pytest.raises((ConfigError, UsageError)) as caught:
        compose(None, [override])
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_last_of_two_wins():
    assert compose(None, ["seed=1", "seed=2"]).seed == 2
    assert compose(None, ["partition=iid", "partition=dirichlet"]).partition.name == "dirichlet"


def test_lists_and_options_of_a_flower_strategy():
    config = compose(
        None,
        [
            "baselines=[local, pooled]",
            "strategy=flower",
            "strategy.class_path=flwr.serverapp.strategy.FedAdam",
            "strategy.options.eta=1e-2",
            "strategy.options.beta_1=0.9",
        ],
    )
    assert config.baselines == ["local", "pooled"]
    assert config.strategy.options == {"eta": 0.01, "beta_1": 0.9}
    assert compose(None, ["baselines=[]"]).baselines == []
    assert compose_text(to_yaml(config), []) == config


def test_null_clears_what_may_be_empty():
    assert compose(None, ["stages.plain.rounds=3", "stages.plain.rounds=null"]).stages.plain.rounds is None
    with pytest.raises(ConfigError, match="whole number"):
        compose(None, ["seed=null"])


# --- the same run again


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_resolved_configuration_is_the_same_configuration(group, option, config_file):
    config = compose(None, [f"{group}={option}", "run.dir=/somewhere", "seed=4", *NEEDS.get((group, option), [])])
    assert compose(config_file(to_yaml(config)), []) == config
    assert config_from_run_config({"config-json": to_json(config)}) == config


@pytest.mark.parametrize("compose_it", [compose, compose_server])
def test_passes_are_refused_where_the_preset_counts_steps(compose_it):
    """They would change nothing, and who wrote them would not know."""
    with pytest.raises(ConfigError) as refused:
        compose_it(None, ["stages=compact", "stages.plain.epochs=3"])
    assert refused.value.key == "stages.plain.epochs"
    assert "stages.plain.steps=0" in refused.value.remedy
    both = compose_it(None, ["stages=compact", "stages.plain.epochs=3", "stages.plain.steps=0"])
    assert (both.stages.plain.epochs, both.stages.plain.steps) == (3, 0)
    assert compose_it(None, ["stages=tiny", "stages.plain.epochs=3"]).stages.plain.epochs == 3


def test_flowers_flat_configuration():
    config = config_from_run_config({"overrides": "seed=4 model=compact 'dataset.root=/a b'", "run-dir": "/r s"})
    assert (config.seed, config.model.name, config.dataset.root, config.run.dir) == (4, "compact", "/a b", "/r s")
    assert config_from_run_config({"overrides": "", "run-dir": ""}) == compose(None, [])
    with pytest.raises(UsageError, match="quotation"):
        config_from_run_config({"overrides": "a='b"})
    for text in ("{", "[]", '{"sede": 1}', '{"seed": "1"}', '{"seed": -1}'):
        with pytest.raises(ConfigError):
            config_from_run_config({"config-json": text})


# --- Hydra leaves no trace


def test_hydra_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choices.composed.cache_clear()
    handlers, level = list(logging.root.handlers), logging.root.level
    compose(None, ["run.dir=here"])
    assert os.listdir(tmp_path) == []
    assert Path.cwd() == tmp_path
    assert (list(logging.root.handlers), logging.root.level) == (handlers, level)
    assert not GlobalHydra.instance().is_initialized()


def test_a_program_around_us_may_use_hydra(tmp_path):
    (tmp_path / "theirs.yaml").write_text("x: 1\n")
    choices.composed.cache_clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose(None, ["model=compact"])
        with pytest.raises(ConfigError):
            compose(None, ["seed=x"])
        assert hydra_compose("theirs") == {"x": 1}
    assert not GlobalHydra.instance().is_initialized()


def test_the_result_is_frozen_and_of_our_own_classes():
    config = compose(None, [])
    assert type(config) is SimulateConfig
    assert type(config.dataset.mean) is list
    assert type(config.strategy.options) is dict
    with pytest.raises(AttributeError):
        config.seed = 3


def test_parts_of_a_group_that_nobody_said_anything_of(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("policy: {name: standard, floors: {step_images: 8}}\n", encoding="utf-8")
    parts = ["floors", "limits", "study", "budget"]
    assert module.unsaid("policy", parts, file, []) == ["limits", "study", "budget"]
    assert module.unsaid("policy", parts, file, ["policy.study.approval=rule", "policy.limitsx=1"]) == [
        "limits",
        "budget",
    ]
    assert module.unsaid("policy", parts, None, ["policy=standard"]) == parts
    file.write_text("policy: standard\n", encoding="utf-8")
    assert module.unsaid("policy", parts, file, []) == parts


def test_a_coordinator_may_name_what_sites_make_for_themselves_and_knows_no_tables_from_elsewhere():
    config = compose_server(None, ["strategy.personal=[finetune,mixture]"])
    assert config.strategy.personal == ["finetune", "mixture"]
    text = to_json(as_simulation(config))  # what the coordinator's app reads again
    assert config_from_run_config({"config-json": text}).strategy.personal == ["finetune", "mixture"]
    assert compose(None, ["external.far=~/x.csv"]).external == {"far": str(Path("~/x.csv").expanduser())}
    assert config_from_run_config({"config-json": to_json(compose(None, ["external.far=/x"]))}).external == {
        "far": "/x"
    }
