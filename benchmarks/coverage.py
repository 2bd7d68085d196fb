"""How often prediction sets hold the right class: one run's final model, its held-out images divided again and again.

``python -m benchmarks.coverage [--splits N] [--level L] [--seed S] [--json OUT] RUN_DIR``: the last stage's model of a
finished simulation is scored once on every site's validation and test images. Then, N times, the patients of each site
are divided in halves by a seeded draw; thresholds are taken from the counts of the first halves, added over sites, and
coverage is measured on the second halves: over all sites together, at each site and for each class, with thresholds of
all sites (``together``), by class (``by class``), of the site alone (``own``), and of the other sites alone
(``others``: what a hospital that did not take part would get). Printed are means over the divisions, the range of 95 %
of them, and the mean size of a set. The divisions share images: their range is no confidence interval of the mean.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from fed_diffmic.config.compose import compose
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.release.final import load_final
from fed_diffmic.training import conformal
from fed_diffmic.training.conformal import Rule
from fed_diffmic.training.familiar import half
from simulations.sites import VirtualSites, build_sites

Told = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
Seen = dict[tuple[str, str], list[tuple[float, float]]]


def held_out(predictor: Predictor, sites: VirtualSites) -> Told:
    """Probabilities, labels and patients of each site's validation and test images."""
    found = {}
    for name, data in sites.sites.items():
        parts = [data.val, data.test]
        p = np.concatenate([predictor.opinion(part).probabilities for part in parts])
        labels, groups = (np.concatenate([getattr(part, key) for part in parts]) for key in ("labels", "groups"))
        found[name] = (p, labels, groups)
    return found


def divide(told: Told, task: str, classes: list[str], level: float, seed: int, seen: Seen) -> None:
    """One division: coverage and size of every way at every place, added to ``seen``."""
    for method in conformal.methods(task):
        first = {name: half(groups, seed) for name, (_, _, groups) in told.items()}
        tables = {n: conformal.counts(p[first[n]], y[first[n]], task, method) for n, (p, y, _) in told.items()}
        together = conformal.fit(list(tables.values()), method, level)
        hits: dict[str, list[np.ndarray]] = {"together": [], "by class": []}
        labels = []
        for name, (p, y, _) in told.items():
            rest = ~first[name]
            others = [table for other, table in tables.items() if other != name]
            ways: dict[str, tuple[Rule, bool]] = {
                "together": (together, False),
                "by class": (together, True),
                "own": (conformal.fit([tables[name]], method, level), False),
            }
            if others:
                ways["others"] = (conformal.fit(others, method, level), False)
            for way, (rule, by_state) in ways.items():
                sets = conformal.members(p[rest], task, rule, by_state=by_state)
                hit = conformal.covered(sets, y[rest], task)
                seen.setdefault((f"{method} {way}", name), []).append((hit.mean(), sets.sum(axis=2).mean()))
                if way in hits:
                    hits[way].append(np.column_stack([hit.mean(axis=1), sets.sum(axis=2).mean(axis=1)]))
            labels.append(y[rest])
        for way, parts in hits.items():
            whole, y = np.concatenate(parts), np.concatenate(labels)
            seen.setdefault((f"{method} {way}", "all"), []).append((whole[:, 0].mean(), whole[:, 1].mean()))
            for c, label in enumerate(classes) if task != "multilabel" else ():
                if (y == c).any():
                    seen.setdefault((f"{method} {way}", f"class {label}"), []).append(tuple(whole[y == c].mean(axis=0)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    final = load_final(given.run)
    with tempfile.TemporaryDirectory() as scratch:
        sites = build_sites(compose(given.run / "config.yaml", []), Path(scratch))
    told = held_out(final_predictor(given.run), sites)
    seen: Seen = {}
    for split in range(given.splits):
        divide(told, final.spec.task, list(final.spec.classes), given.level, given.seed * 1_000_000 + split, seen)
    print(f"{given.splits} divisions, level {given.level:g}; images: { {n: len(y) for n, (_, y, _) in told.items()} }")
    print(f"{'sets':<16} {'images of':<24} {'coverage':>8} {'95 % of divisions':>18} {'classes in a set':>17}")
    rows = []
    for (way, place), values in seen.items():
        coverage, size = np.array(values).T
        low, high = np.percentile(coverage, [2.5, 97.5])
        rows.append({"sets": way, "images": place, "coverage": coverage.mean(), "low": low, "high": high})
        rows[-1]["size"] = size.mean()
        print(f"{way:<16} {place:<24} {coverage.mean():8.3f} {low:8.3f} to {high:.3f} {size.mean():17.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
