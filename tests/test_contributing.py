"""CONTRIBUTING.md followed literally: what it says to name somewhere is named there, and is all that there is to do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.owners import KINDS, builtins

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = {"dataset": "a data set", "strategy": "a federated algorithm", "partition": "a partitioner"}
SHARED = {"dataset": set(), "strategy": {"base", "robust", "shares", "sums", "updates"}, "partition": {"base"}}
"""Files that are no choice: what the others share."""

ONE_FILE = {
    "strategy": """
@dataclass(frozen=True)
class Options(Own):
    \"\"\"Half of FedAvg's step.\"\"\"

    share: float = option(0.5, "share of the mean step", gt=0, le=1)


@register_algorithm("newcomer", Options)
class Newcomer(FedAvg):
    options: Options
""",
    "dataset": """
@dataclass(frozen=True)
class Options(DatasetOptions):
    \"\"\"Nobody's images.\"\"\"

    share: float = option(0.5, "share of them", gt=0, le=1)


@register_dataset("newcomer", Options, modality="fundus")
def read(cfg, findings):
    raise NotImplementedError
""",
    "partition": """
@dataclass(frozen=True)
class Options(PartitionOptions):
    \"\"\"Half here, half there.\"\"\"

    share: float = option(0.5, "share of the first site", gt=0, le=1)


@register_partitioner("newcomer", Options)
def assign(manifest, groups, cfg, rng):
    raise NotImplementedError
""",
}
IMPORTS = """from __future__ import annotations
from dataclasses import dataclass
from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import DatasetOptions, PartitionOptions
from fed_diffmic.config.owners import Own
"""
OWN_IMPORTS = {
    "strategy": "from fed_diffmic.algorithms import register_algorithm\n"
    "from fed_diffmic.algorithms.fedavg import FedAvg\n",
    "dataset": "from fed_diffmic.data.datasets import register_dataset\n",
    "partition": "from simulations.partitioners import register_partitioner\n",
}
USE = """
import sys, fed_diffmic.config.owners as owners
from fed_diffmic.config.compose import compose, config_from_run_config, to_json, to_yaml
from fed_diffmic.config.reference import options_text
import importlib
group, folder = sys.argv[1:]
importlib.import_module(owners.KINDS[group].package).__path__.append(folder)  # one more file in the folder
config = compose(None, [f"{group}=newcomer", f"{group}.share=0.25"])
assert getattr(config, group).options == {"share": 0.25}
assert config_from_run_config({"config-json": to_json(config)}) == config
assert compose(None, [f"{group}=newcomer"]) != compose(None, []) and "newcomer" in to_yaml(config)
assert f"{group}.share=0.5" in options_text(group) and "newcomer" in options_text(group)
assert "torch" not in sys.modules, "listing options must not wait for torch"
try:
    compose(None, [f"{group}=newcomer", f"{group}.share=1.5"])
except Exception as error:
    assert f"{group}.share=1.5 is not allowed; allowed: a number > 0 and <= 1" in str(error), error
else:
    raise AssertionError("its range does not hold")
"""


def row(kind: str) -> str:
    return next(line for line in TEXT.splitlines() if line.startswith(f"| {ROWS[kind]} |"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_one_file_that_nothing_else_names(kind: str) -> None:
    folder = ROOT / KINDS[kind].package.replace(".", "/")
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"} - SHARED[kind]
    assert set(builtins(KINDS[kind])) == files
    assert f"`{folder.relative_to(ROOT)}/NAME.py`" in row(kind) and row(kind).split("|")[3].startswith(" nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_is_all_that_it_takes(kind: str, tmp_path: Path) -> None:
    """The page says so; the proof is a file that nothing names, set, checked, saved, read back and listed."""
    (tmp_path / "newcomer.py").write_text(IMPORTS + OWN_IMPORTS[kind] + ONE_FILE[kind], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", USE, kind, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_strategy_that_hospitals_take_is_named_in_their_policy() -> None:
    assert "`configs/policy/standard.yaml`" in row("strategy")
    assert set(compose_site(None, ["policy=standard"]).policy.strategies) == set(builtins(KINDS["strategy"]))


def test_every_path_that_the_page_names_is_there() -> None:
    named = re.findall(r"`((?:fed_diffmic|simulations|configs|tests)/[A-Za-z_/.]+)`", TEXT)
    assert named and [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
