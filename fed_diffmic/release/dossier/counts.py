"""Counts of few images or patients are not shown, nor any from which one could be had by subtraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fed_diffmic.release.dossier.facts import SUMMARY, Fact, Sources
from fed_diffmic.training.few import suppress

SPLITS = ("train", "val", "test")
LEAST = 10
"""Images; the default of a site's ``policy.min_count``."""
FEW = "kept back: few images, or one that few could be had from by subtraction"
NOT_SAID = "kept back by the site"


def shown(counts: Sequence[int | None], least: int) -> list[bool]:
    """Which counts of a total that is known may be shown.

    Args:
        counts: of each; none: somebody kept it back already.
        least: images.
    """
    known = [0 if count is None else count for count in counts]
    if None not in counts:
        return [count is not None for count in suppress(known, least)]
    # What was kept back holds at least one image; with one more beside it, it cannot be had by subtraction.
    found = suppress([1 if count is None else count for count in counts], max(least, 2))
    return [count is not None and given is not None for count, given in zip(found, counts, strict=True)]


def count_facts(
    sources: Sources, file: str, place: tuple[str | int, ...], keys: Sequence[str | int], least: int
) -> list[Fact]:
    """A fact of each count of an object or a list, withheld where it may not be shown."""
    said = [sources.at(file, *place, key) for key in keys]
    counts = [count if type(count) is int else None for count in said]
    facts: list[Fact] = []
    for key, count, may in zip(keys, counts, shown(counts, least), strict=True):
        fact = sources.fact(file, *place, key) if may else None
        facts.append(fact or sources.withheld(NOT_SAID if count is None else FEW, file, *place, key))
    return facts


def split_keys(sources: Sources, site: str) -> list[str]:
    """What the summary calls a site's numbers of training, validation and test images."""
    own = sources.at(SUMMARY, "sites", site) or {}
    return [f"n_{split}" if f"n_{split}" in own else split for split in SPLITS]


def total_tells(sources: Sources, split: str, least: int) -> bool:
    """Whether the images of a split at all sites together would give away how many a site has that are kept back."""
    hidden = []
    for site in sources.at(SUMMARY, "sites") or {}:
        keys = split_keys(sources, site)
        facts = count_facts(sources, SUMMARY, ("sites", site), keys, least)
        said = sources.at(SUMMARY, "sites", site, keys[SPLITS.index(split)])
        if "withheld" in facts[SPLITS.index(split)] and type(said) is int:  # what a site kept back is in no total
            hidden.append(said)
    return bool(hidden) and (len(hidden) == 1 or sum(hidden) < least)


def subgroup_values(values: Mapping[str, Mapping[str, Any]], total: int | None, least: int) -> set[str]:
    """The values of a column whose metrics may be shown.

    Args:
        values: cells by value; ``n`` is none where one was kept back.
        total: images in all, where that is known.
    """
    given = {value: cell["n"] for value, cell in values.items() if cell.get("n") is not None}
    keep = {value for value, n in given.items() if n >= least}
    while keep and len(keep) < len(values):
        hidden = len(values) - len(keep)
        rest = least if total is None else total - sum(given[value] for value in keep)
        if hidden > 1 and rest >= least:
            break
        keep.remove(min(keep, key=lambda value: (given[value], value)))
    return keep
