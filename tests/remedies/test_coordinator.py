"""A coordinator's run, its study, its strategy and its checkpoints: as the message says, it starts or goes on."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.serverapp.strategy
import pytest

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.compose import compose, compose_server
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.spec import make_spec
from fed_diffmic.files import read_json, write_json
from fed_diffmic.release.final import load_final, write_final
from fed_diffmic.reporting.events import EventLog
from fed_diffmic.training.stages import build_module, exchanged
from fed_diffmic.transport.control import LinkLostError
from server import study as studies_of
from server import supervisor
from server.checkpoints import CheckpointStore
from server.cli import main
from server.client_level import ClientLevel
from server.opening import check_same_settings
from server.stage import exchanged_kinds
from server.start import check_start as check_coordinator
from server.strategy import load_strategy_class, saved_state, server_algorithm
from tests import studies, toy
from tests.inference.tiny import tiny_model, tiny_spec
from tests.remedies.places import remedy_in, tries
from tests.remedies.test_starts import SAFE
from tests.server.test_checkpoints import same, state
from tests.server.test_client_level import NOISY
from tests.server.test_client_level import updates as noisy_updates
from tests.server.test_strategy import KINDS, config, updates
from tests.server.test_strategy import start as weights

STORE, STRATEGY = "server/checkpoints.py::CheckpointStore.", "server/strategy.py::"
STUDY = "server/study.py::"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@tries(f"{STORE}load", f"{STORE}_get", f"{STORE}_read | {{pointer}} wa", f"{STORE}_read | {{pointer}} la")
def test_checkpoints_of_which_none_is_whole() -> None:
    def saved(name: str) -> CheckpointStore:
        store = CheckpointStore(Path(name))
        with store.locked():
            for index in (1, 2):
                store.save(state(index))
        return store

    def torn(store: CheckpointStore) -> None:
        for path in store.checkpoints.rglob("*.safetensors"):
            path.write_bytes(next(p for p in store.checkpoints.rglob("*.safetensors") if p != path).read_bytes())

    def changed(**values: object) -> Any:
        def change(store: CheckpointStore) -> None:
            for path in (store._pointer, store._previous):
                write_json(path, {**read_json(path), **values})

        return change

    for number, damage in enumerate((torn, changed(format=99), changed(progress=3))):
        store = saved(f"run-{number}")
        damage(store)
        [key] = remedy_in(
            lambda number=number: CheckpointStore(Path(f"run-{number}")).load(), r"again in another (run\.dir)"
        ).groups()
        assert compose(None, [f"{key}=another"])
        again = CheckpointStore(Path(f"another-{number}"))
        assert again.load() is None
        assert same(saved(f"another-{number}").load(), state(2))


@tries("server/opening.py::check_same_settings | {*renamed(st", "server/opening.py::check_same_settings | Resume with")
def test_a_run_is_resumed_as_it_was_started() -> None:
    stored = {"spec": {"run_id": "pilot", "seed": 3}, "stages": ["guidance"]}
    renamed = {**stored, "spec": {"run_id": "moved", "seed": 3}}
    [name] = remedy_in(lambda: check_same_settings(stored, renamed), r"Name the folder (\w+) again").groups()
    check_same_settings(stored, {**stored, "spec": {"run_id": name, "seed": 3}})
    other = {**stored, "spec": {"run_id": "pilot", "seed": 4}}
    remedy_in(lambda: check_same_settings(stored, other), r"Resume with the run's own config\.yaml, or start a new run")
    check_same_settings(stored, dict(stored))


@tries("server/stage.py::exchanged_kinds", "server/client_level.py::ClientLevel.protect")
def test_what_sites_share(monkeypatch) -> None:
    spec = toy.toy_spec()
    alone: Any = SimpleNamespace(kept=lambda network, names: set(names))
    with monkeypatch.context() as small:
        toy.install_toy_networks(small.setattr)
        remedy_in(
            lambda: exchanged_kinds(spec, "guidance", alone), "a strategy that shares some of what stage guidance"
        )
        assert exchanged_kinds(spec, "guidance", build_algorithm(StrategyConfig(name="fedavg")))
    noise, (current, made) = ClientLevel(NOISY, Path()), noisy_updates()

    def protect(kinds: dict[str, str]) -> None:
        noise.protect(current, kinds, made, stage="guidance", round_index=1, rounds_before=0)

    said = remedy_in(
        lambda: protect({"a": "parameter", "b": "buffer"}),
        r"(norm)=batch .*: (\w+), with model\.(encoder_norm)=(\w+)",
    )
    settings = ["model=tiny", f"model.{said[1]}={said[2]}", f"model.{said[3]}={said[4]}"]
    made_of = make_spec(
        compose(None, settings), classes=("x", "y"), task="multiclass", run_id="r", arm="federated", device="cpu"
    )
    kinds = set(exchanged(build_module(made_of, "guidance")).values())
    assert kinds == {"parameter"}
    protect(dict.fromkeys("ab", *kinds))


class Odd(flwr.serverapp.strategy.FedAvg):
    """Keeps what no array holds, if it is told to."""

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        self.seen: Any = object() if keeps else 0.0


@tries(
    f"{STRATEGY}FlowerAlgorithm._fresh",
    f"{STRATEGY}FlowerAlgorithm._configure",
    f"{STRATEGY}load_strategy_class",
    f"{STRATEGY}saved_state",
)
def test_strategies_of_flower() -> None:
    def round_of(found: StrategyConfig) -> None:
        algorithm = server_algorithm(found)
        algorithm.aggregate(weights(), KINDS, updates(1), algorithm.initial_state(weights(), KINDS), 1)

    remedy_in(
        lambda: round_of(config("FedAdam", etta=0.1)),
        r"arguments of flwr\S+FedAdam .*argument 'etta'",
    )
    round_of(config("FedAdam", eta=0.1))
    [named] = remedy_in(lambda: round_of(config("FedProx", proximal_mu=0.1)), r"use strategy=(\w+)").groups()
    round_of(StrategyConfig(name=named))
    for path in (None, "flwr.serverapp.strategy.None", "pathlib.Path"):
        [base] = remedy_in(lambda path=path: load_strategy_class(path), r"a class derived from (\S+)").groups()
        assert issubclass(load_strategy_class("flwr.serverapp.strategy.FedAvg"), load_strategy_class(base))
    remedy_in(lambda: saved_state(Odd(keeps=True), Odd()), r"whose state can be saved; its attribute seen \(object\)")
    saved_state(Odd(), Odd())


@tries(
    "server/cli.py::_study",
    f"{STUDY}study_of_config",
    f"{STUDY}check_study | {{_ANOTHER}}",
    f"{STUDY}check_study | Leave run.te",
)
def test_the_study_of_a_run(capsys) -> None:
    Path("server.yaml").write_text("model: tiny\n")

    def says(*settings: str) -> str:
        assert main(["study", "--config", "server.yaml", *settings]) == 2
        return capsys.readouterr().err

    asked = ["security.insecure=true", "consortium.sites=[a]", "model.image_side=32"]
    [key] = re.search(r"Add (run\.dir)=RUN", says(*asked)).groups()
    named = re.search(
        r"(consortium\.classes)=null.*the classes, and (consortium\.task),", says(*asked, f"{key}=run")
    ).groups()
    whole = [f"{key}=run", f"{named[0]}=[x,y]", f"{named[1]}=multiclass"]
    assert main(["study", "--config", "server.yaml", *asked, *whole]) == 0
    spec = toy.toy_spec()
    study = studies.study_of(spec, test=False)

    def check(now: Any = spec, test: bool = False) -> None:
        studies_of.check_study(study, now, stages=["guidance"], sites=["a"], test=test, path=Path("study.json"))

    [key, off] = remedy_in(lambda: check(test=True), r"Leave (run\.test_s) at (\d+)\. Start another run").groups()
    check(test=compose_server(None, [*SAFE, f"{key}={off}"]).run.test_s > 0)
    other = replace(spec, seed=9)
    remedy_in(lambda: check(other), r"Start another run, in another run\.dir")
    studies_of.study_of_run(Path("another"), other, stages=["guidance"], sites=["a"], test=False)


@tries("server/supervisor.py::_Coordinator._train_until_done")
def test_a_superlink_that_is_lost_again_and_again(monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_PAUSE_S", 0.0)
    config = compose_server(None, [*SAFE, "model=tiny", "run.dir=run", "run.restarts=1"])
    coordinator, lost = supervisor._Coordinator(config, Path("run").absolute()), [True, True]
    monkeypatch.setattr(coordinator, "_may_deliver", lambda: False)

    def train(*_: object) -> None:
        if lost and lost.pop():
            raise LinkLostError("gone")
        write_final(Path("run"), tiny_model(tiny_spec()))

    monkeypatch.setattr(coordinator, "_train_once", train)
    Path("run").mkdir()
    with closing(EventLog(Path("run/events.jsonl"))) as events:
        said = remedy_in(
            lambda: coordinator._train_until_done(events, resume=False),
            r"link/superlink\.log .*with (--resume)",
        )
        check_coordinator(config, resume=said[1] == "--resume")
        coordinator._train_until_done(events, resume=True)
    assert load_final("run").digests
