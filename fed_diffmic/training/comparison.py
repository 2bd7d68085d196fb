"""Is one model better than another? Paired differences and means over sites, with bootstrap intervals.

Two intervals that overlap say little about a difference measured on the same images. Here both models are scored on
the same resamples of the same groups, site by site, and the interval is that of the difference. Sites are resampled
independently of one another and a mean over sites weighs each site alike, however many images it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import weighted
from fed_diffmic.training.metrics import METRICS, Replicates, Scored, interval, number, replicates


def _entry(point: float, resampled: np.ndarray, n: int) -> dict[str, Any]:
    low, high = interval(resampled)
    return {"value": number(point), "low": low, "high": high, "n": n}


def _mean(parts: Mapping[str, tuple[Replicates, Replicates]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Mean over the sites that define a figure, for the sample and for each resample."""
    out: dict[str, Any] = {}
    for metric in METRICS:
        names = [site for site in parts if not np.isnan(parts[site][0][metric][0])]
        point = np.mean([parts[site][0][metric][0] for site in names]) if names else np.nan
        columns = [parts[site][1][metric] for site in names]
        # A site with one group cannot be resampled; a mean that leaves its uncertainty out would look too sure.
        whole = bool(columns) and all(len(column) for column in columns)
        resampled = weighted.mean_of_defined(np.stack(columns, axis=1)) if whole else np.empty(0)
        out[metric] = {**_entry(float(point), resampled, sum(sizes[site] for site in names)), "sites": names}
    return out


def _resample(sites: Mapping[str, Scored], bootstrap: int, seed: int) -> dict[str, tuple[Replicates, Replicates]]:
    return {
        name: replicates(scored, bootstrap, numpy_generator(seed, "bootstrap", name))
        for name, scored in sorted(sites.items())
        if len(scored.labels)
    }


def mean_over_sites(sites: Mapping[str, Scored], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """The unweighted mean over sites of each figure.

    Args:
        sites: site name to its predictions (a site without images is left out).
        bootstrap: number of resamples; 0: no intervals.
        seed: of the resamples.

    Returns:
        Each of ``METRICS`` as ``{value, low, high, n, sites}``: ``n`` images in all, ``sites`` those that define it.
    """
    parts = _resample(sites, bootstrap, seed)
    return _mean(parts, {name: len(sites[name].labels) for name in parts})


def difference(
    first: Mapping[str, Scored], second: Mapping[str, Scored], *, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Paired difference first minus second, at each site and as the mean over sites.

    Args:
        first, second: site name to predictions on the same images in the same order.
        bootstrap: number of resamples; 0: no intervals.
        seed: of the resamples, the same for both.

    Returns:
        ``{"mean": {METRIC: {value, low, high, n, sites}}, "sites": {NAME: {METRIC: {value, low, high, n}}}}``.
        The sign is that of the figure: for ``brier`` and ``ece``, smaller is better.

    Raises:
        ValueError: sites, labels or groups that are not the same in both.
    """
    if set(first) != set(second):
        raise ValueError("the two models were not scored at the same sites")
    for name, scored in first.items():
        same = np.array_equal(scored.labels, second[name].labels) and np.array_equal(scored.groups, second[name].groups)
        if not same or scored.task != second[name].task:
            raise ValueError(f"the two models were not scored on the same images at {name}")
    ours, theirs = _resample(first, bootstrap, seed), _resample(second, bootstrap, seed)
    parts = {
        name: tuple({key: a[key] - b[key] for key in a} for a, b in zip(ours[name], theirs[name], strict=True))
        for name in ours
    }
    pairs: dict[str, tuple[Replicates, Replicates]] = {name: (part[0], part[1]) for name, part in parts.items()}
    sizes = {name: len(first[name].labels) for name in pairs}
    single = {
        name: {metric: _entry(point[metric][0], resampled[metric], sizes[name]) for metric in METRICS}
        for name, (point, resampled) in pairs.items()
    }
    return {"mean": _mean(pairs, sizes), "sites": single}
