"""Rules for the share of a site's own model in a mixture, on made-up sites where the best share is known.

    python -m benchmarks.shares [PAGE] [--draws 60] [--seed 0]

A site has the true probabilities of five classes for each of its images; a model of it is those, with noise in their
logarithms. The own model has from much more noise than the global one to much less, and is either as it comes or the
best of twenty on the site's validation images, as rounds, rates and optimizers are chosen. Each rule finds the share on
the validation images; what its mixture costs on 4,000 other images is held against the best share there. Printed is the
mean excess in nats an image over the ten settings, with its standard error over the draws, and that of the rule's worst
setting, by the number of validation images; with ``PAGE`` it is written between ``<!-- shares -->`` and
``<!-- end of shares -->``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.pages import fill
from fed_diffmic.console import run_command
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training.personal import image_losses, mean_share
from simulations.experiments.answer import table

CLASSES = 5
IMAGES = (33, 100, 400)
OTHERS = 4000
NOISE_GLOBAL = 0.7
NOISE_OWN = (2.5, 1.2, 0.7, 0.4, 0.1)
TRIED = (1, 20)
GRID = np.linspace(0.0, 1.0, 51)
Rule = Callable[[np.ndarray, np.random.Generator], float]


def better(losses: np.ndarray, _: np.random.Generator) -> float:
    """The model that costs less, alone."""
    return float(losses[-1].sum() < losses[0].sum())


def least(losses: np.ndarray, _: np.random.Generator) -> float:
    """The share that costs least."""
    return float(GRID[losses.sum(axis=1).argmin()])


def crossfit(losses: np.ndarray, rng: np.random.Generator) -> float:
    """Mean of the shares that cost least without each fifth, if they beat both models there; else the better."""
    fold = rng.permutation(losses.shape[1]) % 5
    found = [int(losses[:, fold != k].sum(axis=1).argmin()) for k in range(5)]
    outside = sum(losses[found[k], fold == k].sum() for k in range(5))
    if outside < min(losses[0].sum(), losses[-1].sum()):
        return float(GRID[found].mean())
    return better(losses, rng)


def one_error(losses: np.ndarray, _: np.random.Generator) -> float:
    """The share nearest to one half within one standard error of the least."""
    best = losses.sum(axis=1).argmin()
    apart = losses - losses[best]
    allowed = apart.mean(axis=1) <= apart.std(axis=1) / np.sqrt(losses.shape[1])
    return float(GRID[np.where(allowed, abs(GRID - 0.5), np.inf).argmin()])


def posterior(losses: np.ndarray, _: np.random.Generator) -> float:
    """The posterior mean under a uniform prior, as the project does."""
    return mean_share(losses, np.arange(losses.shape[1]))


RULES: dict[str, Rule] = {
    "one half, always": lambda *_: 0.5,
    "the better model alone": better,
    "the least loss": least,
    "the least loss, cross-fitted, else the better alone (until 30 November)": crossfit,
    "within one standard error, nearest to one half": one_error,
    "posterior mean (since)": posterior,
}


def simplex(rng: np.random.Generator, logs: np.ndarray, noise: float) -> np.ndarray:
    """``(N, C)`` probabilities whose logarithms are those given, with noise."""
    p = np.exp(logs + noise * rng.normal(size=logs.shape))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def excess(images: int, noise: float, tried: int, rng: np.random.Generator) -> dict[str, float]:
    """What each rule costs above the best share, nats an image, at one made-up site."""
    logs = 1.5 * rng.normal(size=(images + OTHERS, CLASSES))
    labels = (simplex(rng, logs, 0.0).cumsum(axis=1) < rng.random((len(logs), 1))).sum(axis=1).clip(max=CLASSES - 1)
    candidates = (simplex(rng, logs, noise) for _ in range(tried))
    own = min(candidates, key=lambda p: float(image_losses(p[:images], labels[:images]).sum()))
    shared = simplex(rng, logs, NOISE_GLOBAL)
    losses = np.stack([image_losses(w * own + (1 - w) * shared, labels) for w in GRID])
    outside = losses[:, images:].mean(axis=1)
    found = {name: rule(losses[:, :images], rng) for name, rule in RULES.items()}
    return {name: float(np.interp(share, GRID, outside) - outside.min()) for name, share in found.items()}


def lines(draws: int, seed: int) -> list[str]:
    """The table."""
    cells: dict[str, list[str]] = {name: [name] for name in RULES}
    settings = [(noise, tried) for noise in NOISE_OWN for tried in TRIED]
    for images in IMAGES:
        rng = numpy_generator(seed, "shares", str(images))
        drawn = [[excess(images, *setting, rng) for setting in settings] for _ in range(draws)]
        for name, row in cells.items():
            each = np.array([[at[name] for at in one] for one in drawn])
            error = each.mean(axis=1).std(ddof=1) / np.sqrt(draws)
            row.append(f"{each.mean():.4f} ± {error:.4f} (worst {each.mean(axis=0).max():.3f})")
    heads = ["rule", *(f"{images} validation images" for images in IMAGES)]
    said = f"Mean excess in nats an image over {len(settings)} settings, {draws} draws of each; seed {seed}."
    return [*table(heads, list(cells.values())), said]


def main() -> int:
    """Read the arguments, print the table or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.page is None:
        print("\n".join(lines(given.draws, given.seed)))
    else:
        fill(given.page, "shares", lambda: lines(given.draws, given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
