"""Who is asked for validation metrics, and in which rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.config.compose import compose
from fed_diffmic.errors import ModelFileError
from server.judges import able, is_judged, judges
from server.run_state import RunState
from server.terms import RunTerms
from tests import toy

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def claims(**val: int | None) -> dict[str, dict[str, list[int | None]]]:
    return {name: {"images": [9, count, 0]} for name, count in val.items()}


def test_a_site_without_validation_images_is_not_asked_one_that_keeps_the_number_back_is() -> None:
    assert able(claims(a=2, b=0, c=None), {"a", "b", "c"}) == {"a", "c"}
    assert able(claims(a=2, b=0), {"a", "b", "late"}) == {"a", "late"}
    assert able(claims(a=2, b=0, gone=3), {"a", "b"}) == {"a"}, "who withdrew is waited for"
    assert able(claims(a=2, b=1), {"a", "b"}) is None and able(claims(a=0, b=0), {"a", "b"}) is None


@given(every=st.integers(1, 9), rounds=st.integers(1, 30))
def test_the_last_round_is_judged_whatever_the_setting(every: int, rounds: int) -> None:
    judged = [n for n in range(1, rounds + 1) if is_judged(RunTerms([], metrics_every=every), n, rounds)]
    assert judged == sorted({*range(every, rounds + 1, every), rounds})


@given(share=st.floats(0.01, 1.0), count=st.integers(1, 30))
def test_a_share_is_of_the_able_ones_the_same_in_every_round(share: float, count: int) -> None:
    said = claims(**{f"s{n}": 1 for n in range(count)}, none=0)
    run: Any = SimpleNamespace(
        spec=toy.toy_spec(),
        terms=RunTerms([], metrics_share=share),
        run_state=RunState(settings={}, claims=said),  # type: ignore[arg-type]
        exchange=SimpleNamespace(everyone=lambda: set(said)),
    )
    first = judges(run, "plain")
    assert first == judges(run, "plain") and first is not None and first <= said.keys() - {"none"}
    assert len(first) - 1 < share * count <= len(first) + 1e-6


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_rounds_that_nobody_judges_train_to_the_same_bits_and_are_not_chosen(tmp_path: Path, codec: str) -> None:
    strategy = compose(None, ["strategy=fedavg", f"strategy.codec={codec}"]).strategy
    spec, seen, finals = toy.toy_spec(rounds=5, ema=0.0, strategy=strategy), [], []
    for every in (1, 2):
        events, folder = toy.Events([]), tmp_path / str(every)
        grid, _ = toy.toy_grid(folder, NAMES)
        finals.append(toy.short_run(folder, grid, spec, events, sites=list(NAMES), metrics_every=every))
        seen.append([event["round"] for event in events.of("site_evaluated") if event["site"] == "a"])
        assert not events.of("site_failed")
    assert seen == [[1, 2, 3, 4, 5, 0, 0], [2, 4, 5, 0, 0]]
    trained = [[row["sites"] for row in final.history] for final in finals]
    losses = [[{name: site["loss"] for name, site in row.items()} for row in rows] for rows in trained]
    assert losses[0] == losses[1], "judging changed what is trained"
    assert finals[1].history[-1]["best_round"] in (2, 4, 5) and finals[1].bytes_sent < finals[0].bytes_sent


def test_rounds_that_nobody_judges_are_trained_from_as_coded(tmp_path: Path) -> None:
    strategy = compose(None, ["strategy=fedavg", "strategy.codec=int8"]).strategy
    spec, sent = toy.toy_spec(rounds=4, ema=0.0, strategy=strategy), []
    for every in (1, 4):
        folder = tmp_path / str(every)
        final = toy.short_run(folder, toy.toy_grid(folder)[0], spec, metrics_every=every)
        sent.append([row["bytes_sent"] for row in final.history])
    assert max(sent[1][1:3]) <= max(sent[0][1:3]), "weights went out whole where a coded difference was enough"


def test_sites_that_cannot_answer_train_and_are_asked_for_no_metrics(tmp_path: Path) -> None:
    events = toy.Events([])
    sites = {name: toy.toy_site(name, seed) for seed, name in enumerate(NAMES, start=1)}
    sites["c"] = replace(sites["c"], val=sites["c"].val.subset(np.arange(0)))
    grid, _ = toy.toy_grid(tmp_path, NAMES, toy.ToySource(sites))
    final = toy.short_run(tmp_path, grid, toy.toy_spec(), events, sites=list(NAMES))
    assert {event["site"] for event in events.of("site_evaluated")} == {"a", "b"}
    assert {event["site"] for event in events.of("site_done")} == set(NAMES)
    assert not final.history[-1]["missing"]


def test_a_run_is_not_continued_with_other_judges(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path)
    with pytest.raises(RuntimeError):
        toy.short_run(tmp_path, grid, toy.toy_spec(), Stopped([]))
    with pytest.raises(ModelFileError, match="metrics"):
        toy.short_run(tmp_path, toy.toy_grid(tmp_path, source=source)[0], toy.toy_spec(), metrics_every=2)


class Stopped(toy.Events):
    """A coordinator that dies after its first round."""

    def emit(self, kind: str, **facts: object) -> None:
        super().emit(kind, **facts)
        if kind == "round_done":
            raise RuntimeError
