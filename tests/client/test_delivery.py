"""The finished model at a site: verified against the pinned key and what the site was sent; kept, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import compare
from client.delivery import Delivery
from client.models import MODELS
from fed_diffmic.cli import main
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines, verify
from fed_diffmic.exchange.failures import FAILURES, SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest, write_new
from fed_diffmic.provision.keys import private_bytes, public_text
from fed_diffmic.release import edition
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.release.personal import part_of_site
from server import delivery
from server.checkpoints import CheckpointStore
from server.delivered import lacking
from tests import seals, site_rules, toy

NAMES = ("a", "b", "c")
WANT = {"a": "keep", "b": "keep", "c": "never"}


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


class Consortium:
    """Three sites of known keys in this process; ``c`` takes no models."""

    def __init__(self, folder: Path, strategy: str = "fedavg", **policy: Any) -> None:
        self.folder, self.events = folder, toy.Events([])
        self.rules = {}
        for name in NAMES:
            rules = seals.sealed_rules(
                folder / "logs", name, folder / "sites" / name, take_model=WANT[name], strategies=[strategy], **policy
            )
            config = SiteConfig(
                site=SiteGroup(name=name, folder=str(folder / "sites" / name), device=["cpu"]),
                policy=rules.policy.config,
            )
            key = seals.COORDINATOR.public_key()
            models = Delivery(config, rules.audit, seals.SITE_KEYS[name], key)
            self.rules[name] = replace(rules, models=models)
        self.grid, _ = site_rules.ruled_grid(folder, self.rules)
        self.spec = toy.toy_spec(strategy=StrategyConfig(name=strategy))
        self.hooks = seals.sealed_hooks(folder / "run", NAMES)

    def run(self, **settings: Any) -> FinalModel:
        given = {"stages": ["guidance"], "sites": NAMES, "poll_s": 0.001, "deliver_s": 20.0, "test_s": 20.0, **settings}
        store = CheckpointStore(self.folder / "run")
        return toy.federate(self.grid, self.spec, store, self.events, hooks=self.hooks, **given)

    def kept(self, name: str) -> Path:
        return self.folder / "sites" / name / MODELS / "toy"

    def lines(self, name: str) -> list[Any]:
        path = self.folder / "logs" / f"{name}.audit.jsonl"
        assert verify(path, seals.SITE_KEYS[name].public_key()) == []
        return read_lines(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    with pytest.MonkeyPatch.context() as patch:
        toy.install_toy_networks(patch.setattr)
        patch.setattr("os.fsync", lambda _: None)
        made = Consortium(tmp_path_factory.mktemp("made"))
        made.run()
    return made


def test_the_signed_model_lies_at_the_sites_that_take_it(made: Consortium) -> None:
    ours = load_final(made.folder / "run")
    for name in ("a", "b"):
        model = load_final(made.kept(name), public_key=seals.COORDINATOR.public_key())
        assert model.digests == ours.digests and model.calibration == ours.calibration
        assert [line.facts["of_run"] for line in made.lines(name) if line.kind == "model_kept"] == ["toy"]
        assert not list((made.folder / "sites" / name / MODELS).glob(".*")), "and nothing half-written beside it"
    assert not made.kept("c").exists()
    sites = delivery.delivered(made.folder / "run")
    refused = {"has": False, "why": delivery.NOT_WANTED}
    assert sites == {"a": {"has": True, "why": ""}, "b": {"has": True, "why": ""}, "c": refused}
    assert not made.events.of("site_failed"), "not to want it is no failure"
    (said,) = made.events.of("delivered")
    assert said["sites"] == ["a", "b"] and said["missing"] == {"c": refused["why"]}
    (line,) = [n for n in read_lines(made.folder / "run" / "audit.jsonl") if n.kind == "delivery"]
    assert line.facts["sites"] == ["a", "b"] and list(line.facts["without"]) == ["c"]


def test_the_weights_that_a_site_was_sent_last_do_not_travel_again(made: Consortium) -> None:
    sent = [n.facts for n in made.lines("a") if n.kind == "task" and n.facts["task"] == "deliver"]
    assert [facts["bytes"] for facts in sent] == [0]


def test_no_site_gets_another_sites_metrics(made: Consortium) -> None:
    """Everything that the run's own files say of single sites, but of the one that is sent it, is gone."""
    texts = [(made.kept("a") / "final" / name).read_text() for name in ("model.json", "provenance.json")]
    whole, own = load_final(made.folder / "run"), load_final(made.kept("a"))
    rows = list(zip(own.history, whole.history, strict=True))
    assert all(set(row["val"]) == {"a"} and row["val"]["a"] == before["val"]["a"] for row, before in rows)
    assert all(row["sites"]["b"] == {} and row["sites"]["a"] and row["mean"] == before["mean"] for row, before in rows)
    assert {stage: set(cells) for stage, cells in own.matrix.items()} == {"guidance": {"a"}}
    theirs = {repr(row[part]["b"]["loss"]) for row in whole.history for part in ("sites", "val")}
    theirs |= {row["payloads"]["train"]["b"] for row in whole.history}
    assert len(theirs) == 6 and not [number for number in theirs if any(number in text for text in texts)]


