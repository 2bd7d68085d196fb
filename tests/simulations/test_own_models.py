"""What a hospital makes for itself of a model that came: a simulation's own numbers, judged, used, and never sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import compare, source
from client.kept import IN_USE, load_kept
from client.start import site_audit
from fed_diffmic.cli import main
from fed_diffmic.config.compose import compose_site
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import MachineError, ModelFileError, UsageError
from fed_diffmic.exchange.audit_lines import read_lines
from fed_diffmic.files import write_new
from fed_diffmic.inference.finished import final_predictor, predictor_of
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.provision.keys import private_bytes, public_text
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.transport.processes import lock_file
from server.checkpoints import CheckpointStore
from simulations.alone import alone_spec, starts_elsewhere
from simulations.arms import Arm, TrainedArm
from simulations.own_models import Came, load_own, make_own, own_folder, own_kinds
from simulations.personal import personal_methods
from simulations.run import strategy_of
from tests import seals, toy

KINDS = ("alone", "finetune", "head", "mixture")
SPEC = toy.toy_spec(lr=0.1, rounds=3, ema=0.0)


class Hospital:
    """A site with a finished run beside it, whose people use the commands."""

    def __init__(self, folder: Path, **privacy: Any) -> None:
        self.folder, self.site, self.run = folder, folder / "sites" / "a", folder / "run"
        self.data = toy.toy_site("a", 1, count=192)
        self.final = federated(folder, "run", self.data)
        write_new(folder / "a.key", private_bytes(seals.SITE_KEYS["a"]))
        (folder / "a.key.pub").write_text(public_text(seals.SITE_KEYS["a"].public_key()) + "\n")
        (folder / "site.yaml").write_text(
            f"site: {{name: a, folder: {self.site}, device: cpu}}\ndataset: {{root: {folder}}}\n"
            f"coordinator: {{key: {folder / 'a.key'}}}\n"
        )
        self.config = compose_site(folder / "site.yaml", [])

    def model(self, *words: str) -> int:
        return main(["client", "model", *words, "--config", str(self.folder / "site.yaml")])


def federated(folder: Path, name: str, data: SiteData) -> FinalModel:
    others = toy.toy_site("b", 2, count=576)  # where the same pictures are called otherwise
    train, val = (replace(part, labels=(part.labels + 1) % 3) for part in (others.train, others.val))
    others = replace(others, train=train, val=val)
    grid, _ = toy.toy_grid(folder, ("a", "b"), toy.ToySource({"a": data, "b": others}))
    return toy.short_run(folder / name, grid, SPEC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """Every kind of model, made by the command."""
    with pytest.MonkeyPatch.context() as patch:
        toy.install_toy_networks(patch.setattr)
        patch.setattr("os.fsync", lambda _: None)
        hospital = Hospital(tmp_path_factory.mktemp("own"))
        for module in (source, compare):
            patch.setattr(module, "SiteSource", lambda _: lambda *_: hospital.data)
        assert hospital.model("own", str(hospital.run), *KINDS) == 0
        yield hospital


@pytest.fixture
def copied(made: Hospital, tmp_path: Path) -> Hospital:
    """As ``made``, with a site's folder of its own."""
    hospital = object.__new__(Hospital)
    vars(hospital).update(vars(made))
    hospital.folder, hospital.site = tmp_path, tmp_path / "site"
    shutil.copytree(made.site, hospital.site)
    text = (made.folder / "site.yaml").read_text().replace(str(made.site), str(hospital.site))
    (tmp_path / "site.yaml").write_text(text)
    hospital.config = compose_site(tmp_path / "site.yaml", [])
    return hospital


def test_a_site_makes_what_a_simulation_makes(made: Hospital) -> None:
    """Bit for bit: the same seeds, images and first weights."""
    final, data, folder = made.final, made.data, own_folder(made.config, "toy")
    grid, _ = toy.toy_grid(made.folder / "alone", ("a",), toy.ToySource({"a": data}))
    arm_alone = Arm("local/a", ("guidance",), ("a",))
    spec = replace(SPEC, arm=arm_alone.name, strategy=strategy_of(SPEC.strategy, arm_alone))
    store = CheckpointStore(made.folder / "alone" / "run")
    local = toy.federate(grid, spec, store, toy.Events([]), stages=["guidance"], sites=["a"], poll_s=0.001, join_s=5.0)
    methods: Any = {
        "federated": {"a": predictor_of(final, made.run)},
        "local": {"a": predictor_of(local, made.folder / "alone" / "run")},
    }
    arm = TrainedArm(final, made.run, 1.0)
    told: list[dict[str, Any]] = []
    kinds = ["finetune", "head", "mixture"]
    expected, facts = personal_methods(kinds, {"a": data}, arm, methods, "cpu", lambda **said: told.append(said))
    assert [(said.pop("how"), said.pop("site")) for said in told] == [(kind, "a") for kind in kinds]
    assert [list(said.items()) for said in told] == [
        [("share" if kind == "mixture" else "passes", facts[kind]["a"])] for kind in kinds
    ]
    ours = {kind: final_predictor(folder / kind) for kind in KINDS}
    assert ours["alone"].digest == methods["local"]["a"].digest != methods["federated"]["a"].digest
    for kind, judges in expected.items():
        judge = judges["a"]
        assert isinstance(judge, Predictor) and ours[kind].digest == judge.digest
        np.testing.assert_array_equal(
            ours[kind].predict(data.test).probabilities, judge.predict(data.test).probabilities
        )
        np.testing.assert_array_equal(ours[kind].opinion(data.test).decided, judge.predict(data.test).decided)
    assert facts["finetune"]["a"] > 0, "else every weight would be the global model's"
    share = load_final(folder / "mixture").made_at
    assert share is not None and share.share == facts["mixture"]["a"]


