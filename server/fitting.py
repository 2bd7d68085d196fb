"""A stage's calibration, fitted from what its sites sum up over their validation images."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from fed_diffmic.algorithms.shares import LEAST_SITES, capped, trimmed
from fed_diffmic.training import calibration
from fed_diffmic.training.calibration import Calibration
from server.broadcast import known_already
from server.exchange import EvaluateRequest
from server.federation import Federation
from server.finished import finished_task
from server.judges import able


def calibrate(run: Federation, stage: str) -> Calibration:
    """Fit a stage's calibration from sums over the sites' validation images.

    No site's scores leave it: each sends, for every point of the calibration's grid, the sum of its
    negative log-likelihoods, and the grid point with the least total is taken.
    """
    spec, events, cfg = run.spec, run.events, run.spec.stage(stage)
    task, weights, own = finished_task(spec, run.run_state, stage)
    deadline = time.monotonic() + run.terms.deadline_s
    parcel, prior = known_already(weights), run.prior.tolist()
    asked = able(run.run_state.claims, run.exchange.everyone())
    answer = run.exchange.evaluate(
        EvaluateRequest(task, weights, prior, 0, deadline, own, sums=True, parcel=parcel, asked=asked)
    )
    metrics = answer.metrics
    run.run_state.bytes_sent += answer.outcome.bytes_sent
    blended, taken = cfg.blend, calibration.prior_taken(cfg, stage)
    shape = calibration.grid(spec.task, blended=blended).shape
    tables = {name: calibration_table(site, shape) for name, site in sorted(metrics.items())}
    images = {name: int(metrics[name].get("num_examples", 0)) for name, table in tables.items() if table is not None}
    said = {name: table for name, table in tables.items() if table is not None and images[name] > 0}
    sites, bounds = len(run.exchange.everyone()), run.hooks.bounds
    if answer.summed is None:
        total, count = combined(said, images, shape, bounds.share(sites), guarded=bounds.guarded(sites))
    else:  # of a sum nobody can take one site's word out
        table, count = calibration_table(answer.summed, shape), int(answer.summed.get("num_examples", 0))
        total, count = (np.zeros(shape), 0) if table is None else (table, count)
    for name in (name for name, table in tables.items() if table is None):
        events.emit("site_refused", site=name, code="metrics", stage=stage, round=0)
    fitted = calibration.choose(total, count, run.prior, spec.task, blended=blended, taken=taken)
    events.emit(
        "calibrated", arm=spec.arm, stage=stage, images=count, nll=fitted.nll, scale=fitted.scale, blend=fitted.blend
    )
    return fitted


def calibration_table(metrics: Mapping[str, float], shape: tuple[int, int]) -> np.ndarray | None:
    """A site's ``(I, J)`` sums; none if it sent some cells only."""
    if not metrics.get("num_examples", 0):
        return np.zeros(shape)
    names = [[f"nll/{i}/{j}" for j in range(shape[1])] for i in range(shape[0])]
    if not all(name in metrics for row in names for name in row):
        return None
    return np.array([[metrics[name] for name in row] for row in names])


def combined(
    tables: Mapping[str, np.ndarray],
    images: Mapping[str, int],
    shape: tuple[int, int],
    max_share: float,
    *,
    guarded: bool,
) -> tuple[np.ndarray, int]:
    """The sites' sums as one table ``(I, J)``, and the number of images that it stands for.

    Without a guard it is the sum, which equals the table of all images together, to the bit. With a guard each site's
    table is divided by its images, its own least value is taken from it (how hard its images are must not give it a
    voice in the choice), and at each point a mean over the sites is taken that leaves out either end. A point that is
    chosen is then good for sites beside any single one.

    Args:
        tables: by site; each of at least one image.
        images: of each site.
        shape: of a table.
        max_share: the largest share of one site.
        guarded: whether one site of the run is to be withstood.
    """
    if not guarded:
        total = sum((tables[name] for name in sorted(tables)), np.zeros(shape))
        return total, sum(images[name] for name in tables)
    if len(tables) < 2:
        return np.zeros(shape), 0  # what one site alone says is nobody's calibration
    names = sorted(tables)
    weights = capped({name: float(images[name]) for name in names}, max_share)
    count = max(1, int(sum(weights.values())))
    means = [tables[name] / images[name] for name in names]
    if len(tables) < LEAST_SITES:
        whole = sum(weights[name] for name in names)
        mean = sum((weights[name] / whole * value for name, value in zip(names, means, strict=True)), np.zeros(shape))
        return mean * count, count
    least = [value.min() for value in means]
    shares = [weights[name] for name in names]
    regret = trimmed([value - low for value, low in zip(means, least, strict=True)], shares)
    return (regret + trimmed(least, shares)) * count, count