def test_of_two_sites_the_means_are_left_out_too() -> None:
    row = {"sites": {"a": {"loss": 1.0}, "b": {"loss": 2.0}}, "loss": 1.5, "mean": {"auroc_macro": 0.5}, "round": 1}
    assert edition._row(row, "a") == {"sites": {"a": {"loss": 1.0}, "b": {}}, "loss": None, "mean": {}, "round": 1}


def test_who_trained_and_told_nothing_is_in_no_mean() -> None:
    """Three trained, and two of them let a metric out: their mean less one's own is the other's."""
    loss = {"loss": 1.0}
    row = {"sites": {"a": loss, "b": loss, "c": {}}, "loss": 1.0, "round": 1}
    row |= {"val": {"a": {**loss, "accuracy": 0.5}, "b": {**loss, "accuracy": 0.7}, "c": loss}}
    own = edition._row({**row, "mean": {"loss": 1.0, "accuracy": 0.6}}, "a")
    assert own["loss"] is None and own["mean"] == {"loss": 1.0} and own["val"] == {"a": {"loss": 1.0, "accuracy": 0.5}}


def test_a_site_that_was_away_is_named_and_gets_it_when_the_run_is_resumed(tmp_path: Path) -> None:
    made = Consortium(tmp_path)
    made.rules["b"] = replace(made.rules["b"], gate=lambda kind: _paused() if kind == "deliver" else None)
    made.run(deliver_s=6.0)
    assert lacking(tmp_path / "run") == ["b", "c"] and not made.kept("b").exists()
    assert delivery.delivered(tmp_path / "run")["b"]["why"] == FAILURES[failures.PAUSED]
    made.rules["b"] = replace(made.rules["b"], gate=None)
    made.run()
    assert lacking(tmp_path / "run") == ["c"] and load_final(made.kept("b")).signed_by
    assert len(made.events.of("federation_done")) == 1, "nothing was computed again"


def _paused() -> None:
    raise SiteError(failures.PAUSED)


def test_what_of_the_model_is_the_sites_own_lies_beside_it_and_never_left(tmp_path: Path) -> None:
    made = Consortium(tmp_path, "fedbn")
    made.run()
    model = load_final(made.kept("a"))
    assert set(model.personal["guidance"]) == {"a"}
    own = part_of_site(made.kept("a"), model, "guidance", "a")
    assert own and not all(np.array_equal(value, model.states["guidance"][name]) for name, value in own.items())
    assert tensors_digest(own) == made.lines("a")[-2].facts["parts"]["guidance"]


# ---- what is refused --------------------------------------------------------------------------


class Asked:
    """The request as the coordinator makes it, for site ``a`` of a finished run that nobody has the model of yet."""

    def __init__(self, made: Consortium) -> None:
        self.made = made
        self.final = load_final(made.folder / "run", public_key=seals.COORDINATOR.public_key())
        self.request = self.of(made.hooks)

    def of(self, hooks: Any, final: FinalModel | None = None, site: str = "a") -> Payload:
        offers = delivery._Offers(self.made.folder / "run", final or self.final, self.made.hooks)
        offers._hooks = hooks
        about = {"spec": self.made.spec.to_json(), "run": "toy", "arm": "federated"}
        request = offers.request(replace(toy_member, name=site), about)
        return replace(request.payload, tensors=_whole(self.final))

    def take(self, request: Payload, **policy: Any) -> Payload:
        models = self.made.rules["a"].models
        assert isinstance(models, Delivery)
        config = replace(models.config, policy=replace(models.config.policy, **policy))
        return replace(models, config=config).take(self.made.spec, request)


toy_member = delivery.Site("a", 1)


def _whole(final: FinalModel) -> dict[str, np.ndarray]:
    return {f"{stage}.{name}": v for stage, state in final.states.items() for name, v in state.items()}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    with pytest.MonkeyPatch.context() as patch:
        toy.install_toy_networks(patch.setattr)
        patch.setattr("os.fsync", lambda _: None)
        made = Consortium(tmp_path_factory.mktemp("asked"))
        made.run(deliver_s=0.0)
        return Asked(made)


