"""What crosses to a site is parsed strictly."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.simulation import ModelConfig, SimulateConfig, StageConfig, StagesConfig
from fed_diffmic.config.spec import RunSpec, make_spec, without_paths
from fed_diffmic.errors import ConfigError


@pytest.fixture
def spec() -> RunSpec:
    return make_spec(
        SimulateConfig(seed=3), classes=["a", "b"], task="multiclass", run_id="r", arm="federated", device="cpu"
    )


def test_round_trip(spec):
    assert RunSpec.from_json(spec.to_json()) == spec


def test_plain_rounds_default_to_both_stages(spec):
    stages = StagesConfig(
        guidance=StageConfig(rounds=4), diffusion=StageConfig(rounds=3), plain=StageConfig(rounds=None)
    )
    assert replace(spec, stages=stages).stage("plain").rounds == 7


def test_local_paths_do_not_leave_the_coordinator(spec):
    stages = StagesConfig(guidance=StageConfig(init="/secret/g.safetensors"))
    given_paths = replace(
        spec, model=ModelConfig(weights="/secret/w", prior_weights="/secret/p", pretrained=True), stages=stages
    )
    assert "secret" not in without_paths(given_paths).to_json()
    assert without_paths(given_paths).model.pretrained is False


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "regions"), "4"),
        (("model", "regions"), 1),
        (("model", "regions"), True),
        (("model", "latent"), 10**9),
        (("stages", "guidance", "lr"), float("inf")),
        (("model", "unheard_of"), 1),
        (("classes",), []),
        (("classes",), ["a", "a"]),
        (("classes",), "ab"),
        (("task",), "regression"),
        (("strategy",), None),
    ],
)
def test_what_does_not_fit_is_refused(spec, path, value):
    data = json.loads(spec.to_json())
    target = data
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    with pytest.raises(ConfigError):
        RunSpec.from_json(json.dumps(data))


def test_missing_key_is_named(spec):
    data = json.loads(spec.to_json())
    del data["classes"]
    with pytest.raises(ConfigError, match="classes"):
        RunSpec.from_json(json.dumps(data))


def test_interpolation_is_not_resolved(spec):
    hostile = replace(spec, run_id="${oc.env:HOME}")
    assert RunSpec.from_json(hostile.to_json()).run_id == "${oc.env:HOME}"


@settings(max_examples=200, deadline=None)
@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_else_is_a_config_error(text):
    with pytest.raises(ConfigError):
        RunSpec.from_json(text)
