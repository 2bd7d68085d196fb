"""The masked exchange in the real round loop: the same model as from plain integers, whoever is lost or killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import site as client_site
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from server import rounds
from server.checkpoints import CheckpointStore
from server.masked import MaskedSites
from tests import toy
from tests.exchange.masking.parties import enrolled

NAMES = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)


def masked_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] = NAMES, *, strategy: StrategyConfig | None = None,
    source: Any = None, norm: float = 1e3, **settings: Any,
) -> tuple[Any, toy.Events]:  # fmt: skip
    grid, _ = toy.toy_grid(folder, names, source)
    roster = {name: enrolled(name).public_key() for name in names}

    def masking(context: Any, name: str) -> MaskingSite:
        store = FileStore(folder / "sites" / name / "masking", lambda kind, facts: None)
        return MaskingSite(name, enrolled(name), roster, store)

    client_site._REGISTERED.masking = masking
    monkeypatch.setattr(MaskedSites, "folder", folder / "run", raising=False)
    monkeypatch.setattr(MaskedSites, "roster", roster, raising=False)
    monkeypatch.setattr(MaskedSites, "norm", norm, raising=False)
    monkeypatch.setattr(rounds, "Sites", MaskedSites)
    events = toy.Events([])
    spec = toy.toy_spec(strategy=strategy)
    given = {"stages": ["guidance"], "sites": list(names), "poll_s": 0.001, "join_s": 5.0, **settings}
    return toy.federate(grid, spec, CheckpointStore(folder / "run"), events, **given), events


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "scaffold", "fedbn", "feddyn"])
def test_a_masked_run_ends_near_the_plain_one_and_repeats_itself_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = StrategyConfig(name=name, server_lr=0.1 if name == "fedadam" else 1.0)
    grid, _ = toy.toy_grid(tmp_path / "plain", NAMES)
    plain = toy.federate(grid, toy.toy_spec(strategy=strategy), CheckpointStore(tmp_path / "plain" / "run"),
                         toy.Events([]), stages=["guidance"], sites=list(NAMES), poll_s=0.001)  # fmt: skip
    one, events = masked_run(tmp_path / "1", monkeypatch, strategy=strategy)
    two, _ = masked_run(tmp_path / "2", monkeypatch, strategy=strategy)
    assert one.digests == two.digests
    assert not events.of("site_refused") and not events.of("site_failed")
    for tensor, value in plain.states["guidance"].items():
        assert np.allclose(one.states["guidance"][tensor], value, atol=2e-3), tensor
