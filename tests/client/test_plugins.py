"""A package from outside at a site: refused unless the policy names it, before any of its code is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client import site as client_site
from client.personal import own_parts
from fed_diffmic.config import plugins
from fed_diffmic.config.owners import ALGORITHMS, forget
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.site import PolicyConfig, SiteConfig, SiteGroup
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.policy_text import explain
from fed_diffmic.transport.messages import failure_of, from_record
from tests import plugin_package, site_rules, toy
from tests.client.test_app import AMPLE, context, send, task

SPEC = replace(toy.toy_spec(), strategy=StrategyConfig(name="halfway", options={"share": 0.5}))
NAMED: dict[str, Any] = {"strategies": ["fedavg", "halfway"], "plugins": ["fed-example"]}


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.syspath_prepend(plugin_package.install(tmp_path / "packages"))
    yield
    forget(ALGORITHMS, "halfway")
    for name in [name for name in sys.modules if name.startswith("fed_example")]:
        del sys.modules[name]


def site(tmp_path: Path, **changes: Any) -> None:
    client_site.register_source(
        toy.ToySource({"a": toy.toy_site("a", 1)}), rules=site_rules.rules(tmp_path / "log", "a", **changes)
    )


def log(tmp_path: Path) -> str:
    return "".join(path.read_text() for path in (tmp_path / "a").rglob("site.log"))


@pytest.mark.parametrize("named", [{**NAMED, "plugins": []}, {**NAMED, "plugins": ["fed-exampl", "*"]}])
def test_a_package_that_the_policy_does_not_name_is_refused_and_not_imported(
    tmp_path: Path, named: dict[str, Any]
) -> None:
    site(tmp_path, **named)
    code = failures.POLICY_PLUGIN
    assert failure_of(send(task("train", SPEC), "train", context(tmp_path))) == (code, failures.FAILURES[code])
    assert not any(name.startswith("fed_example") for name in sys.modules)
    assert "write `plugins: [fed-example]` under `policy` in site.yaml" in log(tmp_path)


def test_with_its_name_in_the_policy_the_site_takes_part(tmp_path: Path) -> None:
    site(tmp_path, **NAMED)
    reply = from_record(send(task("train", SPEC), "train", context(tmp_path)).content, AMPLE)
    assert reply.kind == "train.reply" and reply.tensors
    assert "fed_example.halfway" in sys.modules


def test_a_name_in_the_policy_allows_no_option_out_of_range(tmp_path: Path) -> None:
    site(tmp_path, **NAMED)
    beyond = replace(SPEC, strategy=StrategyConfig(name="halfway", options={"share": 2.0}))
    assert failure_of(send(task("train", beyond), "train", context(tmp_path)))[0] == failures.MODEL_SETTINGS


def test_naming_the_package_is_not_naming_the_algorithm(tmp_path: Path) -> None:
    site(tmp_path, plugins=["fed-example"])
    assert failure_of(send(task("train", SPEC), "train", context(tmp_path)))[0] == failures.POLICY_STRATEGY
    assert not any(name.startswith("fed_example") for name in sys.modules)


def test_the_policy_says_it_in_a_sentence() -> None:
    assert "No code of a package from outside this program may be run here" in explain(PolicyConfig())
    assert "whose code may be run here: fed-example." in explain(PolicyConfig(plugins=["fed-example"]))
    assert "whose code may be run here: *." in explain(PolicyConfig(plugins=["*"])), "a star names nothing here"


def test_a_package_stands_for_what_it_offers_and_a_name_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugins.trusted(ALGORITHMS, "halfway", ["halfway"]) and plugins.trusted(
        ALGORITHMS, "halfway", ["Fed_Example"]
    )
    monkeypatch.setattr(plugins, "foreign", lambda kind, name: "other")
    assert not plugins.trusted(ALGORITHMS, "good_pkg", ["good-pkg"])


def test_a_model_that_came_runs_no_package_that_the_policy_does_not_name(tmp_path: Path) -> None:
    final: Any = SimpleNamespace(spec=SPEC, personal={"guidance": {"a": "0" * 64}})
    config = SiteConfig(site=SiteGroup(name="a", folder=str(tmp_path / "a"), device=["cpu"]))
    with pytest.raises(ConfigError, match=r"plugins: \[fed-example\]"):
        own_parts(config, final, tmp_path / "came")
    assert not any(name.startswith("fed_example") for name in sys.modules)