def test_no_test_image_is_looked_at(made: Hospital, tmp_path: Path) -> None:
    class Unread:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("a test image was read")

    config = replace(made.config, site=replace(made.config.site, folder=str(tmp_path)))
    unread: Any = replace(made.data, test=Unread())
    kept = load_own(made.config, own_folder(made.config, "toy") / "alone")
    found = make_own(config, Came(made.final, "0" * 64), unread, KINDS, "cpu", lambda _: kept)
    assert [one.kind for one in found] == list(KINDS)
    for kind in KINDS:
        ours, theirs = (final_predictor(own_folder(c, "toy") / kind).digest for c in (config, made.config))
        assert ours == theirs


def test_what_a_site_made_for_itself_changes_nothing_that_it_answers(made: Hospital) -> None:
    """The worker's rooms cannot import what makes these models; and a run of a site that has them is the same run."""
    assert own_kinds(made.config, "toy") == list(KINDS)
    again = federated(made.folder, "again", made.data)
    assert again.digests == made.final.digests


def test_the_best_by_the_interval_is_taken_and_predicts_like_any_other(copied: Hospital, capsys: Any) -> None:
    assert copied.model("compare", str(copied.run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["own"]) == set(KINDS) and len(found["steps"]) == len(KINDS)
    shown = [step for step in found["steps"] if step["low"] is not None and step["low"] > 0]
    assert shown and found["take"] == shown[-1]["candidate"], "the site's own images are easy for its own models"
    assert f"{shown[-1]['candidate'][1:]} is shown to be better than" in found["why"]
    assert copied.model("use", str(copied.run)) == 0
    said = capsys.readouterr()
    assert "models that this site made" in said.out and f"It is {found['take']}" in said.err
    assert f"--key {copied.config.coordinator.key}.pub" in said.err
    kind = found["take"].split("(")[1].rstrip(")")
    folder = own_folder(copied.config, "toy") / kind
    used = final_predictor(copied.site / IN_USE, "a", seals.SITE_KEYS["a"].public_key())
    assert used.digest == final_predictor(folder).digest
    with pytest.raises(UsageError, match="--site b"):
        final_predictor(copied.site / IN_USE, "b")
    with pytest.raises(ModelFileError, match="a site made this model for itself") as refused:
        final_predictor(copied.site / IN_USE, key=seals.COORDINATOR.public_key())
    assert "that site's public key" in refused.value.remedy
    assert copied.model("compare", str(copied.run), "--json") == 0  # against itself, among others
    assert json.loads(capsys.readouterr().out)["other"]["auroc_macro"] == found["own"][kind]["auroc_macro"]
    assert copied.model("list", "--json") == 0


def test_a_person_may_take_another_one(copied: Hospital, capsys: Any) -> None:
    for taken in ("mixture", "global"):
        assert copied.model("use", str(copied.run), "--take", taken) == 0
        made_at = load_final(copied.site / IN_USE).made_at
        assert (None if made_at is None else made_at.kind) == (None if taken == "global" else taken)
    mixed = final_predictor(copied.site / "model.before")
    assert mixed.digest == final_predictor(own_folder(copied.config, "toy") / "mixture").digest
    shutil.rmtree(own_folder(copied.config, "toy") / "head")
    capsys.readouterr()
    assert copied.model("use", str(copied.run), "--take", "head") == 2
    assert "fed-diffmic client model own toy head" in capsys.readouterr().err
    assert copied.model("own", str(copied.run), "heads") == 2
    assert "alone, finetune, head, mixture" in capsys.readouterr().err


def put_back(model: Path) -> None:
    """A roll-back by hand."""
    shutil.rmtree(model)
    model.with_name("model.before").rename(model)


def cut_off(model: Path) -> None:
    """A power cut: the log names the model that was about to be the one in use."""
    site_audit(compose_site(model.parents[1] / "site.yaml", [])).append(
        "taken_over", of_run="toy", model="0" * 64, key="", parts={}
    )


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "put back by hand": put_back,
    "a power cut": cut_off,
    "torn": lambda model: (model / "final" / "model.json").write_text('{"format": 1'),
    "of another form": lambda model: (model / "final" / "model.json").write_text("[]"),
    "removed": lambda model: (model / "final" / "model.json").unlink(),
    "torn weights": lambda model: (model / "final" / "guidance.safetensors").write_bytes(b"torn"),
    "no key": lambda model: (model / "coordinator.pub").write_text("no key"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_model_in_use_that_does_not_hold_is_replaced_as_the_message_says(
    copied: Hospital, capsys: Any, damage: str
) -> None:
    for kind in ("head", "finetune"):
        assert copied.model("use", str(copied.run), "--take", kind) == 0
    before, model = copied.site / "model.before", copied.site / IN_USE
    DAMAGE[damage](model)
    capsys.readouterr()
    assert copied.model("compare", str(copied.run)) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "the model in use cannot be used: " in said and "`fed-diffmic client model use DIR --config site.yaml`" in said
    )
    ways = {"torn": [], "removed": ["--even-if-worse"], "put back by hand": ["--take", "global"]}
    way = ways.get(damage, ["--take", "finetune"])  # which is in use, as far as it can be read
    assert copied.model("use", str(copied.run), *way) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "NOTE: the model in use cannot be used, so it is not compared: " in err
    assert f"What lay in its place is kept in {copied.site / 'model.refused'}." in err
    assert load_kept(copied.config, model) is not None
    assert (copied.site / "model.refused").is_dir()
    facts = [line.facts for line in read_lines(copied.site / "audit.jsonl") if line.kind == "taken_over"]
    lay = copied.site / "model.refused" / "final" / "model.json"
    assert [each.get("refused") for each in facts[:2]] == [None, None]
    assert facts[-1]["refused"] == (sha256(lay.read_bytes()).hexdigest() if lay.exists() else "")
    if damage == "put back by hand":
        assert not before.exists()
    else:
        about = load_final(before).made_at
        assert about is not None and about.kind == "head", "what does not hold is not the one before"
    assert copied.model("compare", str(copied.run)) == 0


def test_a_log_that_does_not_hold_is_no_models_to_mend(copied: Hospital, capsys: Any) -> None:
    assert copied.model("use", str(copied.run), "--take", "head") == 0
    shutil.rmtree(own_folder(copied.config, "toy"))  # which the log is asked about too
    site_audit(copied.config).append("another")  # a log whose last line is broken takes no other anyway
    log = copied.site / "audit.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    [taken] = [number for number, line in enumerate(lines) if '"taken_over"' in line]
    assert taken < len(lines) - 1 and "toy" in lines[taken]
    lines[taken] = lines[taken].replace("toy", "yot")
    log.write_text("".join(lines))
    capsys.readouterr()
    assert copied.model("use", str(copied.run)) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "does not hold where it says which model was taken over" in said and "audit verify" in said
    about = load_final(copied.site / IN_USE).made_at
    assert about is not None and about.kind == "head" and not (copied.site / "model.refused").exists()


def test_a_model_that_is_in_use_already_leaves_the_one_before(copied: Hospital, capsys: Any) -> None:
    for kind in ("finetune", "global"):
        assert copied.model("use", str(copied.run), "--take", kind) == 0
    log = (copied.site / "audit.jsonl").read_text()
    capsys.readouterr()
    assert copied.model("use", str(copied.run), "--take", "global") == 0
    assert "This model is the one in use already, and stays so." in capsys.readouterr().err
    about = load_final(copied.site / "model.before").made_at
    assert about is not None and about.kind == "finetune" and load_final(copied.site / IN_USE).made_at is None
    assert (copied.site / "audit.jsonl").read_text().count('"taken_over"') == log.count('"taken_over"')


def test_weights_that_are_not_there_are_named_as_they_were_given(copied: Hospital, capsys: Any) -> None:
    for option in ("--weights", "--prior-weights"):
        assert copied.model("own", str(copied.run), "alone", option, "nofile") == 2
        said = capsys.readouterr().err
        assert f"{option} nofile: there is no such file" in said and "model.weights" not in said


@pytest.mark.parametrize("whose", ["a", "b"])
def test_a_copy_of_a_model_of_its_own_is_known_by_its_run(copied: Hospital, capsys: Any, whose: str) -> None:
    """The coordinator, whose key is pinned, signed none; and the command has no option for another key."""
    (copied.folder / "coordinator.pub").write_text(public_text(seals.COORDINATOR.public_key()) + "\n")
    copy = copied.folder / "copy"
    shutil.copytree(own_folder(copied.config, "toy") / "finetune", copy)
    text = (copy / "final" / "model.json").read_text()
    (copy / "final" / "model.json").write_text(text.replace('"site": "a"', f'"site": "{whose}"'))
    key = f"coordinator.public_key={copied.folder / 'coordinator.pub'}"
    assert copied.model("use", str(copy), key) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "public key" not in said.partition("What to do")[2]
    names = "client model use toy --take finetune" if whose == "a" else "client model list"
    assert f"`fed-diffmic {names} --config site.yaml`" in said


@pytest.mark.parametrize("change", ["another's", "another of its own", "an older one", "the second of a mixture"])
def test_a_model_that_was_exchanged_is_refused(copied: Hospital, capsys: Any, change: str) -> None:
    folder = own_folder(copied.config, "toy")
    if change == "another's":
        shutil.rmtree(folder / "finetune" / "final")
        shutil.copytree(copied.run / "final", folder / "finetune" / "final")
    elif change == "another of its own":  # signed by the site, and not what it made under that name
        shutil.rmtree(folder / "finetune")
        shutil.copytree(folder / "alone", folder / "finetune")
        text = (folder / "finetune" / "final" / "model.json").read_text()
        assert '"kind": "alone"' in text
        shutil.rmtree(folder / "alone")
        shutil.copytree(folder / "head", folder / "alone")
    elif change == "an older one":  # of the same kind, under the site's own signature
        model = load_final(folder / "finetune")
        older = {stage: replace(fitted, scale=2 * fitted.scale) for stage, fitted in model.calibration.items()}
        write_final(folder / "finetune", replace(model, calibration=older), signer=seals.SITE_KEYS["a"], facts={})
    else:
        shutil.rmtree(folder / "mixture" / "own")
        shutil.copytree(folder / "head", folder / "mixture" / "own")
    assert copied.model("compare", str(copied.run)) == 4
    said = capsys.readouterr().err
    assert change == "another's" or "`fed-diffmic client model own" in said


def test_training_alone_from_other_weights_than_the_run_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.study import first_digests

    toy.install_toy_networks(monkeypatch.setattr)
    spec = alone_spec(SPEC, "a", "cpu")
    first = first_digests(SPEC, "guidance")
    assert not starts_elsewhere(spec, "guidance", first) and not starts_elsewhere(spec, "guidance", {})
    assert starts_elsewhere(spec, "guidance", {**first, "weights": "0" * 64})


def test_a_site_that_protects_its_training_is_told_that_these_are_not(copied: Hospital, capsys: Any) -> None:
    with (copied.folder / "site.yaml").open("a") as stream:
        stream.write("privacy: {name: dp_sgd, epsilon: 3}\n")
    assert copied.model("own", str(copied.run), "head") == 0
    said = capsys.readouterr()
    assert "no epsilon holds" in said.err and "They stay at this site." in said.out


def test_images_that_fitted_a_sites_models_do_not_choose_one(copied: Hospital, capsys: Any) -> None:
    """Training was stopped, and calibration and share were fitted, on the validation images."""
    assert copied.model("compare", str(copied.run), "--json", "--split", "val") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["take"] == "the model that came" and set(found["own"]) == set(KINDS) and not found["steps"]
    assert copied.model("use", str(copied.run), "--split", "val") == 0
    assert "shown and not chosen" in capsys.readouterr().out
    assert load_final(copied.site / IN_USE).made_at is None


def test_an_option_that_would_be_overlooked_is_refused(copied: Hospital, capsys: Any) -> None:
    run, made = str(copied.run), str(own_folder(copied.config, "toy") / "alone")
    for words, says in (
        (("compare", run, "--take", "alone"), "It is of `client model use`."),
        (("own", run, "alone", "--even-if-worse"), "It is of `client model use`."),
        (("use", run, "--weights", "file"), "It is of `client model own`."),
        (("own", run, "head", "--weights", "file"), "those start from the model that came"),
        (("use", made, "--take", "global"), "client model use toy --take global"),
    ):
        assert copied.model(*words) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    assert not (copied.site / IN_USE).exists()


def test_two_terminals_do_not_make_the_same_models_at_once(copied: Hospital, capsys: Any) -> None:
    """Training alone takes hours: who types it again would spoil what the first one has, and be spoilt by it."""
    before = load_final(own_folder(copied.config, "toy") / "head").digests
    with lock_file(own_folder(copied.config, "toy") / ".lock"):
        assert copied.model("own", str(copied.run), "head") == MachineError.exit_code
    assert "own models of toy is in use by process" in " ".join(capsys.readouterr().err.split())
    assert load_final(own_folder(copied.config, "toy") / "head").digests == before
    assert copied.model("own", str(copied.run), "head") == 0
