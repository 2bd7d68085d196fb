"""The precision of a local update: who decides it, what is kept, and what stays in float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.checks import check_consistency
from fed_diffmic.config.compose import compose
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.errors import ConfigError
from fed_diffmic.training import local, precision
from fed_diffmic.training import stages as stages_module
from fed_diffmic.training.stages import build_module, initial_state, load_state
from fed_diffmic.training.update import LocalRound
from tests.toy import ToyNet, toy_site, toy_spec


@pytest.fixture(autouse=True)
def toy_network(monkeypatch):
    monkeypatch.setattr(stages_module, "build_plain", lambda *_: ToyNet())
    monkeypatch.setattr(precision, "_CHOSEN", {})


def module_of(spec):
    module = build_module(spec, "plain")
    load_state(module.network, initial_state(spec, "plain"))
    return module


def update(asked, **changes):
    spec = replace(toy_spec(**changes), precision=asked)
    train = toy_site("a", 1).train
    return local.local_update(module_of(spec), train, build_algorithm(spec.strategy), LocalRound("a", 1))


def timed(monkeypatch, ratio, units=True):
    """A clock on which a step in bfloat16 takes ``ratio`` of one in float32; returns the steps that were tried."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: units)
    tried, now = [], [0.0]

    def trial(kind):
        tried.append(kind)
        now[0] += 1.0 if kind == "float32" else ratio

    return tried, trial, lambda: now[0]


def chosen(monkeypatch, ratio, folder=None, units=True, **changes):
    tried, trial, clock = timed(monkeypatch, ratio, units)
    module = module_of(replace(toy_spec(), precision="auto", **changes))
    return precision.precision_of(module, LocalRound("a", 1, choices=folder), trial, clock), tried


def test_bfloat16_ends_near_float32_and_what_leaves_is_float32():
    plain, reduced = update("float32"), update("bfloat16")
    assert {value.dtype for value in reduced.tensors.values() if value.dtype.kind == "f"} == {np.dtype("float32")}
    moved = [np.abs(plain.tensors[name] - reduced.tensors[name]).max() for name in plain.tensors]
    assert 0 < max(moved) < 0.05
    assert reduced.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=0.05)


def test_by_default_a_processor_computes_in_float32_and_so_does_a_stage_without_amp():
    plain = update("float32").tensors
    for other in (update("device"), update("bfloat16", amp=False)):
        assert all(np.array_equal(plain[name], other.tensors[name]) for name in plain)


@pytest.mark.parametrize(("ratio", "expected"), [(0.89, "bfloat16"), (0.91, "float32"), (3.0, "float32")])
def test_auto_takes_what_is_faster_by_a_tenth(monkeypatch, ratio, expected):
    assert chosen(monkeypatch, ratio)[0] == expected


def test_auto_measures_nothing_where_the_device_only_imitates_bfloat16(monkeypatch):
    assert chosen(monkeypatch, 0.5, units=False) == ("float32", [])


def test_a_choice_is_kept_in_the_folder_and_holds_whatever_the_clock_says_later(monkeypatch, tmp_path):
    folder = tmp_path / "site"
    first, tried = chosen(monkeypatch, 0.5, folder)
    assert first == "bfloat16" and tried == ["float32", "bfloat16"] * 3
    monkeypatch.setattr(precision, "_CHOSEN", {})  # another process
    assert chosen(monkeypatch, 3.0, folder) == ("bfloat16", [])
    assert (folder / precision.FILE).stat().st_mode & 0o777 == 0o600
    for changed in ({"threads": 2}, {"classes": ("a", "b")}):
        again, tried = chosen(monkeypatch, 3.0, folder, **changed)
        assert again == "float32" and tried, changed
    (folder / precision.FILE).write_text("{torn", encoding="utf-8")
    assert chosen(monkeypatch, 3.0, folder)[0] == "float32"


def test_measuring_leaves_weights_statistics_and_random_state_as_they_were(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    ticks = iter(range(100))
    monkeypatch.setattr(precision, "_clock", lambda device: lambda: float(next(ticks)))  # 10 looks; both alike: float32
    spec, train = replace(toy_spec(), precision="auto"), toy_site("a", 1).train
    module = module_of(spec)
    before = torch.get_rng_state()
    measured = local.local_update(module, train, build_algorithm(spec.strategy), LocalRound("a", 1)).tensors
    assert next(ticks) == 10 and torch.equal(torch.get_rng_state(), before)
    plain = update("float32").tensors
    assert all(np.array_equal(plain[name], measured[name]) for name in plain)


def test_what_is_usual_is_not_in_the_specification_and_the_rest_comes_back():
    usual = toy_spec()
    assert "precision" not in usual.to_json()
    said = replace(usual, precision="auto")
    assert RunSpec.from_json(said.to_json()).precision == "auto"
    with pytest.raises(ConfigError, match=r"spec\.precision=half"):
        RunSpec.from_json(said.to_json().replace('"auto"', '"half"'))
    config = compose(None, ["run.precision=bfloat16"])
    made = make_spec(config, classes=["a", "b"], task="multiclass", run_id="r", arm="federated", device="cpu")
    assert made.precision == "bfloat16"


def test_private_training_refuses_bfloat16_alone():
    private = ["privacy=dp_sgd", "privacy.epsilon=8", "model.norm=group", "model.encoder_norm=group"]
    for asked in ("float32", "auto"):
        check_consistency(compose(None, [*private, f"run.precision={asked}"]))
    with pytest.raises(ConfigError, match=r"run\.precision"):
        compose(None, [*private, "run.precision=bfloat16"])
