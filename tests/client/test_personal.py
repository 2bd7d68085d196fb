"""A site completes the model that came with the part that never left it, and keeps both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import compare
from client.compare import IN_USE
from client.housekeeping import KEPT
from client.personal import complete, own_parts
from fed_diffmic.cli import main
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.release.final import load_final
from fed_diffmic.release.personal import part_of_site, save_part
from server.checkpoints import CheckpointStore
from tests import toy


def federated(folder: Path, strategy: str) -> Path:
    """A finished run of two sites; its folder."""
    grid, _ = toy.toy_grid(folder, ("a", "b"))
    spec = toy.toy_spec(strategy=StrategyConfig(name=strategy), rounds=2)
    toy.federate(grid, spec, CheckpointStore(folder / "run"), toy.Events([]), stages=["guidance"], sites=["a", "b"])
    return folder / "run"


def site(folder: Path, name: str) -> SiteConfig:
    return SiteConfig(site=SiteGroup(name=name, folder=str(folder / "sites" / name), device=["cpu"]))


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)


def test_each_site_completes_the_model_with_its_own_normalisation(tmp_path: Path) -> None:
    run = federated(tmp_path, "fedbn")
    final = load_final(run)
    own = {}
    for name in ("a", "b"):
        parts = own_parts(site(tmp_path, name), final, run)
        assert {key.split(".")[0] for key in parts["guidance"]} == {"norm"}
        own[name] = complete(final, parts).states["guidance"]
        for key, value in final.states["guidance"].items():
            expected = parts["guidance"].get(key, value)
            assert np.array_equal(own[name][key], expected)
    assert not np.array_equal(own["a"]["norm.running_mean"], own["b"]["norm.running_mean"])
    assert np.array_equal(own["a"]["head.weight"], own["b"]["head.weight"])


def test_a_model_that_is_the_same_everywhere_needs_nothing_of_the_site(tmp_path: Path) -> None:
    final = load_final(federated(tmp_path, "fedavg"))
    nowhere = site(tmp_path / "nowhere", "a")
    assert own_parts(nowhere, final, tmp_path) == {}
    assert complete(final, {}).states["guidance"].keys() == final.states["guidance"].keys()
    assert not (tmp_path / "nowhere").exists()


def test_a_part_that_was_purged_is_said_and_not_replaced_by_the_global_one(tmp_path: Path) -> None:
    run = federated(tmp_path, "fedbn")
    for part in KEPT:
        for path in (tmp_path / "sites" / "a" / part).rglob("*.safetensors"):
            path.unlink()
    with pytest.raises(ModelFileError, match="no longer holds its own part"):
        own_parts(site(tmp_path, "a"), load_final(run), run)


def test_a_part_that_came_beside_the_model_is_not_this_sites(tmp_path: Path) -> None:
    """The signature does not cover it."""
    run = federated(tmp_path, "fedbn")
    final = load_final(run)
    parts = own_parts(site(tmp_path, "a"), final, run)
    save_part(run, "guidance", "a", {name: value + 1 for name, value in parts["guidance"].items()})
    again = own_parts(site(tmp_path, "a"), final, run)
    assert all(np.array_equal(again["guidance"][name], value) for name, value in parts["guidance"].items())


@pytest.mark.parametrize("strategy", ["fedbn", "ditto"])
def test_what_is_taken_over_is_the_sites_own_model_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, strategy: str
) -> None:
    run = federated(tmp_path, strategy)
    data = toy.toy_site("a", 3, count=48)
    monkeypatch.setattr(compare, "SiteSource", lambda _: lambda *_: data)
    folder = tmp_path / "sites" / "a"
    (tmp_path / "site.yaml").write_text(
        f"site: {{name: a, folder: {folder}, device: cpu}}\ndataset: {{root: {tmp_path}}}\n", encoding="utf-8"
    )
    more = ["--config", str(tmp_path / "site.yaml"), "--json"]
    assert main(["client", "model", "use", str(run), *more]) == 0
    said = capsys.readouterr()
    assert "--site a" in said.err
    first = json.loads(said.out)
    for part in KEPT:  # as site.keep_days does
        for path in (folder / part).rglob("*.safetensors"):
            path.unlink()
    final = load_final(folder / IN_USE)
    kept = part_of_site(folder / IN_USE, final, "guidance", "a")
    assert kept and not all(np.array_equal(value, final.states["guidance"][name]) for name, value in kept.items())
    assert main(["client", "model", "compare", str(folder / IN_USE), *more]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == first["metrics"]  # the part came along: the same metrics without the site's state
    assert {cell["value"] for cell in again["difference"].values()} <= {0.0, None}
    if strategy == "fedbn":
        with pytest.raises(UsageError, match="--site NAME"):
            part_of_site(folder / IN_USE, final, "guidance", None)
