"""Options belong to their owner: one declaration, the same specification as ever, lists that do not wait for torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.config import owners
from fed_diffmic.config.compose import compose
from fed_diffmic.config.fields import as_written, option
from fed_diffmic.config.groups import DatasetConfig, PartitionConfig, StrategyConfig
from fed_diffmic.config.owners import ALGORITHMS, KINDS, PARTITIONERS, Own, builtin, builtins, is_inside, register
from fed_diffmic.data.datasets import register_dataset
from fed_diffmic.errors import ConfigError

ROOT = Path(__file__).parents[2]
GROUPS: dict[str, Any] = {"dataset": DatasetConfig, "strategy": StrategyConfig, "partition": PartitionConfig}
# Of what each choice composed to before options belonged to their owners, in the order of the keys in config.yaml.
# Signed studies, stored runs and the cells of experiments are compared by this text: it does not change.
BEFORE = {
    "dataset": "b25fb6d2c1dfd943d0836fbd440aa424ac77757fb7907b0f2597f940b3b9d274",
    "partition": "6c764d32bbb9d2751aaa991fa938b056d4e176195664c234962725350b319e16",
    "strategy": "7583d6181adf90c087daeb73ec7e647b253d7bca90fedd8ab3c9132b64978128",
}
WHEN_FROZEN = {
    "dataset": ["aptos2019", "chestxray14", "ham10000", "phantoms", "pmg2000", "table"],
    "partition": ["dirichlet", "feature", "iid", "institution", "pathological", "quantity", "saved"],
    "strategy": ["ditto", "fedadam", "fedavg", "fedavgm", "fedbn", "feddyn", "fednova", "fedprox", "fedyogi", "flower",
                 "krum", "median", "qfedavg", "scaffold", "trimmed_mean"],
}  # fmt: skip


@pytest.fixture
def newcomer() -> Iterator[str]:
    yield "newcomer"
    for kind in KINDS.values():
        owners.forget(kind, "newcomer")


@pytest.mark.parametrize("group", GROUPS)
def test_what_each_built_in_choice_sets_is_what_it_always_set(group: str) -> None:
    kind, config_type = KINDS[group], GROUPS[group]
    made = {name: as_written(config_type(**_of(kind, name).flat_values(config_type))) for name in WHEN_FROZEN[group]}
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest() == BEFORE[group]


def _of(kind: owners.Kind, name: str) -> owners.Owner:
    found = builtin(kind, name)
    assert found is not None
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_a_flat_option_is_declared_by_those_that_it_names_and_alike(group: str) -> None:
    found = builtins(KINDS[group])
    for owner in found.values():
        owners.beside_flat(owner.options, GROUPS[group])  # raises where ranges or types differ
    flat = [f for f in fields(GROUPS[group]) if f.metadata.get("owners")]
    assert flat
    for f in flat:
        declares = {name for name, owner in found.items() if f.name in {own.name for own in fields(owner.options)}}
        assert set(f.metadata["owners"]) == declares, f.name
        assert all(name in f.metadata["doc"] for name in declares), f.name


@pytest.mark.parametrize("group", GROUPS)
def test_every_owner_says_what_it_is_and_what_its_options_mean(group: str) -> None:
    for owner in builtins(KINDS[group]).values():
        assert owner.options is not Own and len(owner.about) > 10 and owner.package == ""
        assert all(len(f.metadata["doc"]) > 5 for f in fields(owner.options))


def test_lists_and_configurations_do_not_wait_for_torch() -> None:
    """``fed-diffmic options`` of every group, and a composition, in a process in which nothing may import it."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fed_diffmic.config.reference import options_text\n"
        "from fed_diffmic.config.compose import compose\n"
        "print(len(''.join(map(options_text, ('strategy', 'dataset', 'partition')))))\n"
        "compose(None, ['strategy=fedbn', 'dataset=chestxray14', 'partition=quantity'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 5000, done.stderr


@pytest.mark.parametrize("name", ["os.path", "FedAvg", "", "x" * 65, "../fedavg", "fed-avg"])
def test_a_name_that_is_none_is_refused_before_anything_is_looked_for(name: str) -> None:
    with pytest.raises(ConfigError):
        StrategyConfig(name=name)
    assert not is_inside(ALGORITHMS, name) and builtin(ALGORITHMS, name) is None


def test_what_only_others_share_is_no_choice() -> None:
    assert is_inside(ALGORITHMS, "base") and builtin(ALGORITHMS, "base") is None
    with pytest.raises(ConfigError, match="strategy=base"):
        compose(None, ["strategy=base"])


def test_the_registry_is_loud(newcomer: str) -> None:
    @dataclass(frozen=True)
    class Bare(Own):
        share: float = option(doc="no default", ge=0)

    with pytest.raises(ValueError, match="do not derive from DatasetOptions"):
        register_dataset(newcomer, Own)(lambda cfg, findings: None)  # type: ignore[arg-type]
    for name, options, said in (
        ("New", Own, "is no name"),
        ("fedprox", Own, "is built in"),
        (newcomer, Bare, "share .* has no default"),
    ):
        with pytest.raises(ValueError, match=said):
            register(ALGORITHMS, name, options, lambda: None)
    register(ALGORITHMS, newcomer, Own, lambda: None)
    with pytest.raises(ValueError, match="registered twice"):
        register(ALGORITHMS, newcomer, Own, lambda: None)


def test_a_setting_that_the_group_does_not_have_cannot_be_preset(newcomer: str) -> None:
    register(PARTITIONERS, newcomer, Own, lambda: None, acquisitoin=0.5)
    with pytest.raises(ConfigError, match=r"partition\.acquisitoin"):
        compose(None, [f"partition={newcomer}"])


def test_options_that_somebody_sent_are_those_of_the_algorithm_and_no_others(newcomer: str) -> None:
    @dataclass(frozen=True)
    class Options(Own):
        """Of nobody."""

        share: float = option(0.5, "a share", gt=0, le=1)
        mu: float = option(0.1, "weight of the proximal term", ge=0)

    def of(**given: Any) -> Options:
        return Options.of(StrategyConfig(name=newcomer, mu=0.3, options=given))

    assert of(share=0.25) == Options(share=0.25, mu=0.3), "mu is the group's own key"
    assert of() == Options(share=0.5, mu=0.3)
    for given, said in (
        ({"share": 2.0}, r"strategy\.options\.share=2.0"),
        ({"share": "much"}, r"strategy\.options\.share=much"),
        ({"share": True}, r"strategy\.options\.share=True"),
        ({"other": 1}, r"strategy\.options\.other=1"),
        ({"mu": 1.0}, r"strategy\.options\.mu=1.0"),
    ):
        with pytest.raises(ConfigError, match=said):
            of(**given)


def test_an_empty_mapping_of_options_is_not_written_where_it_was_not_before() -> None:
    written = as_written(compose(None, []))
    assert "options" not in written["dataset"] and "options" not in written["partition"]
    assert written["strategy"]["options"] == {}
