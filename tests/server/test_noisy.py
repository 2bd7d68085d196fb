"""Sums with shared noise in the round loop: what crosses, what is charged, who is refused, the same sum under masks.

Faults seen: a round charged after it was computed, one site's words given to a plain exchange, a sum that masks change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client import distributed as client_distributed
from client import site as client_site
from client.distributed import check_mechanism
from client.privacy import planned_batches
from client.site import Protection, Site
from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.driver import masked_sum
from fed_diffmic.exchange.masking.session import Session
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from fed_diffmic.privacy.account import read_account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.distributed.step import form_at_site, noised_words
from fed_diffmic.privacy.statement import last_claims, statement
from fed_diffmic.provision.keys import load_private, make_site_key
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training import stages
from fed_diffmic.training.stage import Batch
from fed_diffmic.training.stages import build_module
from fed_diffmic.training.update import LocalRound
from server.checkpoints import CheckpointStore
from server.noisy import mean_gradient, summed
from tests.toy import CLASSES, SIDE, Events, federate, toy_grid, toy_site, toy_spec

NAMES = ("a", "b", "c")
RATE, SHARE = 0.5, 2.0
PRIVACY = PrivacyConfig(
    name="dp_sgd",
    mechanism="distributed",
    honest_sites=1,
    stages=["plain"],
    unit="image",
    budget=100.0,
    budget_alone=200.0,
    delta=1e-3,
    count_noise=0.0,
    nominal_units=12,
)


class PrivateNet(nn.Module):
    """Nothing that mixes units: a frozen projection and a trained head of 27 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3 * SIDE * SIDE, 8).requires_grad_(False)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(images.flatten(1)))


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stages, "build_plain", lambda *_: PrivateNet())
    stages._KEPT.clear()
    yield
    stages._KEPT.clear()


def spec(rounds: int = 3, **options: Any) -> RunSpec:
    chosen = {"sample_rate": RATE, "noise_share": SHARE, "clip_norm": 1.0, "step_size": 0.05, **options}
    strategy = StrategyConfig(name="fedsgd", options=chosen)
    return toy_spec(rounds=rounds, ema=0.0, steps=1, loss="cross_entropy", strategy=strategy)


def run(
    folder: Path,
    privacy: Mapping[str, PrivacyConfig] | PrivacyConfig = PRIVACY,
    made: RunSpec | None = None,
    **more: Any,
) -> FinalModel:
    grid, source = toy_grid(folder, NAMES)
    client_site.register_source(
        source,
        protection=lambda context: Protection(
            privacy if isinstance(privacy, PrivacyConfig) else privacy[str(context.node_config["site"])]
        ),
    )
    given = {"stages": ["plain"], "sites": list(NAMES), "poll_s": 0.001, "join_s": 60.0, **more}
    return federate(grid, made or spec(), CheckpointStore(folder / "run"), Events([]), **given)


def entries(folder: Path, name: str = "a") -> list[Any]:
    return read_account(folder / "sites" / name / "arms" / "federated").entries()


def test_rounds_train_and_each_is_charged_twice(tmp_path: Path) -> None:
    final = run(tmp_path)
    moved = final.states["plain"]["head.weight"] - stages.initial_state(spec(), "plain")["head.weight"]
    assert 1e-3 < np.abs(moved).max() < 1
    assert [sorted(row["sites"]) for row in final.history] == [list(NAMES)] * 3
    form = NoisyForm({"head.bias": (3,), "head.weight": (3, 8)}, 1.0, SHARE, 0)
    alone = form.deviation / form.sensitivity
    claim = last_claims(final.history)["b"]
    for name in NAMES:
        found = entries(tmp_path, name)
        assert [(e.round, e.settled) for e in found] == [(1, True), (2, True), (3, True)]
        assert {e.alone for e in found} == {Mechanism(RATE, alone, 1, discrete=True)}
        assert {e.mechanism for e in found} == {Mechanism(RATE, alone * math.sqrt(2), 1, discrete=True)}
    assert claim["epsilon_total"] == pytest.approx(epsilon([Mechanism(RATE, alone * 2**0.5, 3, discrete=True)], 1e-3))
    assert claim["alone_total"] == pytest.approx(epsilon([Mechanism(RATE, alone, 3, discrete=True)], 1e-3))
    assert "at least 1 of the other sites" in " ".join(statement(last_claims(final.history), NAMES))


