"""A final model that was exchanged: by who may write to its folder, and by the coordinator that signs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client import compare
from client.kept import IN_USE
from fed_diffmic.cli import main
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.exchange.audit_findings import PROBLEM
from fed_diffmic.files import tensors_digest
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.provision.keys import PrivateKey, make_site_key, public_text
from fed_diffmic.release import pinned as pinned
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.release.model_audit import model_findings
from fed_diffmic.release.provenance import PROVENANCE, verify_statement
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from tests import site_rules, toy

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
OF_THE_MODEL = ("digests", "architecture", "spec", "model_json")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, signed; the sites' logs beside it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        toy.install_toy_networks(patch.setattr)
        patch.setattr("os.fsync", lambda _: None)
        ruled = {name: site_rules.rules(folder / "logs", name) for name in ("a", "b")}
        grid, _ = site_rules.ruled_grid(folder, ruled)
        (folder / "run").mkdir()
        audit = AuditLog(folder / "run" / "audit.jsonl", KEY, owner="coordinator")
        store, given = CheckpointStore(folder / "run"), {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001}
        hooks = Hooks(audit=audit, signer=KEY)
        toy.federate(grid, toy.toy_spec(), store, toy.Events([]), hooks=hooks, test_s=60.0, **given)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def zeros(model: FinalModel) -> FinalModel:
    """The model with nothing learned."""
    states = {
        stage: {name: np.zeros_like(v) if v.dtype.kind == "f" else v for name, v in state.items()}
        for stage, state in model.states.items()
    }
    return replace(model, states=states, digests={stage: tensors_digest(state) for stage, state in states.items()})


def statement_of(run: Path) -> dict[str, Any]:
    return verify_statement(run / "final" / PROVENANCE)[0]


def facts_of(run: Path) -> dict[str, Any]:
    """What the coordinator says of the run, to be signed again beside another model."""
    return {name: value for name, value in statement_of(run).items() if name not in OF_THE_MODEL}


def test_the_model_that_the_rounds_made_loads(run: Path) -> None:
    assert load_final(run, public_key=KEY.public_key()).signed_by
    bound = statement_of(run)["stages"]["guidance"]
    assert bound["result"] == load_final(run).digests["guidance"]
    assert "frozen.weight" not in bound["exchanged"] and "head.weight" in bound["exchanged"]


def test_a_coordinator_that_signs_another_model_with_the_old_rounds_is_refused(run: Path) -> None:
    facts = facts_of(run)
    write_final(run, zeros(load_final(run)), signer=KEY, facts=facts)
    for key in (None, KEY.public_key()):
        with pytest.raises(ModelFileError, match="are not those that round 2 made"):
            load_final(run, public_key=key)
    del facts["stages"]
    write_final(run, zeros_of(run), signer=KEY, facts=facts)
    with pytest.raises(ModelFileError, match="does not say which round made"):
        load_final(run)


def zeros_of(run: Path) -> FinalModel:
    value = json.loads((run / "final" / "model.json").read_text())
    from fed_diffmic.config.spec import RunSpec, parse_dataclass
    from fed_diffmic.files import load_tensors
    from fed_diffmic.training.calibration import Calibration

    states = {stage: load_tensors(run / "final" / f"{stage}.safetensors") for stage in value["digests"]}
    fitted = {stage: Calibration.from_json(text) for stage, text in value["calibration"].items()}
    spec = parse_dataclass(RunSpec, value["spec"], "spec")
    return FinalModel(spec, states, fitted, value["history"], value["bytes_sent"], value["digests"])


def test_a_coordinator_that_makes_up_the_rounds_as_well_is_found_by_any_sites_log(made: Path, run: Path) -> None:
    """Everything that it signs fits; what it sent to the sites does not."""
    model, facts = zeros(load_final(run)), facts_of(run)
    state, bound = model.states["guidance"], facts["stages"]["guidance"]
    bound["candidate"] = tensors_digest({name: state[name] for name in bound["exchanged"]})
    bound["base"] = tensors_digest({name: v for name, v in state.items() if name not in bound["exchanged"]})
    bound["result"] = tensors_digest(state)
    for row in facts["rounds"]:
        row["candidate"] = bound["candidate"]
    write_final(run, model, signer=KEY, facts=facts)
    assert load_final(run, public_key=KEY.public_key()).signed_by  # alone it cannot be told
    fitted = {stage: one.to_json() for stage, one in model.calibration.items()}
    for site in ("a", "b"):
        lines = read_lines(made / "logs" / f"{site}.audit.jsonl")
        honest = statement_of(made / "run")
        assert [f for f in model_findings(honest, fitted, lines, [], site=site, run="toy") if f.level == PROBLEM] == []
        found = [f.text for f in model_findings(facts, fitted, lines, [], site=site, run="toy") if f.level == PROBLEM]
        assert any("at the end the site was sent other weights than the model holds (weights" in t for t in found), (
            found
        )
        assert any("in round 2 the site was sent other weights" in text for text in found)
        assert any("(base" in text for text in found)
        other = {"guidance": {**fitted["guidance"], "scale": 7.0}}
        found = [f.text for f in model_findings(honest, other, lines, [], site=site, run="toy") if f.level == PROBLEM]
        assert found == ["stage guidance: the site's images were judged under another calibration"]


def test_the_command_says_what_a_sites_log_proves(made: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coordinator, site = made / "coordinator.pub", made / "site.pub"
    coordinator.write_text(public_text(KEY.public_key()) + "\n")
    site.write_text(public_text(site_rules.KEY.public_key()) + "\n")
    command = ["audit", "model", str(run), "--key", str(coordinator)]
    against = ["--against", str(made / "logs" / "a.audit.jsonl"), "--against-key", str(site)]
    assert main([*command, *against]) == 0
    said = capsys.readouterr().out
    assert "compared with the log of the site a: no problems" in said
    assert len(said.splitlines()) <= 6 and "{" not in said  # a line for each check, where all is well
    assert main([*command, *against, "--json"]) == 0
    whole, checks = capsys.readouterr()
    assert "a" in json.loads(whole)["heads"] and checks.splitlines()[-1] == said.splitlines()[-1]
    facts = facts_of(run)
    facts["heads"]["a"]["digest"] = "ab" * 32
    facts["rounds"][0]["payloads"]["train"]["a"] = "cd" * 32
    write_final(run, load_final(run), signer=KEY, facts=facts)
    assert main([*command, *against]) == 4
    said = capsys.readouterr().out
    assert "names another line" in said and "names a payload that the site did not send" in said
    assert main([*command, *against[:2]]) == 2


def test_a_result_that_is_not_what_the_chosen_round_made_is_not_signed(made: Path, tmp_path: Path) -> None:
    """Somebody exchanged a checkpoint between the last round and the end."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    store = CheckpointStore(tmp_path / "run")
    state = store.load()
    assert state is not None
    state.results["guidance"] = {n: v + 1 if v.dtype.kind == "f" else v for n, v in state.results["guidance"].items()}
    fitted = load_final(made / "run").calibration
    with pytest.raises(ModelFileError, match="is not what round 2 made"):
        store.finish(state, toy.toy_spec(), fitted, Hooks(signer=KEY))


