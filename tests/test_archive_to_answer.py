"""From two hospitals' archives to a reader: DICOM exports, a run, the delivered model, its page, a structured report.

Everything is the product's own: the commands, the sealed exchange, the signed model; only the processes are one, and
the network is the smallest that has all parts. Skipped from where the page is opened if Chromium is not installed.
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from client import site as client_site
from client.delivery import Delivery
from client.models import MODELS
from client.source import SiteSource
from fed_diffmic.cli import main
from fed_diffmic.commands import serve
from fed_diffmic.config.compose import compose, compose_site
from fed_diffmic.config.spec import make_spec
from fed_diffmic.data.phantoms import draw
from fed_diffmic.data.phantoms.canvas import site_style
from fed_diffmic.files import write_new
from fed_diffmic.provision.keys import private_bytes, public_text
from fed_diffmic.seeding import numpy_generator
from server.checkpoints import CheckpointStore
from tests import seals, site_rules, toy
from tests.consortium.settings import overrides, training
from tests.data.dicom.written import content, header, with_pixels
from tests.inference.test_reader import opened, served, words
from tests.reporting.test_browser import BROWSER

CLASSES = ("0", "1", "2")
NAMES = ("a", "b")
IMAGES = 42


def write_export(folder: Path, site: int) -> None:
    """An archive's export of 12-bit grey images, and a table of labels joined by accession."""
    folder.mkdir(parents=True)
    lines = ["accession,label"]
    for number in range(IMAGES):
        label, place = number % len(CLASSES), 1000 * site + number + 1
        made = (numpy_generator(7, "archive", site, number, what) for what in ("subject", "view"))
        grey = draw("ultrasound", label, site_style(site), *made, 48).mean(axis=2)
        ds = header(place, f"P{place}", PatientName=f"Doe^{place}", StudyDate="20260102", PatientSex="F")
        (folder / f"IM{place}").write_bytes(content(with_pixels(ds, (grey * 16).astype(np.uint16), bits=12)))
        lines.append(f"A{place:05d},{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def site_yaml(folder: Path, name: str) -> Path:
    """The configuration of a site that keeps models."""
    own = folder / name
    write_new(own / "site.key", private_bytes(seals.SITE_KEYS[name]))
    (own / "site.yaml").write_text(f"""\
site: {{name: {name}, folder: {own / "state"}, device: cpu}}
coordinator: {{key: {own / "site.key"}, public_key: {folder / "coordinator.pub"}}}
dataset: {{name: table, root: {own / "table" / "manifest.csv"}, classes: ["0", "1", "2"], task: multiclass}}
""")
    return own / "site.yaml"


def federated(folder: Path, configs: dict[str, Path]) -> None:
    """A run of both sites under seals, each with its own policy, log and images; both take the model."""
    policy = {"take_model": "keep", "runs": ["*"], "stages": ["guidance", "diffusion"], "max_epochs": 9.0}
    ruled, sources = {}, {}
    for name, path in configs.items():
        state = folder / name / "state"
        rules = seals.sealed_rules(folder / "logs", name, state, **policy)
        config = replace(compose_site(path, []), policy=rules.policy.config)
        models = Delivery(config, rules.audit, seals.SITE_KEYS[name], seals.COORDINATOR.public_key())
        ruled[name], sources[name] = replace(rules, models=models), SiteSource(config)
    grid, _ = site_rules.ruled_grid(folder, ruled)
    for context in grid._contexts.values():
        context.node_config["site-dir"] = str(folder / str(context.node_config["site"]) / "state")
    client_site.register_source(
        lambda context, spec, head: sources[str(context.node_config["site"])](context, spec, head)
    )
    settings = [*overrides(training(rounds=1)), "run.device=cpu", "dataset.class_names={'2': two of them}"]
    spec = make_spec(
        compose(None, settings), classes=CLASSES, task="multiclass", run_id="pilot", arm="federated", device="cpu"
    )
    hooks = seals.sealed_hooks(folder / "run", NAMES)
    given: dict[str, Any] = {"stages": ["guidance", "diffusion"], "sites": NAMES, "poll_s": 0.001, "test_s": 60.0}
    toy.federate(grid, spec, CheckpointStore(folder / "run"), toy.Events([]), hooks=hooks, deliver_s=60.0, **given)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_two_archives_to_a_page_and_a_structured_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    (tmp_path / "coordinator.pub").write_text(public_text(seals.COORDINATOR.public_key()) + "\n")
    configs = {}
    for number, name in enumerate(NAMES):
        own = tmp_path / name
        write_export(own / "export", number)
        configs[name] = site_yaml(tmp_path, name)
        labels = ["--labels", str(own / "export" / "labels.csv"), "--config", str(configs[name])]
        assert main(["data", "from-dicom", str(own / "export"), str(own / "table"), *labels]) == 0
        with (own / "table" / "manifest.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == IMAGES and "Doe" not in (own / "table" / "manifest.csv").read_text()
    federated(tmp_path, configs)
    state = tmp_path / "a" / "state"
    assert (state / MODELS / "pilot" / "final" / "model.json").exists()
    (tmp_path / "logs" / "a.audit.jsonl").rename(state / "audit.jsonl")
    own = ["client", "model", "own", "pilot", "finetune", "--config", str(configs["a"])]
    assert main(own) == 0
    assert main(["client", "model", "use", "pilot", "--take", "global", "--config", str(configs["a"])]) == 0

    image = tmp_path / "a" / "export" / "IM6"  # of class 2
    key = ["--key", str(tmp_path / "coordinator.pub")]
    out = tmp_path / "reports"
    assert main(["predict", "--run", str(state / "model"), *key, str(image), "--dicom-sr", str(out)]) == 0
    (document,) = (dcmread(path) for path in out.iterdir())
    assert document.PatientID == "P6" and document.StudyInstanceUID == dcmread(image).StudyInstanceUID
    numbers = {item.ConceptNameCodeSequence[0].CodeMeaning: float(item.MeasuredValueSequence[0].NumericValue)
               for item in _items(document) if item.get("ValueType") == "NUM"}  # fmt: skip
    assert sum(v for name, v in numbers.items() if name.startswith("Probability")) == pytest.approx(1, abs=1e-5)
    assert "Probability: two of them" in numbers

    made: list[Any] = []
    monkeypatch.setattr(serve, "_listen", lambda app, *_: made.append(app) or 0)
    assert main(["serve", "--model", str(state / "model"), *key]) == 0
    _use_own(tmp_path, configs["a"], state, image, capsys)
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    with served(image.read_bytes(), app=made[0]) as address:
        dom, console = opened(address, tmp_path, 1280)
    text = words(dom)
    assert console == [] and "<title>finished</title>" in dom and "not a medical device" in text
    shown = f"{100 * numbers['Probability: two of them']:.1f}"
    assert re.search(rf"two of them \(2\) +{re.escape(shown)}\s%", text), text
    assert re.search(r'<p[^>]*id="unsigned"[^>]*hidden', dom), "the coordinator's key stands for it"


def _use_own(folder: Path, config: Path, state: Path, image: Path, capsys: Any) -> None:
    """The site's own model in its place: under the site's key, with the same commands."""
    (folder / "a" / "site.key.pub").write_text(public_text(seals.SITE_KEYS["a"].public_key()) + "\n")
    assert main(["client", "model", "use", "pilot", "--take", "finetune", "--config", str(config)]) == 0
    used = ["--key", str(folder / "a" / "site.key.pub")]
    table, model = str(folder / "a" / "table" / "manifest.csv"), str(state / "model")
    assert main(["predict", "--run", model, *used, str(image)]) == 0
    assert main(["evaluate", "--run", model, "--site", "a", *used, "--manifest", table]) == 0
    assert main(["serve", "--model", model, *used]) == 0
    assert main(["serve", "--model", model, "--key", str(folder / "coordinator.pub")]) == 4
    assert "a site made this model for itself" in capsys.readouterr().err


def _items(ds: Any) -> list[Any]:
    return [ds, *(inner for item in ds.get("ContentSequence", []) for inner in _items(item))]