def test_noise_is_new_each_time_and_the_tests_seed_makes_a_run_repeat(tmp_path: Path) -> None:
    def weights(folder: str, privacy: PrivacyConfig) -> bytes:
        return run(tmp_path / folder, privacy, spec(1)).states["plain"]["head.weight"].tobytes()

    seeded = replace(PRIVACY, test_seed=5)
    assert weights("1", seeded) == weights("2", seeded)
    assert weights("3", PRIVACY) != weights("4", PRIVACY)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_under_masks_is_the_sum_in_the_clear_bit_for_bit(bits: int, tmp_path: Path) -> None:
    made = spec(1, wide_words=bits == 64)
    words, form = {}, None
    for number, name in enumerate(NAMES):
        module = build_module(made, "plain")
        form = form_at_site(module, build_algorithm(made.strategy), 1)
        train = toy_site(name, number).train
        words[name] = noised_words(module, train, LocalRound(name, 1), form, RATE, privacy=PRIVACY)
    assert form is not None
    keys = {}
    for name in NAMES:
        make_site_key(tmp_path / name)
        keys[name] = load_private(tmp_path / name)
    roster = {name: key.public_key() for name, key in keys.items()}
    session = Session("r", "federated", "plain", "train", 1, 1, form.digest, bits, 0, form.width)
    sites = {n: MaskingSite(n, keys[n], roster, FileStore(tmp_path / f"{n}.d", lambda *_: None)) for n in NAMES}
    total, chosen = masked_sum(MaskedSum(session, roster, list(NAMES), 3), sites, words)
    assert sorted(chosen.summed) == list(NAMES)
    assert total.dtype == form.dtype
    assert np.array_equal(total, summed(words, form))