def header(request: Payload, **changes: Any) -> Payload:
    return replace(request, header={**request.header, **changes})


def zeros(request: Payload) -> Payload:
    return replace(request, tensors={name: value * 0 for name, value in request.tensors.items()})


def other_model(asked: Asked) -> Payload:
    """Signed by the coordinator with the run's rounds, and not what they made."""
    states = {stage: {name: v * 0 for name, v in state.items()} for stage, state in asked.final.states.items()}
    digests = {stage: tensors_digest(state) for stage, state in states.items()}
    made = asked.of(asked.made.hooks, replace(asked.final, states=states, digests=digests))
    return replace(made, tensors=_whole(replace(asked.final, states=states)))


def made_up(asked: Asked) -> Payload:
    """With a statement to match: everything that is signed fits, but not what the site was sent."""
    request = other_model(asked)
    value = json.loads(request.header["provenance"])["statement"]
    state = {name.partition(".")[2]: v for name, v in request.tensors.items()}
    bound = value["stages"]["guidance"]
    bound["candidate"] = tensors_digest({name: state[name] for name in bound["exchanged"]})
    bound["base"] = tensors_digest({name: v for name, v in state.items() if name not in bound["exchanged"]})
    bound["result"] = tensors_digest(state)
    value["rounds"] = [{**row, "candidate": bound["candidate"]} for row in value["rounds"]]
    return header(request, provenance=json.dumps(edition.signed(value, seals.COORDINATOR)))


def other_names(asked: Asked) -> Payload:
    """The run's own weights, whole and bound to its rounds, that call the classes by each other's names."""
    spec = replace(asked.final.spec, classes=tuple(reversed(asked.final.spec.classes)))
    return asked.of(asked.made.hooks, replace(asked.final, spec=spec))


def other_sets(asked: Asked) -> Payload:
    """The run's own model with prediction sets that promise another thing than those it was judged under."""
    sets = {stage: replace(sure, n=sure.n + 1) for stage, sure in asked.final.sureness.items()}
    assert sets
    return asked.of(asked.made.hooks, replace(asked.final, sureness=sets))


