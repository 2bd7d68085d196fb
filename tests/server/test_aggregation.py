"""What the coordinator tells an algorithm of the sites that are in a sum, and of those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.algorithms import SiteUpdate, build_algorithm
from fed_diffmic.algorithms.scaffold import Scaffold
from fed_diffmic.config.simulation import StrategyConfig
from server.aggregation import last_weights, share_of_all
from server.checkpoints import CheckpointStore
from server.run_state import RunState
from tests import toy


def share(there: dict[str, int], *, most: float = 1.0, weighting: str = "examples", **said: int) -> float:
    """Of the sites ``a`` to ``d``."""
    algorithm = build_algorithm(StrategyConfig(name="scaffold", weighting=weighting), max_share=most)
    run_state = RunState({}, claims={name: {"images": [images, 0, 0]} for name, images in said.items()})
    away = last_weights(run_state, set("abcd") - there.keys())
    return share_of_all([SiteUpdate(name, {}, n) for name, n in there.items()], algorithm, away)


def test_a_sites_share_is_that_of_its_weight_among_all_sites() -> None:
    said = {"a": 100, "b": 10, "c": 40, "d": 50}
    assert share({"b": 10}, **said) == pytest.approx(10 / 200)
    assert share({"a": 100, "b": 10}, **said) == pytest.approx(110 / 200)
    assert share({"b": 10}, weighting="equal", **said) == pytest.approx(1 / 4)
    assert share(said, **said) == 1.0
    assert share({"a": 100, "d": 50}, most=0.3, **said) == pytest.approx((300 / 7 + 300 / 7) / (1000 / 7))


def test_a_site_that_nobody_saw_counts_as_the_others_do_as_a_mean() -> None:
    assert share({"a": 100}, a=100, b=10, c=40) == pytest.approx(100 / (150 + 50))
    assert share({"a": 100}, a=100) == pytest.approx(1 / 4)
    assert share({"a": 100}, a=100, b=0, c=20) == pytest.approx(100 / (120 + 2 * 60))  # 0: it kept its number back


def test_what_a_site_weighed_is_known_better_than_what_it_said() -> None:
    """A private site weighs what its settings say, whatever it said of its images."""
    rows = [{"sites": {"a": {"num_examples": n}}} for n in (7, 8)] + [{"sites": {"b": {"num_examples": 3}}}]
    run_state = RunState({}, claims={"a": {"images": [90, 0, 0]}, "c": {"images": [5, 1, 1]}}, history=rows)
    assert last_weights(run_state, {"a", "b", "c", "d"}) == {"a": 8, "b": 3, "c": 5, "d": 0}


def test_a_round_of_a_run_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    seen: list[tuple[tuple[str, ...], float | None]] = []
    honest = Scaffold.from_sums

    def watched(self: Any, current: Any, kinds: Any, sums: Any, *rest: Any) -> Any:
        seen.append((tuple(update.site for update in sums.sites), sums.share))
        return honest(self, current, kinds, sums, *rest)

    monkeypatch.setattr(Scaffold, "from_sums", watched)
    sizes = {"a": 24, "b": 48, "c": 96}
    source = toy.ToySource({name: toy.toy_site(name, seed, n) for seed, (name, n) in enumerate(sizes.items())})
    grid, _ = toy.toy_grid(tmp_path, tuple(sizes), source)
    spec = replace(toy.toy_spec(rounds=4), strategy=StrategyConfig(name="scaffold", participation=0.67))
    toy.federate(grid, spec, CheckpointStore(tmp_path / "run"), toy.Events([]), stages=["guidance"], sites=[*sizes])
    assert len(seen) == 4 and all(len(sites) == 2 for sites, _ in seen)
    for sites, told in seen:
        assert told == pytest.approx(sum(sizes[name] for name in sites) / sum(sizes.values()))
