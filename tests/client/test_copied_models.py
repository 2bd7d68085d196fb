"""A model that somebody copied here is held to the study and the log of this site, as one that was sent is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import compare
from fed_diffmic.cli import main
from fed_diffmic.exchange.study import make_study
from fed_diffmic.files import private_folder, write_json, write_new
from fed_diffmic.provision.keys import private_bytes, public_text
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.release.provenance import PROVENANCE, verify_statement
from tests import seals, toy
from tests.client.test_delivery import Consortium

KEY = seals.COORDINATOR


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, FinalModel, list[str]]:
    """A site that took part in a run; the run's folder is at hand. Folder, model, settings of the command."""
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    made = Consortium(tmp_path)
    final = made.run(deliver_s=0.0)
    folder = tmp_path / "sites" / "a"
    shutil.copy(tmp_path / "logs" / "a.audit.jsonl", folder / "audit.jsonl")
    write_new(tmp_path / "a.key", private_bytes(seals.SITE_KEYS["a"]))
    (tmp_path / "coordinator.pub").write_text(public_text(KEY.public_key()) + "\n")
    way = f"{{key: {tmp_path / 'a.key'}, public_key: {tmp_path / 'coordinator.pub'}}}"
    text = f"site: {{name: a, folder: {folder}, device: cpu}}\ndataset: {{root: {tmp_path}}}\ncoordinator: {way}\n"
    (tmp_path / "site.yaml").write_text(text)
    data = toy.toy_site("a", 3, count=48)
    monkeypatch.setattr(compare, "SiteSource", lambda _: lambda *_: data)
    study = make_study(made.spec, stages=["guidance"], test=False, sites=None, initial={}, code={}).signed(KEY)
    kept = {"study": study.text, "signature": study.signature}
    write_json(private_folder(folder / "studies") / "toy.study.json", kept, mode=0o600)
    return folder, final, ["--config", str(tmp_path / "site.yaml")]


def rewritten(run: Path, model: FinalModel) -> Path:
    """The run's folder again with another model under the coordinator's own signature, rounds and all."""
    statement, _ = verify_statement(run / "final" / PROVENANCE)
    copy = run.with_name("copied")
    copy.mkdir()
    facts = {n: v for n, v in statement.items() if n not in ("digests", "architecture", "spec", "model_json")}
    write_final(copy, model, signer=KEY, facts=facts)
    return copy


def test_a_copied_model_is_held_to_what_this_site_agreed_to(
    site: tuple[Path, FinalModel, list[str]], capsys: Any
) -> None:
    """The plain names of two classes changed places: every number is right, and says the other thing."""
    folder, final, more = site
    run = folder.parents[1] / "run"
    assert main(["client", "model", "use", str(run), *more]) == 0
    assert load_final(folder / "model").digests == final.digests
    capsys.readouterr()
    wrong = replace(final, spec=replace(final.spec, class_names=("malignant", "benign", "")))
    assert main(["client", "model", "use", str(rewritten(run, wrong)), *more]) == 4
    said = capsys.readouterr().err
    assert "other settings or classes than the study" in said and "keep this one as evidence" in said


def test_a_copied_model_is_held_to_what_this_site_was_sent(
    site: tuple[Path, FinalModel, list[str]], capsys: Any
) -> None:
    folder, final, more = site
    run = folder.parents[1] / "run"
    other = {stage: replace(fitted, scale=fitted.scale * 2) for stage, fitted in final.calibration.items()}
    copied = rewritten(run, replace(final, calibration=other))
    assert main(["client", "model", "compare", str(copied), *more]) == 4
    assert "is not what this site was sent" in capsys.readouterr().err


def test_a_run_that_this_site_knows_nothing_of_is_known_by_its_key(
    site: tuple[Path, FinalModel, list[str]], capsys: Any
) -> None:
    folder, _, more = site
    run = folder.parents[1] / "run"
    (folder / "studies" / "toy.study.json").unlink()
    (folder / "audit.jsonl").unlink()
    assert main(["client", "model", "compare", str(run), *more]) == 0
    (folder.parents[1] / "coordinator.pub").write_text(public_text(seals.SITE_KEYS["b"].public_key()) + "\n")
    assert main(["client", "model", "compare", str(run), *more]) == 4
