"""The masked exchange in the real round loop: the same model as from plain integers, whoever is lost or killed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from scipy import stats

from client import site as client_site
from fed_diffmic.algorithms import Algorithm, algorithm_names
from fed_diffmic.algorithms.base import algorithm_class
from fed_diffmic.config.compose import compose_text
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.exchange.masking import coordinator as coordinator_module
from fed_diffmic.exchange.masking import site as site_module
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from fed_diffmic.exchange.masking.virtual import VirtualRoster, virtual_key
from fed_diffmic.exchange.payload import Payload
from server import masked_steps as steps_module
from server import replies as replies_module
from server.checkpoints import CheckpointStore
from server.strategy import FlowerAlgorithm
from simulations.grid import InProcessGrid
from tests import toy

NAMES = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)


def masked_grid(folder: Path, names: tuple[str, ...] = NAMES) -> tuple[Any, toy.ToySource]:
    """A grid of sites that have a part in masked sums."""
    grid, source = toy.toy_grid(folder, names)

    def masking(context: Any, name: str) -> MaskingSite:
        store = FileStore(folder / "sites" / name / "masking", lambda kind, facts: None)
        return MaskingSite(name, virtual_key(3, name), VirtualRoster(3), store)

    client_site.register_source(source, masking=masking)
    return grid, source


def run(folder: Path, grid: Any, strategy: StrategyConfig, names: tuple[str, ...] = NAMES, **settings: Any) -> Any:
    events, spec = toy.Events([]), toy.toy_spec(strategy=strategy)
    given = {"stages": ["guidance"], "sites": list(names), "poll_s": 0.001, "join_s": 120.0, **settings}
    return toy.federate(grid, spec, CheckpointStore(folder), events, **given), events


def masked(name: str = "fedavg", **changed: Any) -> StrategyConfig:
    return StrategyConfig(name=name, secure_aggregation="masked", **{"masked_norm": 1000.0, **changed})


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "scaffold", "fedbn", "feddyn", "fednova"])
def test_a_masked_run_ends_near_the_plain_one_and_repeats_itself_bit_for_bit(name: str, tmp_path: Path) -> None:
    lr = 0.1 if name == "fedadam" else 1.0
    grid, _ = toy.toy_grid(tmp_path / "0", NAMES)
    plain, _ = run(tmp_path / "0" / "run", grid, StrategyConfig(name=name, server_lr=lr))
    found = []
    for number in "12":
        grid, _ = masked_grid(tmp_path / number)
        final, events = run(tmp_path / number / "run", grid, masked(name, server_lr=lr))
        assert not events.of("site_refused") and not events.of("site_failed")
        found.append(final)
    assert found[0].digests == found[1].digests
    for tensor, value in plain.states["guidance"].items():
        assert np.allclose(found[0].states["guidance"][tensor], value, atol=2e-3), tensor


def test_the_model_is_that_of_the_same_integers_without_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: masks that are all zero, and any others."""
    grid, _ = masked_grid(tmp_path / "1")
    with_masks, _ = run(tmp_path / "1" / "run", grid, masked())
    for module in (site_module, coordinator_module):
        monkeypatch.setattr(module, "apply_masks", lambda words, added, taken: None)
    grid, _ = masked_grid(tmp_path / "2")
    without, _ = run(tmp_path / "2" / "run", grid, masked())
    assert with_masks.digests == without.digests


