"""Finished runs without training: a tiny model, and a summary of drawn predictions with all that may be in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.config.compose import compose, to_yaml
from fed_diffmic.files import atomic_write, write_json
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.final import FinalModel, write_final
from fed_diffmic.release.pinned import pin
from fed_diffmic.reporting.deployment import KIND
from fed_diffmic.training import sureness
from fed_diffmic.training.calibration import uncalibrated
from fed_diffmic.training.comparison import difference
from fed_diffmic.training.few import without_owners
from fed_diffmic.training.matrix import cell_from, cell_metrics, matrix_cell
from fed_diffmic.training.operating import class_points
from fed_diffmic.training.subgroups import subgroup_metrics
from fed_diffmic.training.sureness import Sureness
from tests.inference.tiny import SETTINGS, tiny_model, tiny_spec
from tests.reporting.conftest import CLASSES, COUNTS, measure, predict

SITES = sorted(COUNTS)
CLAIM = {"unit": "patient", "delta": 1e-5, "epsilon_run": 1.25, "epsilon_total": 2.5, "budget": 4.0}
CLAIM |= {"guarantee": True, "outside": ["validation"]}
AUDIT = {"verdict": "consistent", "claim": {"epsilon": 4.0, "delta": 1e-5}, "attacks": {"loss": {"bound": 0.375}}}


def model(*, private: bool = True) -> FinalModel:
    """A tiny model of the drawn classes after one round."""
    found = tiny_model(tiny_spec(classes=CLASSES))
    row: dict[str, Any] = {"stage": "diffusion", "round": 1, "best_round": 1, "sites": {}, "missing": {}, "mean": {}}
    if private:
        row["privacy"] = {SITES[0]: CLAIM}
    return replace(found, history=[row], bytes_sent=12345)


def sure() -> Sureness:
    """Prediction sets from validation images of every site."""
    counts = {}
    for site in SITES:
        scored = predict(site, "federated", "val", "multiclass", 2.2)
        fitted = uncalibrated(np.full(7, 1 / 7), "multiclass")
        scores = np.log(scored.probabilities + 1e-9)
        spec = tiny_spec(classes=CLASSES)
        told = sureness.counts_from(
            without_owners(sureness.site_counts(scores, {}, scored.labels, scored.groups, fitted, spec)),
            "multiclass",
            7,
        )
        assert told is not None
        counts[site] = told
    return sureness.fit(counts, [], "multiclass", 7, guarded=False)


def simulated_summary() -> dict[str, Any]:
    """Every part that a simulation's ``summary.json`` may have."""
    ours, theirs = ({s: predict(s, arm, "test", "multiclass", by) for s in SITES} for arm, by in _ARMS.items())
    known = sure()
    block = measure(ours, "multiclass")
    for site, own in block["sites"].items():
        own |= {"n_train": sum(COUNTS[site]), "n_val": 40, "n_test": len(ours[site].labels)}
        own["class_counts"] = dict(zip(CLASSES, COUNTS[site], strict=True))
    texts = {
        s: np.array([f"sex={'f' if k % 3 else 'm'}|scanner={'b' if k < 4 else 'a'}" for k in range(len(p.labels))])
        for s, p in ours.items()
    }
    whole = ours[SITES[0]]
    return {
        "status": "done",
        "run": "tiny",
        "seed": 3,
        "dataset": "drawn",
        "modality": "dermoscopy",
        "task": "multiclass",
        "classes": list(CLASSES),
        "class_names": {},
        **block,
        "baselines": {"local": measure(theirs, "multiclass")},
        "differences": {"local": difference(ours, theirs, bootstrap=20, seed=0)},
        "matrix": {
            "federated": {
                s: matrix_cell(p, CLASSES, bootstrap=20, seed=0, name=s, sureness=known) for s, p in ours.items()
            }
        },
        "operating_points": class_points(whole, CLASSES, bootstrap=20, seed=0),
        "calibration": {"task": "multiclass", "n": 300, "scale": 3.67, "prior_weight": 0.25, "nll": 0.61},
        "sureness": known.to_json(),
        "subgroups": {
            s: subgroup_metrics(p, texts[s], CLASSES, bootstrap=20, seed=0, sureness=known) for s, p in ours.items()
        },
        "versions": {"torch": "2.15"},
        "seconds": 12.5,
        "bytes_sent": 12345,
        "privacy": [],
    }


_ARMS = {"federated": 2.2, "local": 1.5}


def write_simulation(folder: Path, summary: dict[str, Any] | None = None) -> Path:
    """A simulation's folder, with an audit that was made of it."""
    folder.mkdir(parents=True)
    write_final(folder, model())
    write_json(folder / "summary.json", simulated_summary() if summary is None else summary)
    atomic_write(folder / "config.yaml", to_yaml(compose(None, SETTINGS)).encode())
    (folder / "audits").mkdir()
    write_json(folder / "audits" / "privacy.json", AUDIT)
    return folder


def deployed_summary() -> dict[str, Any]:
    """A coordinator's summary: one site lets everything out, one keeps counts back, the others say nothing."""
    cells = {}
    for place, site in enumerate(SITES):
        cell = matrix_cell(
            predict(site, "federated", "test", "multiclass", 2.0), CLASSES, bootstrap=20, seed=1, name=site
        )
        flat: dict[str, Any] = cell_metrics(cell, CLASSES)
        if place == 1:
            flat |= {"test/positives/1": None, "test/positives/3": None, "test/complete": 0.0}
        told = {name: value for name, value in flat.items() if value is not None} if place < 2 else {}
        cells[site] = cell_from(told, CLASSES)
    counts = {SITES[0]: list(COUNTS[SITES[0]]), SITES[1]: [None, None, 20, 500, None, 330, 400]}
    sites = {s: {"train": 400, "val": None, "test": None, "class_counts": counts.get(s, [])} for s in SITES}
    return {
        "kind": KIND, "status": "done", "run": "tiny", "seed": 3, "task": "multiclass", "classes": list(CLASSES),
        "rounds": [], "matrix": {"diffusion": cells}, "sureness": None, "sites": sites, "privacy": [], "seconds": 9.5,
        "bytes_sent": 10**8,
    }  # fmt: skip


def write_deployment(folder: Path, key: PrivateKey) -> Path:
    """A coordinator's folder: signed, its key pinned."""
    folder.mkdir(parents=True)
    facts = {
        "made": "2026-11-29T12:00:00+00:00",
        "code": {"version": "0.1", "source": "ab" * 32, "packages": {"torch": "2.15"}},
        "rounds": [],
        "heads": {SITES[0]: {"length": 17, "digest": "cd" * 32}},
        "coordinator_head": {"length": 44, "digest": "ef" * 32},
    }
    write_final(folder, model(private=False), signer=key, facts=facts)
    pin(folder, key.public_key())
    write_json(folder / "summary.json", deployed_summary())
    return folder
