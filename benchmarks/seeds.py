"""Several seeds of one experiment together: means over sites, and paired differences with intervals.

python benchmarks/seeds.py RUN_DIR RUN_DIR RUN_DIR [--with RUN_DIR ...]

Each run is one seed of the split. At each site a class counts if its test images over all seeds hold at least ten
positives (``--positives``) and as many others; its AUROC and recall are taken seed by seed and averaged over the seeds
that define them, then over the site's classes, then over the sites (of one class alone there is no balanced accuracy).
The interval of a difference resamples whole groups (patients, lesions) of a site, a group with the same count in every
seed, since the same images come back in several test sets;
what another draw of seeds would change is not in it, so each seed's own difference is printed too. The runs' data set
must be where their config.yaml says: groups are read from it. ``--with`` adds the federations of further runs of the
same seeds (another strategy) under their strategy's name.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fed_diffmic.config.compose import compose
from fed_diffmic.files import load_tensors
from fed_diffmic.training import weighted
from simulations.sites import build_sites

METRICS = ("balanced accuracy", "macro AUROC")
Table = dict[str, np.ndarray]


class Seed:
    """One run: its test labels, groups, and each method's probabilities and decisions, by site."""

    def __init__(self, folder: Path) -> None:
        self.config = compose(folder / "config.yaml", [])
        with tempfile.TemporaryDirectory() as scratch:
            sites = build_sites(self.config, Path(scratch)).sites
        self.groups = {name: np.asarray(data.test.groups) for name, data in sites.items()}
        self.tensors: Table = load_tensors(folder / "predictions.safetensors")
        for name, data in sites.items():
            if not np.array_equal(self.tensors[f"{name}|labels"], data.test.labels):
                raise SystemExit(f"{folder}: the data set is no longer the one that this run read")

    def methods(self) -> list[str]:
        """Names of the methods that were measured."""
        return sorted({name.split("|")[0] for name in self.tensors if name.endswith("|probabilities")})

    def positive(self, site: str) -> np.ndarray:
        """``(N, C)``: which test image has which class."""
        labels = self.tensors[f"{site}|labels"]
        if labels.ndim == 2:
            return labels > 0
        classes = next(v.shape[1] for k, v in self.tensors.items() if k.endswith(f"|{site}|probabilities"))
        return labels[:, None] == np.arange(classes)

    def metrics(self, method: str, site: str, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """``(2, C', R)``: recall (multi-label: mean of both recalls) and AUROC of each class."""
        p, decided = (self.tensors[f"{method}|{site}|{what}"] for what in ("probabilities", "decided"))
        truth = self.positive(site)
        hit = decided if decided.ndim == 2 else decided[:, None] == np.arange(truth.shape[1])
        rows = []
        for c in classes:
            y = truth[:, c]
            recall = weighted.divide((weights * (hit[:, c] & y)[:, None]).sum(0), weights[y].sum(0))
            if decided.ndim == 2:
                rest = weighted.divide((weights * (~hit[:, c] & ~y)[:, None]).sum(0), weights[~y].sum(0))
                recall = (recall + rest) / 2
            elif len(classes) < 2:  # 1 for a model that calls everything so: no balanced accuracy
                recall = np.full_like(recall, np.nan)
            rows.append(np.stack([recall, weighted.ranking(p[:, c], y, weights)[0]]))
        return np.stack(rows, axis=1)


def counted(seeds: list[Seed], least: int) -> dict[str, np.ndarray]:
    """At each site, the classes with at least ``least`` images that have them, and that do not, over all seeds."""
    truths = {site: np.concatenate([seed.positive(site) for seed in seeds]) for site in seeds[0].groups}
    return {
        site: np.flatnonzero((truth.sum(axis=0) >= least) & ((~truth).sum(axis=0) >= least))
        for site, truth in truths.items()
    }


def measure(
    seeds: list[Seed], methods: dict[str, list[tuple[Seed, str]]], classes: dict[str, np.ndarray], resamples: int
) -> dict[str, np.ndarray]:
    """For each method ``(2, sites, seeds + 1, 1 + R)``: first column the sample; last row the mean over seeds."""
    rng = np.random.default_rng(0)
    result: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for site, chosen in classes.items():
        everyone = np.unique(np.concatenate([seed.groups[site] for seed in seeds]))
        drawn = weighted.resample_weights(np.arange(len(everyone)), resamples, rng)
        counts = np.concatenate([np.ones((len(everyone), 1)), drawn], axis=1)
        for name, parts in methods.items():
            each = [
                seed.metrics(method, site, chosen, counts[np.searchsorted(everyone, seed.groups[site])])
                for seed, method in parts
            ]
            stack = np.stack(each, axis=2)  # (2, C', seeds, 1 + R)
            over = weighted.mean_of_defined(np.moveaxis(stack, 2, -1)).mean(axis=1)
            by_seed = weighted.mean_of_defined(np.moveaxis(stack, 1, -1))
            result[name].append(np.concatenate([by_seed, over[:, None]], axis=1))
    return {name: np.stack(parts, axis=1) for name, parts in result.items()}


def site_table(values: dict[str, np.ndarray], sites: list[str], method: str, against: str) -> Iterator[str]:
    """Lines of a table of each site and their mean: two methods, and their difference with its interval."""
    yield f"\n| site | metric | {method} | {against} | {method} minus {against} |\n|---|---|---|---|---|"
    pair = (values[method], values[against])
    own, other = (np.concatenate([v, np.nanmean(v, axis=1, keepdims=True)], axis=1) for v in pair)
    for index, site in enumerate([*sites, "mean over sites"]):
        for number, metric in enumerate(METRICS):
            gap = own[number, index, -1] - other[number, index, -1]
            low, high = np.nanpercentile(gap[1:], [2.5, 97.5])
            yield (
                f"| {site} | {metric} | {own[number, index, -1, 0]:.3f} | {other[number, index, -1, 0]:.3f} "
                f"| {gap[0]:+.3f} ({low:+.3f} to {high:+.3f}) |"
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--with", nargs="*", type=Path, default=[], dest="others")
    parser.add_argument("--positives", type=int, default=10)
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    seeds, others = ([Seed(run) for run in runs] for runs in (arguments.runs, arguments.others))
    methods = {name: [(seed, name) for seed in seeds] for name in seeds[0].methods()}
    for seed in others:
        methods.setdefault(seed.config.strategy.name, []).append((seed, "federated"))
    classes = counted(seeds, arguments.positives)
    for site, chosen in classes.items():
        print(
            f"{site}: {len(chosen)} classes with at least {arguments.positives} test positives over {len(seeds)} seeds"
        )
    classes = {site: chosen for site, chosen in classes.items() if len(chosen)}  # the others cannot be judged
    if not classes:
        raise SystemExit("no class at any site can be judged: give more seeds")
    values = measure(seeds, methods, classes, arguments.resamples)
    means = {name: np.nanmean(value, axis=1) for name, value in values.items()}  # over sites: (2, seeds + 1, 1 + R)
    print(f"\n| mean over sites and seeds | {' | '.join(METRICS)} |\n|---|---|---|")
    for name, value in sorted(means.items()):
        cells = [f"{v[-1, 0]:.3f} ({', '.join(f'{s:.3f}' for s in v[:-1, 0])})" for v in value]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| federated minus | {' | '.join(METRICS)} |\n|---|---|---|")
    for name in sorted(set(means) - {"federated"}):
        gap = means["federated"] - means[name]
        low, high = np.nanpercentile(gap[:, -1, 1:], [2.5, 97.5], axis=-1)
        cells = [
            f"{g[-1, 0]:+.3f} ({a:+.3f} to {b:+.3f}); by seed {', '.join(f'{s:+.3f}' for s in g[:-1, 0])}"
            for g, a, b in zip(gap, low, high, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    ratio = means["federated"][:, -1, 0] / means["pooled"][:, -1, 0] if "pooled" in means else None
    if ratio is not None:
        worst = np.nanmin(values["federated"][:, :, -1, 0], axis=1) / np.nanmin(values["pooled"][:, :, -1, 0], axis=1)
        for what, parts in (("", ratio), (", worst site", worst)):
            print(
                f"\nfederated / pooled{what}: {', '.join(f'{f} {r:.3f}' for f, r in zip(METRICS, parts, strict=True))}"
            )
    for method, against in (("federated", "local"), ("federated", "pooled"), ("pooled", "local")):
        if method in values and against in values:
            print("\n".join(site_table(values, list(classes), method, against)))


if __name__ == "__main__":
    main()
