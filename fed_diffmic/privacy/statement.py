"""A run's privacy in plain words, for its report: what the sites claim, and what no claim covers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WORDS = {
    "validation": "metrics over its validation and test images (by which a round was chosen, probabilities were "
    "calibrated and the model is judged)",
    "units": "the number of its training units, from which the sample rate follows",
    "hyperparameters": "settings that were chosen by looking at these data",
    "unprotected": "stages that trained on the same data without privacy",
}


def last_claims(history: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each site's last claim, from a run's rounds."""
    found: dict[str, dict[str, Any]] = {}
    for row in history:
        found |= row.get("privacy") or {}
    return dict(sorted(found.items()))


def last_client_level(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the coordinator's own noise amounts to at the end of a run; empty where there is none."""
    found: dict[str, Any] = {}
    for row in history:
        found = dict(row.get("client_level") or found)
    return found


def statement(
    claims: Mapping[str, Mapping[str, Any]], sites: Iterable[str], client_level: Mapping[str, Any] | None = None
) -> list[str]:
    """Sentences for people; empty where nobody claims anything.

    Args:
        claims: by site (:mod:`fed_diffmic.exchange.claims`).
        sites: all sites of the run.
        client_level: what the coordinator's own noise amounts to (:func:`last_client_level`).
    """
    return [*_sites_say(claims, sites), *_coordinator_says(client_level or {})]


def _coordinator_says(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    return [
        f"The coordinator: ({found['epsilon']:.3f}, {found['delta']:g})-differential privacy for one whole site, its "
        f"updates there or replaced by zero in all rounds, by noise on {found['releases']} averages (noise multiplier "
        f"{found['noise_multiplier']:g}, updates clipped to {found['clip_norm']:g}).",
        "It covers the weights that were released, against whoever sees them; not against the coordinator, who sees "
        "every update; not the sites' class counts and metrics, nor the choice of a round by them; not who took part. "
        "It is another guarantee than a site's own, and neither adds to the other.",
    ]


def _sites_say(claims: Mapping[str, Mapping[str, Any]], sites: Iterable[str]) -> list[str]:
    if not claims:
        return []
    lines = []
    for site, claim in claims.items():
        if not claim["guarantee"]:
            lines.append(f"{site}: no guarantee holds (noise from a fixed seed, or training without privacy).")
            continue
        lines.append(
            f"{site}: ({claim['epsilon_run']:.3f}, {claim['delta']:g})-differential privacy for this run and "
            f"epsilon {claim['epsilon_total']:.3f} of {claim['budget']:g} over all runs, for one {claim['unit']} "
            "more or less in its training set."
        )
        if claim["outside"]:
            lines.append(f"{site}, not covered: {'; '.join(WORDS[item] for item in claim['outside'])}.")
    lines += [f"{site}: claims nothing; its updates carry no noise." for site in sorted(set(sites) - set(claims))]
    lines.append(
        "Each line is the site's own word: the coordinator cannot see noise. Not covered at any site: images of "
        "patients outside its training set, how long a round took, and everything that is known from elsewhere."
    )
    return lines
