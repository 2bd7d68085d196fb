"""A masked sum whose set is frozen, when a site of it is lost, or the coordinator comes back without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.site import MaskingSite
from server.masked import MaskedSites
from tests import toy
from tests.server.test_masked import KilledError, masked, masked_grid, run


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def ended(monkeypatch: pytest.MonkeyPatch, purpose: str, begin: Callable[[], Any]) -> None:
    """A coordinator that dies in the first round's sum of a purpose, behind its set."""

    def dying(self: MaskedSum, site: str, given: Any) -> None:
        if self.session.purpose == purpose:
            raise KilledError
        signed(self, site, given)

    signed = MaskedSum.signed
    with monkeypatch.context() as patch:
        patch.setattr(MaskedSum, "signed", dying)
        with pytest.raises(KilledError):
            begin()


@pytest.mark.parametrize("step", ["commit", "unmask"])
def test_figures_of_a_site_that_is_lost_behind_its_words_are_in_every_sum(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a round's, whose company is known, and of those that each site gives once in a run."""
    real = getattr(MaskingSite, step)

    def failing(self: MaskingSite, session: Any, *given: Any) -> Any:
        if self.name == "b" and session.purpose != "train" and session.round != 1:
            raise OSError("gone")
        return real(self, session, *given)

    grid, _ = masked_grid(tmp_path / "1")
    whole, _ = run(tmp_path / "1" / "run", grid, masked(), test_s=60.0)
    monkeypatch.setattr(MaskingSite, step, failing)
    grid, _ = masked_grid(tmp_path / "2")
    final, events = run(tmp_path / "2" / "run", grid, masked(), quorum=0.75, test_s=60.0)
    assert not events.of("figures_missing")
    assert [row["mean"] for row in final.history] == [row["mean"] for row in whole.history]
    assert final.calibration == whole.calibration and final.together == whole.together


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_a_sum_with_a_site_that_came_late_and_is_gone_again_is_read(
    purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint names it before its first round ends: what it said of its images lies beside the sum."""
    grid, _ = masked_grid(tmp_path)
    late = {node: c for node, c in grid._contexts.items() if c.node_config["site"] == "b"}
    grid._contexts = {node: c for node, c in grid._contexts.items() if node not in late}
    train = MaskedSites.train

    def joined(self: MaskedSites, request: Any) -> Any:
        grid._contexts.update(late)
        return train(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedSites, "train", joined)
        ended(monkeypatch, purpose, lambda: run(tmp_path / "run", grid, masked(), quorum=0.75, sites=None))
    grid._contexts = {node: c for node, c in grid._contexts.items() if node not in late}
    final, _ = run(tmp_path / "run", grid, masked(), quorum=0.75, sites=None)
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b", "c", "d"], ["a", "c", "d"]]
    assert purpose == "train" or final.history[0]["summed"]["sites"] == ["a", "b", "c", "d"]