def test_without_noise_the_mean_is_that_of_the_clipped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one unit at a time by plain backpropagation; what is left is rounding."""
    monkeypatch.setattr(NoisyForm, "noise", lambda self, random: np.zeros(self.width, dtype=np.int64))
    made = spec(1, clip_norm=0.5)
    torch.manual_seed(0)
    module, train = build_module(made, "plain"), toy_site("a", 1).train
    form = form_at_site(module, build_algorithm(made.strategy), 1)
    words = noised_words(module, train, LocalRound("a", 1), form, 1.0, privacy=PRIVACY)
    found = mean_gradient(words, form, len(train))
    slow = {name: np.zeros(shape) for name, shape in form.shapes.items()}
    parameters = dict(module.network.named_parameters())
    for index in range(len(train)):
        row = np.array([index])
        images = (train.images(row).float() / 255 - 0.5) / 0.5
        loss = module.losses(Batch(module.inputs(images), torch.from_numpy(train.labels[row]), None), ()).mean()
        one = dict(zip(slow, torch.autograd.grad(loss, [parameters[name] for name in slow]), strict=True))
        length = math.sqrt(sum(float(g.square().sum()) for g in one.values()))
        for name, gradient in one.items():
            slow[name] += gradient.numpy() * min(1.0, 0.5 / length) / len(train)
    quantum = form.clip_norm / form.quanta
    assert max(np.abs(gradient).max() for gradient in slow.values()) > 2 * quantum
    for name, gradient in slow.items():
        assert np.abs(found[name] - gradient).max() < 0.75 * quantum


def test_a_sum_beyond_the_room_that_others_leave_is_cut_before_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(room: int | None, noise: int) -> np.ndarray:
        monkeypatch.setattr(NoisyForm, "noise", lambda self, random: np.full(self.width, noise, dtype=np.int64))
        at, train = LocalRound("a", 1), toy_site("a", 1).train
        seeded = replace(PRIVACY, test_seed=5)
        return noised_words(module, train, at, form, 1.0, privacy=seeded, room=room).view("<i4").astype(int)

    made = spec(1)
    torch.manual_seed(0)
    module = build_module(made, "plain")
    form = form_at_site(module, build_algorithm(made.strategy), 1)
    free = words(None, 0)
    assert np.abs(free).max() > 9
    assert np.array_equal(words(9, 1000), np.clip(free, -9, 9) + 1000)
    assert np.array_equal(words(form.room(10), 7), free + 7)


def test_a_round_that_dies_while_it_computes_is_charged_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(client_distributed, "noised_words", die)
    with pytest.raises(RoundError):
        run(tmp_path)
    assert [(e.round, e.settled, e.mechanism.steps) for e in entries(tmp_path)] == [(1, False, 1)]


def test_the_budget_alone_stops_a_site_though_the_other_would_not(tmp_path: Path) -> None:
    form = NoisyForm({"head.bias": (3,), "head.weight": (3, 8)}, 1.0, SHARE, 0)
    two = epsilon([Mechanism(RATE, form.deviation / form.sensitivity, 2, discrete=True)], 1e-3) + 1e-6
    final = run(tmp_path, {"a": PRIVACY, "b": PRIVACY, "c": replace(PRIVACY, budget_alone=two)}, quorum=0.6)
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b", "c"], ["a", "b", "c"], ["a", "b"]]
    assert failures.FAILURES[failures.BUDGET] in str(final.history[2]["missing"]["c"])


def test_words_that_leave_no_room_are_not_added() -> None:
    form = NoisyForm({"w": (4,)}, 1.0, SHARE, 0)
    large = form.words(np.full(form.width, 2**30))
    with pytest.raises(RoundError, match="the words of a leave no room"):
        summed({"a": large, "b": form.words(np.zeros(form.width))}, form)


def test_a_site_shares_noise_with_its_like_alone(tmp_path: Path) -> None:
    own = replace(PRIVACY, mechanism="local", noise_multiplier=2.0)
    with pytest.raises(RoundError, match="privacy.mechanism=distributed"):
        run(tmp_path / "1", {"a": PRIVACY, "b": PRIVACY, "c": own})
    plain = toy_spec(rounds=1, steps=1)
    with pytest.raises(RoundError, match="privacy.mechanism=distributed"):
        run(tmp_path / "2", PRIVACY, plain)
    assert not (tmp_path / "2" / "sites" / "a" / "arms").exists()  # nothing was charged


def test_a_real_site_that_shares_noise_tells_another_runs_request_from_a_fault(tmp_path: Path) -> None:
    """Its steps are counted before it is refused by name, and an algorithm of another kind says no sample rate."""
    real = Site("a", tmp_path, toy_site("a", 1), "cpu", privacy=PRIVACY, real=True)
    assert planned_batches(real, toy_spec(), "plain", real.data.train) == 1
    assert planned_batches(real, spec(), "plain", real.data.train) >= 1


def test_a_real_site_gives_its_words_to_nobody_but_under_masks(tmp_path: Path) -> None:
    """What a request to mask has to be: tests/client/test_masked_noise.py."""
    real = Site("a", tmp_path, toy_site("a", 1), "cpu", privacy=PRIVACY, real=True)
    algorithm, header = build_algorithm(spec().strategy), {"stage": "plain"}
    with pytest.raises(SiteError, match="leave under masks only") as refused:
        check_mechanism(real, algorithm, header)
    assert refused.value.code == failures.UNSHARED
    check_mechanism(real, algorithm, {**header, "masked": {}})
    check_mechanism(replace(real, real=False), algorithm, header)


def test_a_private_site_is_not_charged_for_a_masked_change_that_it_cannot_divide(tmp_path: Path) -> None:
    """FedNova's needs the number of steps, which private training does not say."""
    own = replace(PRIVACY, mechanism="local", noise_multiplier=2.0)
    real = Site("a", tmp_path, toy_site("a", 1), "cpu", privacy=own, real=True)
    fednova, header = build_algorithm(StrategyConfig(name="fednova")), {"stage": "plain", "masked": {}}
    with pytest.raises(SiteError, match="no number of steps") as refused:
        check_mechanism(real, fednova, header)
    assert refused.value.code == failures.MASKING
    check_mechanism(real, build_algorithm(StrategyConfig()), header)
    check_mechanism(replace(real, privacy=PrivacyConfig()), fednova, header)
