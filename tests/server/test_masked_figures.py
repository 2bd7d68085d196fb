"""What sites say of weights comes in sums alone: the same choice, end and calibration as from what each says.

Faults seen: a figure of one site that reaches the coordinator, a sum over another set than the run's, a round that
nobody judged taken for the best, rounding of counts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import summed as summed_module
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.failures import POLICY_METRICS, SiteError
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.figures import FigureForm
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.payload import Payload
from server import replies as replies_module
from server.checkpoints import CheckpointStore
from server.masked_figures import SummedFigures
from tests import toy
from tests.server.test_masked import NAMES, KilledError, masked_grid

MASKED = StrategyConfig(secure_aggregation="masked", masked_norm=1000.0)


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def run(folder: Path, grid: Any, *, rounds: int = 2, **settings: Any) -> Any:
    events, spec = toy.Events([]), toy.toy_spec(strategy=settings.pop("strategy", MASKED), rounds=rounds)
    given = {"stages": ["guidance"], "sites": list(NAMES), "poll_s": 0.001, "join_s": 120.0, **settings}
    return toy.federate(grid, spec, CheckpointStore(folder), events, **given), events


def test_choice_and_calibration_are_those_of_what_each_site_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very same weights: a coordinator that sees each site's figures chooses and calibrates just so."""
    seen: list[Payload] = []
    accept = replies_module.Asking._accept
    plain: dict[tuple[str, int], list[dict[str, float]]] = {}

    def watched(self: Any, request: Any, payload: Payload, read: Any) -> None:
        seen.append(payload)
        accept(self, request, payload, read)

    monkeypatch.setattr(replies_module.Asking, "_accept", watched)
    encode = FigureForm.encode

    def encoding(self: Any, metrics: Any) -> Any:
        plain.setdefault(self.names, []).append(dict(metrics))
        return encode(self, metrics)

    monkeypatch.setattr(FigureForm, "encode", encoding)
    grid, _ = masked_grid(tmp_path)
    final, events = run(tmp_path / "run", grid)
    assert not events.of("figures_missing") and not events.of("site_failed")
    told = [payload for payload in seen if payload.kind == "evaluate.reply"]
    assert len(told) == 3 * len(NAMES) and all(set(p.tensors) == {"masked"} and not p.metrics for p in told)
    rounds, table, counted = (plain[names] for names in sorted(plain, key=len))
    for row, figures in zip(final.history, (rounds[:4], rounds[4:]), strict=True):
        images = sum(one["num_examples"] for one in figures)
        for name in ("loss", "auroc_macro"):
            mean = sum(one[name] * one["num_examples"] for one in figures) / images
            assert row["mean"][name] == pytest.approx(mean, abs=4 / images * 2**-21 + 1e-12)
        assert row["val"] == {} and row["summed"] == {"sites": list(NAMES), "num_examples": images}
    scores = [row["mean"]["auroc_macro"] for row in final.history]
    assert final.history[-1]["best_round"] == 1 + scores.index(max(scores))
    cells = {n: sum(one[n] for one in table) for n in table[0] if n.startswith("nll/")}
    (event,) = events.of("calibrated")
    assert event["images"] == sum(one["num_examples"] for one in table)
    assert final.sureness["guidance"].n == sum(one["num_examples"] for one in counted) == event["images"]
    assert event["nll"] == min(cells.values()) / event["images"]  # exact: sums of whole numbers of quanta


def test_a_run_ends_early_by_summed_figures_and_keeps_its_best_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = masked_grid(tmp_path)
    figures = iter([0.5, 0.5, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7])
    decode = FigureForm.decode

    def decoding(self: Any, total: Any, sites: int) -> dict[str, float]:
        found = decode(self, total, sites)
        return {**found, **({"auroc_macro": next(figures)} if "auroc_macro" in found else {})}

    monkeypatch.setattr(FigureForm, "decode", decoding)
    figures = iter([0.5, 0.9, 0.8, 0.7])
    final, _ = run(tmp_path / "run", grid, rounds=5, patience=2)
    assert [row["round"] for row in final.history] == [1, 2, 3, 4]
    assert final.history[-1]["best_round"] == 2