REFUSED: dict[str, tuple[Callable[[Asked], Payload], Mapping[str, Any], int]] = {
    "another key": (lambda a: a.of(replace(a.made.hooks, signer=seals.OTHER)), {}, failures.MODEL_SIGNATURE),
    "no statement": (lambda a: header(a.request, provenance="{}"), {}, failures.MODEL_SIGNATURE),
    "another run's": (
        lambda a: a.of(a.made.hooks, replace(a.final, spec=replace(a.final.spec, run_id="toy2"))),
        {},
        failures.MODEL_RUN,
    ),
    "another site's": (lambda a: header(a.of(a.made.hooks, site="b"), site="a"), {}, failures.MODEL_RUN),
    "changed texts": (
        lambda a: header(a.request, model_json=a.request.header["model_json"] + "\n"), {}, failures.MODEL_TORN
    ),
    "other weights": (lambda a: zeros(a.request), {}, failures.MODEL_TORN),
    "weights that lack one": (
        lambda a: replace(a.request, tensors=dict(list(a.request.tensors.items())[1:])), {}, failures.MODEL_TORN
    ),
    "too large": (lambda a: header(a.request, size=2**20 + 1), {"model_mib": 1.0}, failures.MODEL_SIZE),
    "larger than said": (lambda a: header(a.request, size=8), {}, failures.MODEL_SIZE),
    "other names of the classes": (other_names, {}, failures.MODEL_OTHER),
    "other prediction sets": (other_sets, {}, failures.MODEL_OTHER),
    "not what its rounds made": (other_model, {}, failures.MODEL_OTHER),
    "not what was sent last": (made_up, {}, failures.MODEL_OTHER),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_runs_own_model_is_refused_by_name(asked: Asked, case: str) -> None:
    make, policy, code = REFUSED[case]
    with pytest.raises(SiteError) as caught:
        asked.take(make(asked), **policy)
    assert caught.value.code == code
    assert not asked.made.kept("a").exists() and not list(asked.made.kept("a").parent.glob(".*"))


def test_weights_that_the_site_keeps_already_are_bound_too(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without weights says nothing of their size that could be believed."""
    monkeypatch.setattr(Delivery, "_sent_last", lambda *_: {"w": np.zeros(2**17 + 1)})
    with pytest.raises(SiteError) as caught:
        asked.take(replace(header(asked.request, size=0), tensors={}), model_mib=1.0)
    assert caught.value.code == failures.MODEL_SIZE and not asked.made.kept("a").exists()


def test_a_model_that_nobody_asked_for_is_refused_before_it_is_looked_at(asked: Asked, tmp_path: Path) -> None:
    """A site that gave the run nothing: it agreed to the study, perhaps, and was not there."""
    fresh = Consortium(tmp_path).rules["a"].models
    assert isinstance(fresh, Delivery)
    with pytest.raises(SiteError) as caught:
        fresh.take(asked.made.spec, asked.request)
    assert caught.value.code == failures.MODEL_UNASKED


def test_the_same_model_again_is_no_harm_and_another_one_of_the_run_is_refused(tmp_path: Path) -> None:
    asked = Asked(_finished(tmp_path))
    for _ in range(2):
        assert asked.take(asked.request).header["model"] == asked.request.header["model"]
    kinds = [line.kind for line in asked.made.lines("a")]
    assert kinds.count("model_kept") == 1
    with pytest.raises(SiteError) as caught:
        asked.take(asked.of(asked.made.hooks, replace(asked.final, bytes_sent=1)))
    assert caught.value.code == failures.MODEL_AGAIN
    assert load_final(asked.made.kept("a")).bytes_sent == asked.final.bytes_sent


def test_a_disk_that_is_full_leaves_no_half_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(_finished(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.delivery.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        asked.take(asked.request)
    assert not list(asked.made.kept("a").parent.iterdir())
    with pytest.raises(ModelFileError):
        load_final(asked.made.kept("a"))


def _finished(folder: Path) -> Consortium:
    made = Consortium(folder)
    made.run(deliver_s=0.0)
    return made


# ---- what the site does with it -----------------------------------------------------------------


@pytest.fixture
def at_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A site with a delivered model whose people use the commands; its folder and the settings they give."""
    made = Consortium(tmp_path)
    made.run()
    folder = tmp_path / "sites" / "a"
    shutil.copy(tmp_path / "logs" / "a.audit.jsonl", folder / "audit.jsonl")
    write_new(tmp_path / "a.key", private_bytes(seals.SITE_KEYS["a"]))
    (tmp_path / "coordinator.pub").write_text(public_text(seals.COORDINATOR.public_key()) + "\n")
    way = f"{{key: {tmp_path / 'a.key'}, public_key: {tmp_path / 'coordinator.pub'}}}"
    text = f"site: {{name: a, folder: {folder}, device: cpu}}\ndataset: {{root: {tmp_path}}}\ncoordinator: {way}\n"
    (tmp_path / "site.yaml").write_text(text)
    data = toy.toy_site("a", 3, count=48)
    monkeypatch.setattr(compare, "SiteSource", lambda _: lambda *_: data)
    return folder, ["--config", str(tmp_path / "site.yaml"), "--json"]


def test_a_site_lists_compares_and_uses_what_came(at_site: tuple[Path, list[str]], capsys: Any) -> None:
    folder, more = at_site
    assert main(["client", "model", "list", *more]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert (first["run"], first["in_use"], first["wrong"], first["classes"]) == (
        "toy",
        False,
        "",
        ["benign", "malignant", "other"],
    )
    assert main(["client", "model", "compare", "toy", *more]) == 0
    assert not (folder / "model").exists()
    assert main(["client", "model", "use", "toy", *more]) == 0
    capsys.readouterr()
    assert main(["client", "model", "list", *more]) == 0
    assert json.loads(capsys.readouterr().out)[0]["in_use"]
    assert main(["client", "model", "list", more[0], more[1]]) == 0
    assert "in use" in capsys.readouterr().out
    assert main(["client", "model", "use", "other", *more]) == 2
    assert "Models that were sent to this site: toy." in capsys.readouterr().err


def test_a_delivered_model_that_was_exchanged_at_the_site_is_refused(
    at_site: tuple[Path, list[str]], capsys: Any
) -> None:
    """By another one that the coordinator signed: only the site's own log knows which one came."""
    folder, more = at_site
    run = folder.parents[1] / "run"
    shutil.rmtree(folder / MODELS / "toy" / "final")
    shutil.copytree(run / "final", folder / MODELS / "toy" / "final")  # the run's own, not the edition that came
    assert main(["client", "model", "use", "toy", *more]) == 4
    assert "is not the one that was sent to this site" in capsys.readouterr().err
    assert main(["client", "model", "list", *more]) == 0
    assert "not the one that was sent" in json.loads(capsys.readouterr().out)[0]["wrong"]


def test_the_old_way_to_say_it_names_the_new_one(at_site: tuple[Path, list[str]], capsys: Any) -> None:
    assert main(["client", "compare", *at_site[1]]) == 2
    assert "fed-diffmic client model compare" in capsys.readouterr().err
