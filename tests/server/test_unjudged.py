"""Rounds that nobody judged at a stage's end: said, and their weights kept, from which another run can begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.files import load_tensors, tensors_digest
from server.checkpoints import CheckpointStore
from server.unjudged import rounds_unjudged
from tests import toy
from tests.server.test_masked import NAMES, masked_grid
from tests.server.test_masked_figures import MASKED


@pytest.mark.parametrize(
    ("judged", "count"), [("", 0), ("yyy", 0), ("nyn", 1), ("ynnn", 3), ("nnn", 0), ("ynny", 0), ("yyn", 1)]
)
def test_only_what_comes_behind_the_last_judged_round_is_counted(judged: str, count: int) -> None:
    rows = [{"stage": "plain", "mean": {"loss": 0.0} if letter == "y" else {}} for letter in judged]
    assert rounds_unjudged([*rows, {"stage": "another", "mean": {}}], "plain") == count


def run(folder: Path, rounds: int = 3, ema: float = 0.5, init: str | None = None, **settings: Any) -> Any:
    events, grid = toy.Events([]), masked_grid(folder)[0]
    spec = toy.toy_spec(strategy=MASKED, rounds=rounds, ema=ema, init=init)
    given = {"stages": ["guidance"], "sites": list(NAMES), "poll_s": 0.001, "join_s": 120.0, "quorum": 0.75, **settings}
    return toy.federate(grid, spec, CheckpointStore(folder / "run"), events, **given), events


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_site_that_leaves_for_good_ends_judging_and_another_run_can_begin_from_the_last_weights(
    ema: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    real = MaskingSite.mask

    def gone(self: MaskingSite, session: Any, *given: Any) -> Any:
        if (self.name, session.purpose) == ("d", "evaluate") and session.round > 1:
            raise OSError("gone")
        return real(self, session, *given)

    with monkeypatch.context() as patch:
        patch.setattr(MaskingSite, "mask", gone)
        final, events = run(tmp_path / "1", ema=ema)
    (done,) = events.of("stage_done")
    assert (done["best_round"], done["chosen"], done["unjudged"]) == (1, True, 2)
    told = events.of("figures_missing")[0]
    assert "not there: d" in told["reason"] and "stages.*.init" in told["todo"] and "last/" in told["todo"]
    last = tmp_path / "1" / "run" / done["last"]
    # The same training, judged in its last round alone: that round is its result.
    whole, events = run(tmp_path / "2", ema=ema, metrics_every=3)
    assert "last" not in events.of("stage_done")[0] and not (tmp_path / "2" / "run" / "last").exists()
    assert tensors_digest(load_tensors(last)) == whole.digests["guidance"] != final.digests["guidance"]
    begun, _ = run(tmp_path / "3", rounds=0, init=str(last))
    assert begun.digests["guidance"] == whole.digests["guidance"]
