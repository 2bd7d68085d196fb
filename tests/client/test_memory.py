"""Virtual sites in memory: each has what it would have on its own disk, one copy for all; the run's bits are equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client import memory
from client.memory import MemoryStore
from client.state import KEPT_WEIGHTS, SiteStore
from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.compose import compose
from fed_diffmic.files import tensors_digest
from tests import toy


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    memory.forget()


def weights(value: float) -> Tensors:
    return {"w": np.full(3, value, np.float32)}


def test_a_site_has_only_what_it_was_sent_itself_and_nothing_is_written(tmp_path: Path) -> None:
    one, other = MemoryStore(tmp_path / "a"), MemoryStore(tmp_path / "b")
    digest = tensors_digest(weights(1))
    one.keep_weights(digest, weights(1))
    assert other.weights(digest) is None, "what another site was sent was never sent to this one"
    other.keep_weights(digest, weights(1))
    first, second = one.weights(digest), other.weights(digest)
    assert first is not None and second is not None and first["w"] is second["w"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [SiteStore, MemoryStore])
def test_both_kinds_of_store_forget_at_the_same_time(tmp_path: Path, kind: type[SiteStore]) -> None:
    store = kind(tmp_path / "a")
    digests = [tensors_digest(weights(n)) for n in range(KEPT_WEIGHTS + 1)]
    for number, digest in enumerate(digests):
        store.keep_weights(digest, weights(number))
    assert [store.weights(digest) is not None for digest in digests] == [False] + [True] * KEPT_WEIGHTS


@pytest.mark.parametrize("changed", ["bit", "zero", "dtype", "shape", "name"])
def test_weights_that_are_not_those_another_site_was_sent_are_not_taken_for_them(tmp_path: Path, changed: str) -> None:
    named, store = tensors_digest(weights(0)), MemoryStore(tmp_path / "a")
    MemoryStore(tmp_path / "b").keep_weights(named, weights(0))
    other = {
        "bit": weights(1e-45),
        "zero": weights(-0.0),
        "dtype": {"w": np.zeros(3, np.int32)},
        "shape": {"w": np.zeros((1, 3), np.float32)},
        "name": {"v": np.zeros(3, np.float32)},
    }[changed]
    assert store.are(weights(0), named) and not store.are(other, named)


@pytest.mark.parametrize(
    "settings",
    [["strategy=fedavg"], ["strategy=scaffold"], ["strategy=ditto"], ["strategy=fedavg", "strategy.codec=int8"]],
    ids=["fedavg", "scaffold", "ditto", "int8"],
)
def test_weights_and_bytes_are_those_of_sites_with_a_disk(tmp_path: Path, settings: list[str]) -> None:
    spec = toy.toy_spec(rounds=3, strategy=compose(None, settings).strategy)
    found = []
    for name, node in (("disk", {}), ("memory", {"memory": True, "keep-updates": False})):
        grid, _ = toy.toy_grid(tmp_path / name, **node)
        found.append(toy.short_run(tmp_path / name, grid, spec))
    assert found[0].digests == found[1].digests and found[0].bytes_sent == found[1].bytes_sent
    assert list((tmp_path / "disk" / "sites" / "a" / "weights").iterdir())
    assert not (tmp_path / "memory" / "sites" / "a" / "weights").exists()


def test_a_process_that_goes_on_holds_nothing_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    spec = toy.toy_spec(rounds=3, strategy=compose(None, ["strategy=scaffold"]).strategy)
    node = {"memory": True, "keep-updates": False}
    whole = toy.short_run(tmp_path / "whole", toy.toy_grid(tmp_path / "whole", **node)[0], spec)
    grid, source = toy.toy_grid(tmp_path / "cut", **node)
    events = Killed()
    with pytest.raises(KeyboardInterrupt):
        toy.short_run(tmp_path / "cut", grid, spec, events)
    memory.forget()
    again = toy.short_run(tmp_path / "cut", toy.toy_grid(tmp_path / "cut", source=source, **node)[0], spec)
    assert again.digests == whole.digests


class Killed(toy.Events):
    """Ends the run in the middle of the second round."""

    def __init__(self) -> None:
        super().__init__([])

    def emit(self, kind: str, **facts: object) -> None:
        super().emit(kind, **facts)
        if kind == "site_done" and facts["round"] == 2:
            raise KeyboardInterrupt