def test_no_sites_update_weight_or_loss_reaches_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Payload] = []
    take = replies_module.Asking._accept

    def watched(self: Any, request: Any, payload: Payload, read: Any) -> None:
        seen.append(payload)
        take(self, request, payload, read)

    monkeypatch.setattr(replies_module.Asking, "_accept", watched)
    grid, _ = masked_grid(tmp_path)
    run(tmp_path / "run", grid, masked())
    trained = [payload for payload in seen if payload.kind == "train.reply"]
    assert len(trained) == 2 * len(NAMES)
    for payload in trained:
        assert set(payload.tensors) == {"masked"} and payload.metrics == {}
        assert "num_examples" not in payload.header
    words = np.concatenate([payload.tensors["masked"].view(np.uint8) for payload in trained])
    assert stats.chisquare(np.bincount(words, minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize("step", ["advertise", "share", "train", "commit", "unmask"])
def test_a_site_that_is_lost_at_a_step_is_done_without(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = masked_grid(tmp_path)
    lose(monkeypatch, "b", step)
    _, events = run(tmp_path / "run", grid, masked(), quorum=0.75)
    missing = [row["missing"] for row in events.of("round_done")]
    assert len(missing) == 2 and all("b" in row for row in missing)


def test_too_many_lost_end_the_round_by_name_and_nothing_is_unmasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = masked_grid(tmp_path)
    lose(monkeypatch, "b", "share")
    lose(monkeypatch, "c", "train")
    with pytest.raises(RoundError, match=r"2 sites gave masked updates, 3 are needed; nothing was unmasked.*b, c"):
        run(tmp_path / "run", grid, masked(), quorum=0.75)


@pytest.mark.parametrize("step", ["advertise", "share", "train", "commit", "unmask"])
def test_a_coordinator_that_is_ended_at_a_step_goes_on_to_the_same_model(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = masked_grid(tmp_path / "1")
    whole, _ = run(tmp_path / "1" / "run", grid, masked())
    grid, _ = masked_grid(tmp_path / "2")
    with monkeypatch.context() as patch:
        die(patch, step)
        with pytest.raises(KilledError):
            run(tmp_path / "2" / "run", grid, masked())
    asked: list[str] = []
    with monkeypatch.context() as patch:
        count(patch, asked)
        resumed, _ = run(tmp_path / "2" / "run", grid, masked())
    assert resumed.digests == whole.digests
    assert asked.count("train") == (4 if step in ("commit", "unmask") else 8)  # behind the set no update is asked for


class KilledError(Exception):
    """The coordinator's process is gone."""


def lose(monkeypatch: pytest.MonkeyPatch, name: str, step: str) -> None:
    """A site that fails at a step, each time."""
    known = {"advertise": "advertise", "share": "share", "train": "mask", "commit": "commit", "unmask": "unmask"}[step]
    real = getattr(MaskingSite, known)

    def failing(self: MaskingSite, *given: Any) -> Any:
        if self.name == name:
            raise OSError("gone")
        return real(self, *given)

    monkeypatch.setattr(MaskingSite, known, failing)


def die(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The coordinator ends when it has the last answer but one of a step."""
    known = {"advertise": "advertised", "share": "shared", "train": "add", "commit": "signed", "unmask": "shares"}[step]
    real = getattr(MaskedSum, known)

    def dying(self: MaskedSum, site: str, given: Any) -> None:
        if site == "c":
            raise KilledError
        real(self, site, given)

    monkeypatch.setattr(MaskedSum, known, dying)


def count(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    real = replies_module.Asking.send

    def send(self: Any, request: Any, packed: Any = None) -> None:
        asked.append(request.payload.kind)
        real(self, request, packed)

    monkeypatch.setattr(replies_module.Asking, "send", send)


def test_a_quorum_below_the_threshold_is_refused_before_the_first_round(tmp_path: Path) -> None:
    grid, _ = masked_grid(tmp_path)
    with pytest.raises(RoundError, match="2 of 4 sites would be a quorum, but masks are lifted by 3 or more"):
        run(tmp_path / "run", grid, masked(), quorum=0.5)


def test_an_algorithm_that_must_see_updates_is_refused_by_the_configuration() -> None:
    by_sums = {name for name in algorithm_names() if algorithm_class(name).needs == "sums"}
    # FedNova's sites divide by their steps themselves; of shared noise (fedsgd) there is nothing but the sum.
    known = {name for name in by_sums if not algorithm_class(name).needs_steps or algorithm_class(name).divides}
    assert known == {"fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedbn", "fedper", "scaffold", "feddyn",
                     "ditto", "fednova"}  # fmt: skip
    assert Algorithm.needs == FlowerAlgorithm.needs == "updates"
    for name in set(algorithm_names()) - known - {"fedsgd"}:
        with pytest.raises(ConfigError, match="must see each site's update"):
            compose_text("", [f"strategy={name}", "strategy.secure_aggregation=masked"])
    with pytest.raises(ConfigError, match="client_noise_multiplier"):
        compose_text("", ["strategy.secure_aggregation=masked", "strategy.client_noise_multiplier=1",
                          "strategy.weighting=equal"])  # fmt: skip


def test_a_site_does_not_take_the_coordinators_word_for_what_it_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session names another model than the one that came: no words."""
    monkeypatch.setattr(steps_module, "tensors_digest", lambda tensors: "0" * 64)
    grid, _ = masked_grid(tmp_path)
    with pytest.raises(RoundError, match="0 sites gave masked updates"):
        run(tmp_path / "run", grid, masked())
    (line,) = (tmp_path / "sites" / "a" / "site.log").read_text().splitlines()
    assert '"code": 2058' in line and "another model" in line


def test_a_site_that_holds_no_roster_gives_no_words(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path, NAMES)
    with pytest.raises(RoundError, match="0 sites gave keys"):
        run(tmp_path / "run", grid, masked())


def test_a_sum_of_two_sites_is_refused_before_the_first_round(tmp_path: Path) -> None:
    grid, _ = masked_grid(tmp_path, ("a", "b"))
    with pytest.raises(RoundError, match="over 3 sites or more, and a round here is over 2"):
        run(tmp_path / "run", grid, masked(), ("a", "b"), quorum=1.0)


def test_weights_may_come_coded_and_words_go_back_as_they_are(tmp_path: Path) -> None:
    grid, _ = masked_grid(tmp_path)
    final, events = run(tmp_path / "run", grid, masked(codec="int8"))
    assert not events.of("site_refused") and not events.of("site_failed")
    assert [row["missing"] for row in events.of("round_done")] == [{}, {}] and final.states["guidance"]


class Silent(InProcessGrid):
    """The last node is there, and answers no step with keys."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = super().pull_messages(message_ids)
        return [r for r in replies if (r.metadata.src_node_id, r.metadata.message_type) != (4, "query.mask")]


def test_a_site_that_is_there_and_silent_costs_a_round_a_part_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "KEYS", 0.005)
    grid, _ = masked_grid(tmp_path)
    grid.__class__ = Silent
    _, events = run(tmp_path / "run", grid, masked(), quorum=0.75, deadline_s=600.0)
    rounds = events.of("round_done")
    assert [row["missing"] for row in rounds] == [{"d": "it did not reply before the deadline"}] * 2


def test_steps_share_what_is_left_of_a_rounds_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module.time, "monotonic", lambda: 100.0)
    assert steps_module.part_of_time(160.0, 1 / 3) == pytest.approx(120.0)
    assert steps_module.part_of_time(160.0, 1.0) == 160.0
    assert steps_module.part_of_time(90.0, 1 / 3) == 90.0  # it is over