# ---- whoever may write to the folder ---------------------------------------------------------


def strip(run: Path) -> None:
    (run / "final" / PROVENANCE).unlink()


def strip_and_swap(run: Path) -> None:
    write_final(run, zeros(load_final(run)))


def swap_and_sign(run: Path) -> None:
    write_final(run, zeros(load_final(run)), signer=OTHER, facts={})


def say_coordinator(run: Path) -> None:
    pinned.pin(run, KEY.public_key())


def say_security(run: Path) -> None:
    (run / "config.yaml").write_text(f"security: {{insecure: false, key: {run}/server.key, certificate: c}}\n")


def test_a_model_that_lost_its_signature_is_refused_wherever_it_is(run: Path) -> None:
    strip(run)
    with pytest.raises(ModelFileError, match=r"its provenance.json is gone") as caught:
        load_final(run)
    assert "Fetch the folder" in caught.value.remedy


@pytest.mark.parametrize("attack", [strip, strip_and_swap, swap_and_sign])
@pytest.mark.parametrize("says", [say_coordinator, say_security])
def test_where_a_key_is_pinned_no_command_takes_another_model(
    run: Path, attack: Callable[[Path], None], says: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    attack(run)
    says(run)
    if attack is swap_and_sign and says is say_security:
        return  # that there was a key is known; which one, only where the file of it can be read
    with pytest.raises(ModelFileError):
        final_predictor(run)
    assert main(["audit", "model", str(run)]) == 4
    table = run / "table.csv"
    table.write_text("image,label\n")
    assert main(["evaluate", "--run", str(run), "--manifest", str(table)]) == 4
    picture = run / "x.png"
    picture.write_bytes(b"x")
    assert main(["predict", "--run", str(run), str(picture)]) == 4
    assert "signed" in capsys.readouterr().err


@pytest.mark.parametrize("attack", [strip, strip_and_swap, swap_and_sign])
def test_a_key_that_is_named_decides(run: Path, attack: Callable[[Path], None], tmp_path: Path) -> None:
    attack(run)
    key = tmp_path / "coordinator.pub"
    key.write_text(public_text(KEY.public_key()) + "\n")
    table = tmp_path / "table.csv"
    table.write_text("image,label\n")
    assert main(["evaluate", "--run", str(run), "--manifest", str(table), "--key", str(key)]) == 4
    picture = tmp_path / "x.png"
    picture.write_bytes(b"x")
    assert main(["predict", "--run", str(run), str(picture), "--key", str(key)]) == 4
    assert main(["audit", "model", str(run), "--key", str(key)]) == 4


def test_a_run_finds_its_key_where_its_configuration_says(run: Path, tmp_path: Path) -> None:
    make_site_key(tmp_path / "signing.key")
    (run / "config.yaml").write_text(f"security: {{insecure: false, signing_key: {tmp_path}/signing.key}}\n")
    with pytest.raises(ModelFileError, match="is signed by the key"):
        load_final(run)


def test_a_simulations_model_is_not_signed_and_goes_on_working(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    given: dict[str, Any] = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001}
    toy.federate(grid, toy.toy_spec(), CheckpointStore(tmp_path / "run"), toy.Events([]), **given)
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    assert load_final(tmp_path / "run").origin.startswith("not signed")
    assert final_predictor(tmp_path / "run").spec.run_id == "toy"


# ---- the model that a site took over ---------------------------------------------------------


class Kept:
    """A site that takes a model over, and looks at it again."""

    def __init__(self, folder: Path, *, pinned_key: PrivateKey | None = KEY) -> None:
        self.folder = folder / "site"
        self.folder.mkdir()
        make_site_key(folder / "site.key")
        lines = [f"site: {{name: a, folder: {self.folder}, device: cpu}}", f"dataset: {{root: {folder}}}"]
        public = ""
        if pinned_key is not None:
            (folder / "coordinator.pub").write_text(public_text(pinned_key.public_key()) + "\n")
            public = f", public_key: {folder / 'coordinator.pub'}"
        lines.append(f"coordinator: {{key: {folder / 'site.key'}{public}}}")
        (folder / "site.yaml").write_text("\n".join(lines) + "\n")
        self.config = folder / "site.yaml"
        self.model = self.folder / IN_USE

    def compare(self, model: Path, way: str = "compare") -> int:
        return main(["client", "model", way, str(model), "--config", str(self.config), "--json"])


@pytest.fixture
def kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    data = toy.toy_site("a", 3, count=48)
    monkeypatch.setattr(compare, "SiteSource", lambda _: lambda *_: data)
    kept = Kept(tmp_path)
    assert kept.compare(run, "use") == 0
    assert kept.compare(kept.model) == 0
    return kept


def test_what_was_taken_over_is_a_line_of_the_sites_log(kept: Kept) -> None:
    lines = read_lines(kept.folder / "audit.jsonl")
    assert [line.kind for line in lines] == ["opened", "taken_over"]
    assert lines[-1].facts["of_run"] == "toy"
    assert (kept.model / pinned.PIN).read_text().strip() == public_text(KEY.public_key())


def strip_all(model: Path) -> None:
    """Everything that says that it was signed."""
    (model / pinned.PIN).unlink()
    write_final(model, zeros(load_final(model)))


def sign_all(model: Path) -> None:
    pinned.pin(model, OTHER.public_key())
    write_final(model, zeros(zeros_of(model)), signer=OTHER, facts={})


def an_older_one(model: Path) -> None:
    """Signed by the coordinator, and not what was taken over."""
    facts = facts_of(model)
    write_final(model, replace(load_final(model), bytes_sent=1), signer=KEY, facts=facts)


@pytest.mark.parametrize("attack", [strip, strip_all, sign_all, an_older_one])
def test_a_model_in_use_that_was_exchanged_is_refused_at_the_next_use(
    kept: Kept, run: Path, attack: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    attack(kept.model)
    for model in (run, kept.model):
        assert kept.compare(model) == 4
        assert "take" in capsys.readouterr().err.lower() or attack is strip
    # As the message says, another is taken over; it is verified as ever, what was exchanged is said and put aside.
    exchanged = (kept.model / "final" / "model.json").read_bytes()
    assert kept.compare(run, "use") == 0
    assert "the model in use cannot be used, so it is not compared" in capsys.readouterr().err
    assert (kept.folder / compare.REFUSED / "final" / "model.json").read_bytes() == exchanged
    assert not (kept.folder / compare.BEFORE).exists() and kept.compare(kept.model) == 0


def test_a_model_that_is_not_signed_by_the_pinned_key_is_not_taken_over(run: Path, tmp_path: Path) -> None:
    kept = Kept(tmp_path, pinned_key=OTHER)
    assert kept.compare(run, "use") == 4
    assert not kept.model.exists()


def test_the_line_of_what_was_taken_over_cannot_be_exchanged_without_the_sites_key(kept: Kept) -> None:
    path = kept.folder / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"of_run":"toy"', b'"of_run":"tox"'))
    assert kept.compare(kept.model) == 4


def test_where_the_log_is_gone_the_pinned_key_still_decides(kept: Kept) -> None:
    (kept.folder / "audit.jsonl").unlink()
    assert kept.compare(kept.model) == 0
    strip_all(kept.model)
    assert kept.compare(kept.model) == 4
