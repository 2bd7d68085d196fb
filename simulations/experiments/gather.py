"""The sections of an experiment's folder: its finished cells, sorted by the axes along which they are compared."""

from __future__ import annotations

from pathlib import Path

from fed_diffmic.files import read_json
from simulations.experiments.compare import Section, seed_section
from simulations.experiments.definition import FOLD
from simulations.experiments.elsewhere import Elsewhere, judged_elsewhere
from simulations.experiments.folds import folded_section
from simulations.experiments.runner import CELLS, read_index

COMPARED = ("seed", "method", FOLD)


def grouped(out: Path) -> tuple[dict[tuple[tuple[str, str], ...], dict[str, dict[str, list[Path]]]], int]:
    """Finished runs by the values of the other axes, then method -> seed -> folders of the folds; how many folds.

    Raises:
        UsageError: the folder holds no experiment.
    """
    index = read_index(out)
    folds = len({cell["place"].get(FOLD) for cell in index["cells"]} - {None})
    groups: dict[tuple[tuple[str, str], ...], dict[str, dict[str, list[Path]]]] = {}
    done = [cell for cell in index["cells"] if (out / CELLS / cell["name"] / "summary.json").exists()]
    for cell in done:
        _of(groups, cell["place"])  # methods as they were named: the first is the one that is asked about
    # Seeds and folds by number, not as they were begun: in which order parts of an experiment were run changes nothing.
    for cell in sorted(done, key=lambda cell: [int(cell["place"].get(axis, 0)) for axis in ("seed", FOLD)]):
        folder, place = out / CELLS / cell["name"], cell["place"]
        _of(groups, place).setdefault(place["seed"], []).append(folder)
        # How many folds there are is the run's to say: the index of a part of them (axes.fold=1) has fewer.
        if folds:
            folds = max(folds, read_json(folder / "summary.json").get("partition", {}).get("folds", 0))
    return groups, folds


def _of(
    groups: dict[tuple[tuple[str, str], ...], dict[str, dict[str, list[Path]]]], place: dict[str, str]
) -> dict[str, list[Path]]:
    """The seeds of a cell's method, among those that share its other axes."""
    rest = tuple((axis, value) for axis, value in place.items() if axis not in COMPARED)
    return groups.setdefault(rest, {}).setdefault(place.get("method", "federated"), {})


def incomplete(out: Path) -> str:
    """Why there is nothing to compare yet: what the seeds lack; empty where one is whole.

    Raises:
        UsageError: the folder holds no experiment.
    """
    groups, folds = grouped(out)
    if not groups:
        return "no cell has metrics yet"
    index = read_index(out)
    missing = []
    for rest, done in groups.items():
        for seed in dict.fromkeys(cell["place"]["seed"] for cell in index["cells"]):
            lacks = []
            for method, seeds in done.items():  # one of which nothing is there yet does not stop the others' comparison
                runs = seeds.get(seed, [])
                had = {read_json(run / "summary.json").get("partition", {}).get("fold") for run in runs}
                without = ", ".join(str(fold) for fold in range(folds) if fold not in had)
                if without or not runs:
                    named = {"method": method} if "method" in index["axes"] else {}
                    place = {**dict(rest), "seed": seed, **named}
                    where = " ".join(f"{axis} {value}" for axis, value in place.items())
                    lacks.append(f"{where} (fold {without} of {folds})" if folds else where)
            if not lacks:
                return ""
            missing += lacks
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"no seed is whole yet; not there: {'; '.join(missing[:3])}{more}"


def sections(out: Path) -> list[Section]:
    """Every section of an experiment's folder that has metrics.

    Raises:
        UsageError: it holds no experiment, or methods of it were not tested on the same images.
        ModelFileError: a finished cell's files are torn.
    """
    groups, folds = grouped(out)
    if folds:
        return [folded_section(dict(rest), methods, folds) for rest, methods in groups.items()]
    return [
        seed_section(dict(rest), {m: {s: found[0] for s, found in seeds.items()} for m, seeds in methods.items()})
        for rest, methods in groups.items()
    ]


def elsewhere(out: Path) -> list[tuple[dict[str, str], list[Elsewhere]]]:
    """The test sets from elsewhere of each section.

    Raises:
        UsageError: the folder holds no experiment.
        ModelFileError: a finished cell's files are torn.
    """
    groups, folds = grouped(out)
    return [(dict(rest), judged_elsewhere(methods, folds)) for rest, methods in groups.items()]
