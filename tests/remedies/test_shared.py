"""Sums that sites make together: shared noise, masked updates, and the peers that a site accepts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fed_diffmic.algorithms.base import build_algorithm
from fed_diffmic.config.compose import compose, compose_server
from fed_diffmic.config.network_checks import check_server_start
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.dp_sgd import check_delta
from fed_diffmic.provision.keys import fingerprint, load_public, make_site_key, public_text
from fed_diffmic.provision.peers import FILE, accept_peer, remove_peer
from server.noisy import summed
from simulations.arms import Arm
from simulations.shared_noise import with_share
from tests.commands.provisioning import Consortium
from tests.remedies.places import remedy_in, tries
from tests.remedies.test_starts import SAFE

SHARED = [
    *("model=tiny", "model.norm=group", "model.encoder_norm=group", "stages=linear", "stages.plain.steps=1"),
    *("strategy=fedsgd", "privacy=dp_sgd", "privacy.stages=[plain]", "privacy.mechanism=distributed"),
    *("privacy.honest_sites=2", "privacy.epsilon=3", "privacy.budget_alone=30"),
]
PEERS, COMMANDS = "fed_diffmic/provision/peers.py::", "fed_diffmic/commands/provision_peers.py::"


@tries(
    "simulations/shared_noise.py::with_share | a number, or",
    "simulations/shared_noise.py::with_share | more than",
    "simulations/shared_noise.py::_check_honest | at most",
    "simulations/shared_noise.py::_check_honest | Masks",
)
def test_how_much_noise_a_simulation_shares() -> None:
    def share(*more: str, epsilon: bool = True, sites: int = 4) -> None:
        config = compose(None, [*SHARED, *more])
        if not epsilon:  # as a configuration that is made without a check
            config = replace(config, privacy=replace(config.privacy, epsilon=None))
        with_share(config, config.strategy, Arm("federated", ("plain",), tuple("abcdefghij"[:sites])))

    [key] = remedy_in(lambda: share(epsilon=False), r"or (privacy\.\w+) to compute").groups()
    share(f"{key}=3")
    share("strategy.noise_share=0.7", epsilon=False)
    remedy_in(lambda: share("privacy.count_noise=0.5", "privacy.epsilon=0.1"), "more than the class counts alone cost")
    share("privacy.count_noise=0.5", "privacy.epsilon=60")
    [most] = remedy_in(lambda: share("run.quorum=0.5"), r"at most (\d+),").groups()
    share("run.quorum=0.5", f"privacy.honest_sites={most}")
    masked = ("strategy.secure_aggregation=masked", "strategy.noise_share=0.7")
    none, fewest = remedy_in(lambda: share(*masked, sites=10), r"allowed: (0), or at least (\d+) where").groups()
    for honest in (none, fewest):
        share(*masked, f"privacy.honest_sites={honest}", sites=10)


@tries(
    "fed_diffmic/algorithms/fedsgd.py::FedSgd.share",
    "fed_diffmic/privacy/distributed/form.py::NoisyForm.__post_init__",
    "fed_diffmic/privacy/distributed/form.py::NoisyForm.room",
    "fed_diffmic/privacy/dp_sgd.py::check_delta",
    "server/noisy.py::summed",
)
def test_how_much_noise_a_site_adds() -> None:
    [key] = remedy_in(lambda: build_algorithm(StrategyConfig(name="fedsgd")).share, r"strategy\.(\w+)=null").groups()
    assert build_algorithm(StrategyConfig(name="fedsgd", options={key: 0.5})).share == 0.5
    for numbers in (1, 4, 7, 100, 3001, 40_000):

        def form(share: float, bits: int = 32, numbers: int = numbers) -> NoisyForm:
            return NoisyForm({"w": (numbers,)}, 1.0, share, 0, bits)

        bounds = remedy_in(lambda: form(1e-9), r"which is (\S+) to (\S+)$").groups()
        for bound in bounds:  # as they are written, to their last digit
            form(float(bound))
    narrow, wide = form(1.0), form(1.0, bits=64)
    large = np.full(narrow.width, 2**30)
    remedy_in(lambda: summed({name: narrow.words(large) for name in "ab"}, narrow), r"Set strategy\.wide_words=true")
    summed({name: wide.words(large) for name in "ab"}, wide)
    tight = form(1.0, numbers=2**20)
    [value] = remedy_in(lambda: tight.room(2000), r"strategy\.wide_words=false .* allowed: (true) where").groups()
    assert form(1.0, bits=64 if value == "true" else 32, numbers=2**20).room(2000) > tight.sensitivity
    [units] = remedy_in(lambda: check_delta(PrivacyConfig(name="dp_sgd", delta=0.1), 40), r"1/(\d+)").groups()
    check_delta(PrivacyConfig(name="dp_sgd", delta=1 / int(units)), 40)


@tries("fed_diffmic/config/network_checks.py::check_server_start | Sites agree")
def test_a_trial_without_keys_masks_nothing() -> None:
    def start(*more: str) -> None:
        check_server_start(compose_server(None, [*SAFE, *more]))

    [value] = remedy_in(lambda: start("strategy.secure_aggregation=masked"), r"allowed: (\w+) with").groups()
    start(f"strategy.secure_aggregation={value}")


@tries(f"{PEERS}_check_distinct | Each site", f"{PEERS}_check_distinct | One key")
def test_peers_of_one_name_or_one_key() -> None:
    keys = {}
    for name in ("one", "two"):
        make_site_key(Path(f"{name}.key"))
        keys[name] = load_public(f"{name}.key.pub")
    texts = {name: public_text(key) for name, key in keys.items()}
    kit = SimpleNamespace(peers={"north": texts["one"], "North": texts["two"], "south": texts["one"]})
    kept = Path("site")

    def accept(name: str, digits: str) -> None:
        accept_peer(kept, kit, name, digits, before=lambda peer: None)

    one, two = (fingerprint(keys[name]) for name in ("one", "two"))
    accept("north", one)
    remedy_in(lambda: accept("North", two), "take the other one out with `fed-diffmic provision peers remove SITE")
    remedy_in(lambda: accept("south", one), "`fed-diffmic provision peers remove SITE .*` takes one out")
    remove_peer(kept, "north")
    accept("North", two)
    accept("south", one)


@tries(
    f"{COMMANDS}_peers | list",
    f"{COMMANDS}_accept",
    f"{PEERS}proposal",
    f"{PEERS}accept_peer",
    f"{PEERS}remove_peer",
    f"{PEERS}load_peers",
    f"{PEERS}Peer.__post_init__",
    "fed_diffmic/provision/site.py::opened_kit",
)
def test_a_site_accepts_its_peers(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    people = Consortium(capsys)
    people.runs("ca", "ca", "--name", "Consortium")
    people.runs("server", "coordinator", "--ca", "ca", "--name", "fl.example.org")

    def joins(name: str) -> str:
        said = people.digits(people.runs("site-key", f"{name}/site.key"))
        people.enrol(name, said)
        return said

    b = joins("b")
    Path("trial.yaml").write_text("site:\n  name: a\n  folder: trial\n")
    own, trial = ("--config", "a/site.yaml"), ("--config", "trial.yaml")
    accept = ("peers", "accept")
    said = people.fails(*accept, "b", "--fingerprint", b, *trial)
    assert "`fed-diffmic provision open-kit`: it names the other sites" in said
    config = people.site("a")
    [words] = re.search(r"`fed-diffmic provision (peers list) --config FILE`", people.fails(*accept, *own)).groups()
    [name] = re.findall(r"^(\w+)  not accepted", people.runs(*words.split(), *own), re.MULTILINE)
    said = people.fails(*accept, name, "--fingerprint", " ".join(["12345"] * 6), *own)
    [again] = re.search(r"`fed-diffmic provision (fingerprint) FILE.pub`", said).groups()
    read = people.digits(people.runs(again, f"{name}/site.key.pub"))
    people.runs(*accept, name, "--fingerprint", read, *own)
    [known] = re.search(r"accepted: (\w+)", people.fails("peers", "remove", "bb", *own)).groups()
    people.runs("peers", "remove", known, *own)
    c = joins("c")
    said = people.fails(*accept, "c", "--fingerprint", c, *own)
    [update] = re.search(r"`fed-diffmic provision open-kit (--update)`", said).groups()
    people.kit("a", "newer.kit")
    newer = ("open-kit", "newer.kit", *people.opening("a"), update)
    people.runs(*newer)
    people.runs(*accept, "c", "--fingerprint", c, *own)
    kept = Path(str(config.site.folder)) / FILE
    text = kept.read_text()
    kept.write_text(re.sub(r'("accepted": )"[^"]*"', r'\1""', text))
    assert "or remove it and accept each peer again by its digits" in people.fails("peers", "list", *own)
    kept.unlink()
    people.runs(*accept, "c", "--fingerprint", c, *own)
    Path(str(config.coordinator.public_key)).write_text(Path("b/site.key.pub").read_text())
    assert "open-kit --update" in people.fails("peers", "list", *own)
    people.runs(*newer)
    assert "1 accepted" in people.runs("peers", "list", *own)
