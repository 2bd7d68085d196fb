"""Command lines that are refused: typed as the message says, they work.

The rows are in ``commands.toml``: what is typed, where in the message the remedy stands, and what is typed then, which
is read out of the message. In the folder lie a finished ``run``, ``images``, a table and a site's ``site.yaml``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from fed_diffmic import cli
from tests.inference.tiny import draw_images, write_table, write_tiny_run
from tests.remedies.places import table, tries


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model."""
    return write_tiny_run(tmp_path_factory.mktemp("ended") / "run")


@pytest.fixture
def desk(elsewhere: Path, ended: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a person has before them."""
    (elsewhere / "run").symlink_to(ended)
    images = draw_images(elsewhere / "images", 2)
    write_table(elsewhere, images)
    monkeypatch.setattr("fed_diffmic.data.open.DEFAULT_CACHE", elsewhere / "account")
    (elsewhere / "account" / "images-cache").mkdir(parents=True)
    (elsewhere / "account" / "images-cache" / "a.u8").write_bytes(b"decoded")
    (elsewhere / "papers").mkdir()
    (elsewhere / "full").mkdir()
    (elsewhere / "full" / "notes.txt").write_text("mine")
    (elsewhere / "site.yaml").write_text("site:\n  name: a\n  folder: site\n")
    (elsewhere / "nowhere.yaml").write_text("site:\n  name: a\n")
    (elsewhere / "study.yaml").write_text("axes: {seed: [1, 2]}\n")
    (elsewhere / "named.yaml").write_text("axes: {seed: [1], method: {a: [strategy=fedavg], b: [strategy=fedprox]}}\n")
    (elsewhere / "simulate.yaml").write_text("seed: 3\n")
    (elsewhere / "summary").mkdir()
    (elsewhere / "summary" / "summary.json").write_text('{"classes": ["a", "b"], "task": "multiclass"}')
    (elsewhere / "summary" / "events.jsonl").touch()
    for way in ("together", "pooled"):
        (elsewhere / way / "shared").mkdir(parents=True)
        (elsewhere / way / "trained.json").write_text(f'{{"federated": {str(way == "together").lower()}}}')
    (elsewhere / "bad.png").write_bytes(b"no image")
    (elsewhere / "blank.csv").write_text("image,label\n,benign\n")
    for name, text in (("short", "abc"), ("log", "")):
        (elsewhere / name).write_text(text)
        (elsewhere / name).chmod(0o600)
    return elsewhere


class Reached(BaseException):
    """The command has passed its checks and begins its work."""


WORK = {
    "audit privacy": "fed_diffmic.privacy.audit.subject.make_subject",
    "audit inversion": "fed_diffmic.privacy.inversion.report.audit_inversion",
    "audit verify": "fed_diffmic.exchange.audit.read_lines",
    "audit rekey": "fed_diffmic.exchange.audit.read_lines",
    "export": "fed_diffmic.release.final.load_final",
    "report": "fed_diffmic.reporting.report.write_report",
    "client model": "client.models.load_copied",
    "client status": "client.status.site_status",
    "ledger show": "fed_diffmic.privacy.account.read_account",
    "policy explain": "fed_diffmic.commands.policy._no_study",
    "preflight": "client.preflight.run.preflight",
    "serve": "fed_diffmic.commands.serve._listen",
    "data from-dicom": "fed_diffmic.commands.dicom._export",
    "data medmnist": "fed_diffmic.data.medmnist.write_medmnist",
    "evaluate": "fed_diffmic.inference.evaluate.evaluate_table",
    "reference": "fed_diffmic.inference.reference.make_reference",
    "experiment run": "simulations.experiments.runner.run_experiment",
    "experiment coverage": "simulations.experiments.coverage.write_coverage",
    "experiment head": "simulations.experiments.head.prepare",
    "dossier run": "fed_diffmic.release.dossier.write.write_dossier",
    "dossier papers": "fed_diffmic.release.dossier.write.verify_dossier",
}
"""Where the work of a command begins that takes its time; before that everything about its words was checked."""


@pytest.mark.parametrize(("typed", "read", "first", "then"), table("commands", "typed", "read", "first", "then"))
def test_what_is_typed_as_the_message_says_works(typed, read, first, then, desk, says, works, monkeypatch) -> None:
    said = says(*shlex.split(typed))
    found = re.search(read, said)
    assert found is not None, said
    if first:
        subprocess.run(first, shell=True, check=True)
    again = shlex.split(then.format(*found.groups()))
    work = next((WORK[words] for words in (" ".join(again[:2]), again[0]) if words in WORK), None)
    if work is None or "--help" in again:
        with pytest.raises(SystemExit) if "--help" in again else nullcontext():
            works(*again)
        return

    def reached(*arguments: object, **options: object) -> None:
        raise Reached

    monkeypatch.setattr(work, reached)
    with pytest.raises(Reached):
        cli.main(again)


@tries("fed_diffmic/commands/outputs.py::_usable | Choose a folder")
def test_a_folder_in_which_nothing_may_be_written(desk, says, works, monkeypatch) -> None:
    usual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "full" and usual(path, mode))
    for option, target in (("--csv", "full/found.csv"), ("--json", "full/new/o.json"), ("--dicom-sr", "full/reports")):
        said = says("predict", "--run", "run", option, target, "images")
        found = re.search(r"in (\S+)/full\n.*a folder that you may write to", said)
        assert found is not None, said
        works("predict", "--run", "run", option, f"{found[1]}/{Path(target).name}", "images")
