"""CONTRIBUTING.md followed literally: what it says to name somewhere is named there, and is all that there is to do."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fed_diffmic.algorithms import algorithm_names
from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.simulation import DatasetConfig, PartitionConfig, StrategyConfig
from fed_diffmic.data import datasets
from simulations.partitioners.base import PARTITIONERS, SAVED

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
KINDS = {"dataset": DatasetConfig, "strategy": StrategyConfig, "partition": PartitionConfig}
ROWS = {"dataset": "a data set", "strategy": "a federated algorithm", "partition": "a partitioner"}
ELSEWHERE = {"dataset": set(), "strategy": {"flower"}, "partition": {SAVED}}
"""Names that are no file of their own: Flower's strategies, a file that an earlier run saved."""


def registered(kind: str) -> set[str]:
    named = {"dataset": datasets.dataset_names(), "strategy": algorithm_names(), "partition": tuple(PARTITIONERS)}
    return set(named[kind]) | ELSEWHERE[kind]


def choices(kind: str) -> set[str]:
    (name,) = [f for f in fields(KINDS[kind]) if f.name == "name"]
    return set(name.metadata["choices"])


def row(kind: str) -> str:
    return next(line for line in TEXT.splitlines() if line.startswith(f"| {ROWS[kind]} |"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_registered_among_the_choices_and_has_its_file(kind: str) -> None:
    files = {path.stem for path in (ROOT / "configs" / kind).glob("*.yaml")}
    assert registered(kind) == choices(kind) == files
    assert f"`configs/{kind}/NAME.yaml`" in row(kind) and f"`choices` of `{KINDS[kind].__name__}.name`" in row(kind)
    for name in sorted(files):
        text = (ROOT / "configs" / kind / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.search(rf"^name: {name}$", text, re.MULTILINE), name


def test_a_data_set_needs_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says so; the proof is a file that nothing names."""
    assert "imported by itself" in row("dataset") and "import" not in Path(datasets.__file__).name
    source = Path(datasets.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^from fed_diffmic\.data\.datasets", source, re.MULTILINE)


def test_a_strategy_that_hospitals_take_is_named_in_their_policy() -> None:
    assert "`configs/policy/standard.yaml`" in row("strategy")
    assert set(compose_site(None, ["policy=standard"]).policy.strategies) == choices("strategy")


def test_every_path_that_the_page_names_is_there() -> None:
    named = re.findall(r"`((?:fed_diffmic|simulations|configs|tests)/[A-Za-z_/.]+)`", TEXT)
    assert named and [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
