"""Dossiers, reports of experiments and plain names of classes: what a message says is done, and then they are made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.errors import ConfigError
from fed_diffmic.files import atomic_write, save_tensors, write_json
from fed_diffmic.provision.keys import load_private, make_site_key
from fed_diffmic.release.dossier.facts import digest_of
from fed_diffmic.release.dossier.write import (
    DOMAIN,
    JSON,
    KIND,
    SIGNATURE,
    build,
    read_dossier,
    verify_dossier,
    write_dossier,
)
from fed_diffmic.release.provenance import sign_statement
from simulations.experiments.coverage import coverage_rows
from simulations.experiments.head_report import methods_of
from tests.inference.tiny import tiny_spec
from tests.release.dossier.made import write_simulation
from tests.remedies.places import remedy_in, tries
from tests.simulations.experiments.test_coverage import lac, write_cell, write_index

DOSSIER = "fed_diffmic/release/dossier/write.py::"


@tries(
    f"{DOSSIER}build",
    f"{DOSSIER}verify_dossier | Ask for",
    f"{DOSSIER}verify_dossier | Name the folder",
    f"{DOSSIER}verify_dossier | {{remedy}}",
    f"{DOSSIER}read_dossier",
)
def test_a_dossier_is_made_and_verified() -> None:
    run, papers = write_simulation(Path("tiny").absolute()), Path("papers")
    Path("sbom.json").write_text("[]")
    remedy_in(lambda: build(run, sbom=Path("sbom.json")), r"Give the sbom\.cdx\.json that `make sbom` wrote")
    Path("sbom.json").write_text('{"bomFormat": "CycloneDX", "components": []}')
    write_dossier(run, papers, sbom=Path("sbom.json"))
    make_site_key(Path("signer.key"))
    signer = load_private("signer.key")
    remedy_in(lambda: verify_dossier(papers), "Ask for one that is signed")
    whole = {path.name: path.read_bytes() for path in papers.iterdir()}
    other = {"kind": "another", "files": {name: digest_of(papers / name) for name in whole}}
    sign_statement(papers / SIGNATURE, other, signer, domain=DOMAIN)
    remedy_in(lambda: verify_dossier(papers), r"that `fed-diffmic dossier RUN` wrote \(RUN/dossier\)")
    write_dossier(run, run / "dossier", signer=signer)
    verify_dossier(run / "dossier")
    sign_statement(papers / SIGNATURE, other | {"kind": KIND}, signer, domain=DOMAIN)
    (papers / JSON).write_text("{}")
    remedy_in(lambda: read_dossier(papers), r"Make it again with `fed-diffmic dossier RUN`")
    for change in (
        lambda: (papers / JSON).write_text("{}"),
        lambda: (papers / JSON).unlink(),
        lambda: (papers / "more.txt").touch(),
    ):
        change()
        remedy_in(lambda: verify_dossier(papers), "Fetch the folder again, whole, from whoever signed it")
        (papers / "more.txt").unlink(missing_ok=True)
        atomic_write(papers / JSON, whole[JSON])
        verify_dossier(papers)
    write_dossier(run, papers)
    read_dossier(papers)


@tries("simulations/experiments/coverage.py::coverage_rows")
def test_coverage_is_read_when_every_fold_is_done() -> None:
    out, images = Path("study"), {"east": ([0.9, 0.2], [1, 0], [0, 1])}
    write_index(out, 1, 2)
    write_cell(out, 0, 0, [lac(50)], images)
    remedy_in(lambda: coverage_rows(out, 0.9), "Run it to its end first: `fed-diffmic experiment run`")
    write_cell(out, 0, 1, [lac(50)], images)
    assert coverage_rows(out, 0.9)


@tries(
    "simulations/experiments/head_report.py::methods_of | Run",
    "simulations/experiments/head_report.py::methods_of | Start again",
)
def test_methods_are_put_side_by_side_on_one_set_of_images(monkeypatch) -> None:
    monkeypatch.setattr("simulations.experiments.head_metrics.RESAMPLES", 5)

    def predicted(out: Path, method: str, first: int, splits: str = "val") -> None:
        """What ``experiment head`` leaves of a cell."""
        labels = np.array([0, 1] * 4)
        of = {"scores": np.eye(2, dtype=np.float32)[labels], "labels": labels, "groups": np.arange(8)}
        of |= {"prior": np.full(2, 0.5), "keys": np.arange(first, first + 8)}
        folder = out / "cells" / f"method-{method}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "facts.json", {"task": "multiclass", "decision": "probability", "stage": "guidance"})
        for split in splits.split():
            save_tensors(folder / f"{split}.safetensors", of)

    def begun(name: str) -> Path:
        cells = [{"name": f"method-{m}", "place": {"method": m, "seed": "1"}, "digest": ""} for m in "ab"]
        (out := Path(name)).mkdir()
        write_json(
            out / "experiment.json", {"experiment": "x", "about": "y", "axes": ["method", "seed"], "cells": cells}
        )
        return out

    study = begun("study")
    remedy_in(lambda: methods_of(study, "val"), "Run `fed-diffmic experiment head NAME --out DIR` first")
    predicted(study, "a", 0)
    assert set(methods_of(study, "val")) == {"a"}
    remedy_in(lambda: methods_of(study, "test"), "`fed-diffmic experiment head NAME --out DIR --test`")
    predicted(study, "a", 0, "val test")
    assert set(methods_of(study, "test")) == {"a"}
    predicted(study, "b", 5)
    remedy_in(lambda: methods_of(study, "val"), "Start again in another folder")
    another = begun("another")
    for method in "ab":
        predicted(another, method, 0)
    assert set(methods_of(another, "val")) == {"a", "b"}


@tries("fed_diffmic/config/spec.py::_in_order | {f", "fed_diffmic/config/spec.py::_in_order | a text")
def test_plain_names_are_of_classes_and_texts() -> None:
    def named(text: str) -> None:
        tiny_spec(f"dataset.class_names={{{text}}}")

    with pytest.raises(ConfigError) as caught:
        named("bening: of no harm")
    [known] = re.search(r"one of the classes (\w+),", str(caught.value)).groups()
    named(f"{known}: of no harm")
    remedy_in(lambda: named("benign: 3"), "allowed: a text")
    named("benign: three")