def test_a_site_that_says_no_figures_is_left_out_and_with_too_few_the_last_round_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its update is in the sum all the same, and it is asked no more."""
    real, silent, asked = summed_module.check_figures, {"b"}, []

    def check(site: Any, *given: Any) -> None:
        asked.append(site.name)
        if site.name in silent:
            raise SiteError(POLICY_METRICS)
        real(site, *given)

    monkeypatch.setattr("client.summed.check_figures", check)
    grid, _ = masked_grid(tmp_path / "1")
    final, events = run(tmp_path / "1" / "run", grid)
    assert [row["summed"]["sites"] for row in final.history] == [["a", "c", "d"]] * 2
    assert all(sorted(row["sites"]) == list(NAMES) and row["missing"] == {} for row in final.history)
    assert asked.count("b") == 1 and not events.of("site_failed")
    silent.add("c")
    grid, _ = masked_grid(tmp_path / "2")
    final, events = run(tmp_path / "2" / "run", grid)
    assert all("summed" not in row and row["mean"] == {} for row in final.history)
    assert final.history[-1]["best_round"] == 2 and not events.of("site_failed")
    told = events.of("figures_missing")
    # The second round asks nobody who said that: another sentence, told once too.
    assert [row["purpose"] for row in told] == ["evaluate", "evaluate", "calibrate", "conform"]
    assert "2 sites give figures, and a sum is over 3 or more" in told[1]["reason"]
    assert events.of("calibrated")[0]["images"] == 0


def test_figures_go_over_one_set_and_a_round_without_it_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less one site in the second of three rounds, at its words: neither the sum over the others nor a best round."""
    real = MaskingSite.mask

    def mask(self: MaskingSite, session: Any, *given: Any) -> Any:
        if (self.name, session.purpose, session.round) == ("d", "evaluate", 2):
            raise OSError("gone")
        return real(self, session, *given)

    monkeypatch.setattr(MaskingSite, "mask", mask)
    grid, _ = masked_grid(tmp_path)
    final, events = run(tmp_path / "run", grid, rounds=3, quorum=0.75)
    assert ["summed" in row for row in final.history] == [True, False, True]
    assert final.history[1]["best_round"] == 1
    (told,) = events.of("figures_missing")
    assert told["round"] == 2 and "not there: d" in told["reason"]


@pytest.mark.parametrize("step", ["add", "signed"])
def test_a_coordinator_that_is_ended_while_a_round_is_judged_comes_to_the_same(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = masked_grid(tmp_path / "1")
    whole, _ = run(tmp_path / "1" / "run", grid)
    grid, _ = masked_grid(tmp_path / "2")
    real = getattr(MaskedSum, step)

    def dying(self: MaskedSum, site: str, given: Any) -> None:
        if site == "c" and (self.session.purpose, self.session.round) == ("evaluate", 1):
            raise KilledError
        real(self, site, given)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedSum, step, dying)
        with pytest.raises(KilledError):
            run(tmp_path / "2" / "run", grid)
    resumed, events = run(tmp_path / "2" / "run", grid)
    assert resumed.digests == whole.digests and not events.of("figures_missing")
    assert [row["mean"] for row in resumed.history] == [row["mean"] for row in whole.history]


@pytest.mark.parametrize("same", [True, False])
def test_a_frozen_sum_is_taken_for_what_it_was_begun_of_alone(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of test images by one calibration are no figures of another one, which a resumed run may come to."""
    grid, _ = masked_grid(tmp_path)
    signed, assess = MaskedSum.signed, SummedFigures.assess

    def dying(self: MaskedSum, site: str, given: Any) -> None:
        if self.session.purpose == "test":
            raise KilledError
        signed(self, site, given)

    def otherwise(self: Any, request: Any) -> Any:
        return assess(self, replace(request, fitted=replace(request.fitted, n=request.fitted.n + 1 - same)))

    with monkeypatch.context() as patch:
        patch.setattr(MaskedSum, "signed", dying)
        with pytest.raises(KilledError):
            run(tmp_path / "run", grid, rounds=1, test_s=60.0)
    monkeypatch.setattr(SummedFigures, "assess", otherwise)
    final, events = run(tmp_path / "run", grid, rounds=1, test_s=60.0)
    assert bool(final.together) == same
    assert [row["purpose"] for row in events.of("figures_missing")] == ([] if same else ["test"])


@pytest.mark.parametrize(("purpose", "step"), [("conform", "signed"), ("test", "add")])
def test_a_coordinator_that_is_ended_at_the_end_asks_for_no_sum_of_a_finished_stage_twice(
    purpose: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites sign one set for each: begun anew, the model would have no calibration and no prediction sets."""
    grid, _ = masked_grid(tmp_path / "1")
    whole, _ = run(tmp_path / "1" / "run", grid, rounds=1, test_s=60.0)
    assert whole.sureness["guidance"].n == whole.calibration["guidance"].n > 0 and whole.together
    grid, _ = masked_grid(tmp_path / "2")
    real = getattr(MaskedSum, step)

    def dying(self: MaskedSum, site: str, given: Any) -> None:
        if site == "c" and self.session.purpose == purpose:
            raise KilledError
        real(self, site, given)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedSum, step, dying)
        with pytest.raises(KilledError):
            run(tmp_path / "2" / "run", grid, rounds=1, test_s=60.0)
    resumed, events = run(tmp_path / "2" / "run", grid, rounds=1, test_s=60.0)
    assert not events.of("figures_missing") and resumed.digests == whole.digests
    assert (resumed.calibration, resumed.sureness) == (whole.calibration, whole.sureness)
    assert resumed.together == whole.together
