"""A lifetime's privacy budget: no single request takes it, and no copy, folder or new export brings it back.

A coordinator and one real site in process, with images in files; the coordinator keeps what it saw beside its roster.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from client import site as client_site
from client.app import app
from client.site import Protection
from client.source import SiteSource
from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import DatasetConfig, ModelConfig
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.privacy.account import read_account
from fed_diffmic.privacy.continuity import accept, kept_echo, witness_of
from fed_diffmic.provision.keys import load_private, make_site_key
from fed_diffmic.provision.roster import Roster
from fed_diffmic.training import stages
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.ledgers import LedgerMemory
from simulations.grid import InProcessGrid
from tests.site_rules import rules
from tests.toy import CLASSES, Events, federate, toy_spec

SIDE, BUDGET = 32, 4.0
PRIVACY = PrivacyConfig(
    name="dp_sgd", stages=["plain"], unit="patient", epsilon=BUDGET, delta=0.01, logical_batch=50, count_noise=0.0,
    nominal_units=50,
)  # fmt: skip


class Net(nn.Module):
    """Group norm and a trained head."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3 * SIDE * SIDE, 8).requires_grad_(False)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, images):
        return self.head(self.norm(self.frozen(images.flatten(1))))


def write_images(root: Path) -> Path:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["image,label,patient_id,split"]
    for i in range(30):
        pixels = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png", compress_level=9)
        lines.append(f"{i}.png,{CLASSES[i % 3]},P{i // 2},{'train' if i < 20 else 'val' if i < 26 else 'test'}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


class World:
    """A coordinator that keeps its files, and one site whose folder and data may be exchanged between runs."""

    def __init__(self, home: Path) -> None:
        self.home, self.data, self.state = home, write_images(home / "data"), home / "state"
        self.key = home / "keys" / "site.key"
        Roster().enrol("aurum", make_site_key(self.key), "Hospital").save(home / "roster.json")
        self.memory = LedgerMemory(home / "roster.json.ledgers.json", home / "roster.json")
        self.privacy, self.witness, self.budget = PRIVACY, True, BudgetRules()

    def run(self, name: str, *, rounds: int, steps: int = 1, forgetful: bool = False):
        """A whole run under that name; what the ledger shows afterwards is :meth:`spent`."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        config = SiteConfig(
            site=SiteGroup(name="aurum", folder=str(self.state)),
            dataset=DatasetConfig(name="table", root=str(self.data), classes=list(CLASSES), task="multiclass"),
            privacy=self.privacy,
        )
        enforced = rules(
            self.home / "audit",
            "aurum",
            runs=["*"],
            privacy="required",
            budget=self.budget,
            max_epochs=50.0,
            max_rounds=50,
        )
        enforced = replace(enforced, policy=type(enforced.policy)(enforced.policy.config, ["plain"]))
        witness = witness_of(self.key) if self.witness else None
        client_site.register_source(
            SiteSource(config), lambda _: self.state, enforced,
            lambda _: Protection(self.privacy, load_private(self.key), witness),
        )  # fmt: skip
        made = toy_spec(rounds=rounds, ema=0.0, steps=steps)
        spec = replace(made, arm="federated", run_id=name, model=replace(made.model, image_side=SIDE))
        hooks = Hooks(names_of_nodes=lambda: {1: "aurum"}, ledgers=None if forgetful else self.memory)
        try:
            return federate(
                InProcessGrid(app, [{"site": "aurum"}]), spec, CheckpointStore(self.home / "runs" / name), Events([]),
                stages=["plain"], sites=["aurum"], poll_s=0.001, join_s=2.0, hooks=hooks,
            )  # fmt: skip
        finally:
            client_site.register_source(SiteSource(config))

    def spent(self) -> float:
        return read_account(self.state).total()

    def refused(self, name: str, code: int, **settings) -> str:
        with pytest.raises(RoundError, match=failures.FAILURES[code][:40]) as caught:
            self.run(name, rounds=8, **settings)
        return str(caught.value)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "build_plain", lambda *_: Net())
    stages._KEPT.clear()
    yield World(tmp_path)
    stages._KEPT.clear()


def test_one_round_takes_a_third_of_what_is_left_and_an_honest_run_what_was_planned(world):
    world.run("hostile", rounds=1)
    first = world.spent()
    assert 0.3 * BUDGET < first <= BUDGET / 3
    world.run("hostile too", rounds=1)
    assert world.spent() - first <= (BUDGET - first) / 3
    shutil.rmtree(world.state)
    for path in (witness_of(world.key), world.memory.path):
        path.unlink()
    final = world.run("honest", rounds=16)
    assert len(final.history) == 16 and 0.99 * BUDGET <= world.spent() <= BUDGET


def test_a_round_that_costs_more_is_refused_before_anything_is_computed(world):
    """Noise of the site's own, too little for rounds of so many steps."""
    world.privacy = replace(PRIVACY, noise_multiplier=1.0, epsilon=None, budget=BUDGET)
    world.refused("pilot", failures.BUDGET_ROUND)
    assert read_account(world.state).entries() == []
    world.privacy = replace(world.privacy, noise_multiplier=4.0)
    assert len(world.run("explicit", rounds=1).history) == 1
    world.budget = BudgetRules(run_share=0.25, round_share=0.25)
    world.refused("long", failures.BUDGET_RUN)
    spent = world.spent()
    assert spent <= BUDGET * 2 / 3


def test_what_a_first_attempt_cost_is_planned_for(world):
    world.privacy = replace(PRIVACY, count_noise=20.0)
    world.run("first attempt", rounds=1)
    before = world.spent()
    assert before > 0
    final = world.run("second", rounds=12)
    assert len(final.history) == 12 and before < world.spent() <= BUDGET


def test_an_older_copy_of_the_whole_folder_is_refused_in_another_run_until_a_person_accepts(world, tmp_path):
    world.witness = False  # a machine restored as a whole: what lay beside the key went back too
    world.run("one", rounds=8)
    older, then = tmp_path / "older", world.spent()
    shutil.copytree(world.state, older)
    world.privacy = replace(PRIVACY, budget=3 * BUDGET)
    key = load_private(world.key)
    with client_site_ledger(world, key) as ledger:
        ledger.grant(3 * BUDGET, "the board agreed")
    shutil.rmtree(older)
    shutil.copytree(world.state, older)
    world.run("two", rounds=8)
    now = world.spent()
    assert now > then
    shutil.rmtree(world.state)
    shutil.copytree(older, world.state)
    world.refused("three", failures.LEDGER)
    assert world.spent() == pytest.approx(then) and kept_echo(world.state)
    counted = accept(world.state, key, reason="restored from a backup", spent=0.0)
    assert counted == pytest.approx(now)  # the person said nothing was spent; the coordinator had heard otherwise
    assert world.spent() >= now and not kept_echo(world.state)
    world.run("four", rounds=8)
    assert now < world.spent() <= 3 * BUDGET


def client_site_ledger(world, key):
    from fed_diffmic.privacy.ledger import Ledger

    return Ledger(world.state, world.privacy, key)


@pytest.mark.parametrize("who", ["coordinator", "file beside the key"])
def test_a_new_folder_under_the_same_key_is_refused(world, tmp_path, who):
    world.witness = who != "coordinator"
    world.run("one", rounds=8)
    spent = world.spent()
    world.state = tmp_path / "elsewhere"
    text = world.refused("two", failures.LEDGER, forgetful=who != "coordinator")
    assert "aurum" in text
    assert not (world.state / "privacy" / "ledger.jsonl").exists()
    witness = witness_of(world.key) if world.witness else None
    counted = accept(world.state, load_private(world.key), reason="a new disk", spent=0.0, witness=witness)
    assert counted == pytest.approx(spent)
    world.refused("three", failures.BUDGET)


def test_without_privacy_a_new_folder_is_refused_too(world, tmp_path):
    """Whoever turns privacy off does not escape the ledger by another folder."""
    world.run("one", rounds=8)
    world.state = tmp_path / "elsewhere"
    world.state.mkdir(mode=0o700)
    site = SimpleNamespace(
        folder=world.state, real=True, privacy=PrivacyConfig(), key=lambda: load_private(world.key), witness=None,
        budget=None, data=None,
    )  # fmt: skip
    from client.privacy import unprotected_round
    from fed_diffmic.errors import LedgerError

    with pytest.raises(LedgerError, match="missing or empty"):
        unprotected_round(site, replace(toy_spec(), model=ModelConfig()), "plain", 1, world.memory.echo("aurum"))


@pytest.mark.parametrize("order", ["at once", "one after the other"])
def test_images_that_are_encoded_anew_and_patients_that_are_renumbered_are_the_same_units(world, order):
    world.privacy = replace(PRIVACY, budget=10 * BUDGET)
    world.run("one", rounds=8)
    spent = world.spent()

    def encode():
        for file in world.data.glob("*.png"):
            before = file.read_bytes()
            Image.open(file).save(file, compress_level=1)
            assert file.read_bytes() != before

    def renumber():
        table = world.data / "manifest.csv"
        table.write_text(table.read_text().replace(",P", ",N"))

    encode()
    if order == "one after the other":
        world.run("two", rounds=8)
        spent = world.spent()
    renumber()
    world.run("three", rounds=8)
    account = read_account(world.state)
    last = account.units(account.entries()[-1].units)
    assert last.name not in {entry.units for entry in account.entries() if entry.run == "one"}
    assert account.spent(last) == pytest.approx(account.total()) and account.total() > spent
