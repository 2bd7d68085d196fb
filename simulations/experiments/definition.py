"""What an experiment is: settings that all its runs share, axes along which they differ, one cell for each combination.

```yaml
about: one line
settings: [dataset=ham10000, partition=institution, stages=linear]
axes:
  seed: [1, 2, 3]                                     # seed=1, seed=2, ...
  fold: 5                                             # every image is a test image once (partition.folds=5)
  partition.alpha: [0.1, 1.0]                         # any setting
  method:                                             # named combinations of settings
    fedavg: [strategy=fedavg]
    fedprox: [strategy=fedprox, strategy.mu=0.1]
```

Methods are compared with one another on the same seeds and folds; along every other axis the report has a section for
each value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fed_diffmic.config.compose import FOLDER, chosen_group, compose, to_yaml
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.text import parse_text
from fed_diffmic.errors import ConfigError, UsageError
from fed_diffmic.files import safe_name

SHIPPED = FOLDER / "experiment"
KEYS = ("about", "settings", "axes")
FOLD = "fold"
MOST_CELLS = 10_000
EXAMPLE = "for example `axes: {seed: [1, 2, 3], method: {fedavg: [strategy=fedavg]}}`"
WRITE = f"Write {EXAMPLE}, each name once."


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Attributes:
        place: value of each axis, in the order of the axes.
        config: checked, ``run.dir`` not set.
    """

    place: Mapping[str, str]
    config: SimulateConfig

    @property
    def name(self) -> str:
        """The cell's folder."""
        return safe_name("_".join(f"{axis}-{value}" for axis, value in self.place.items()))

    @property
    def digest(self) -> str:
        """Of everything that decides its metrics."""
        run = replace(self.config.run, dir=None, tracking="none", deadline_s=86400.0)
        config = replace(self.config, run=run, dataset=replace(self.config.dataset, cache_dir=None))
        return sha256(to_yaml(config).encode()).hexdigest()


@dataclass(frozen=True)
class Experiment:
    """All cells, in the order in which they are run.

    Attributes:
        name: of its file.
        about: one line.
        axes: names, in the order given.
        cells: one for each combination.
    """

    name: str
    about: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]


def shipped() -> dict[str, str]:
    """What each shipped experiment is about, by name."""
    return {path.stem: str(_read(path).get("about", "")) for path in sorted(SHIPPED.glob("*.yaml"))}


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment by its shipped name or the path of its file.

    Args:
        name: ``NAME`` or ``FILE.yaml``.
        overrides: ``key=value`` for every cell (an axis wins over it), or ``axes.NAME=a,b`` to take only some of the
            axis's values, or others for an axis that is a setting.

    Raises:
        UsageError: no such experiment, or its file is not one.
        ConfigError: a cell's configuration is not allowed; names the cell.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(
            f"there is no experiment {name!r}", f"Name a file, or one of {', '.join(shipped()) or '(none shipped)'}."
        )
    tree = _read(path)
    axes = _axes(tree.get("axes"), path)
    chosen = [o for o in overrides if o.startswith("axes.")]
    settings = _texts(tree.get("settings", []), "settings", path)
    asked = [o for o in overrides if o not in chosen]
    for override in chosen:
        axes = _narrowed(axes, override)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_CELLS:
        raise UsageError(f"{path}: {count} combinations; at most {MOST_CELLS}", "Leave some values out.")
    cells = []
    for combination in itertools.product(*(values.items() for values in axes.values())):
        place = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
        own = [setting for _, added in combination for setting in added]
        try:
            config = compose(None, [*_left(settings, [*asked, *own]), *asked, *own])
        except ConfigError as error:
            where = ", ".join(f"{axis} {value}" for axis, value in place.items())
            raise ConfigError(
                error.key, error.value, f"{error.allowed} (in the cell of {where})", error.remedy
            ) from error
        if config.run.dir is not None:
            raise ConfigError("run.dir", config.run.dir, "nothing in an experiment: every cell has a folder of its own")
        cells.append(Cell(place, config))
    names = [cell.name.casefold() for cell in cells]  # some disks take two spellings for one folder
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: two cells have the same name", "Give the axes' values names that differ.")
    return Experiment(path.stem, str(tree.get("about", "")), tuple(axes), tuple(cells))


def _left(settings: Sequence[str], later: Sequence[str]) -> list[str]:
    """The experiment's settings that stay: an option that is named later starts its group afresh."""
    renewed = {chosen_group(override) for override in later} - {None}
    return [setting for setting in settings if setting.partition("=")[0].partition(".")[0].strip() not in renewed]


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = parse_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}", WRITE) from error
    except UsageError as error:  # of two values of one key or name the first would be lost
        raise UsageError(error.cause, WRITE) from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no `name: value`", WRITE)
    if not set(tree) <= set(KEYS):
        found = ", ".join(sorted(set(tree) - set(KEYS)))
        raise UsageError(f"{path}: {found} is not part of an experiment", f"Allowed: {', '.join(KEYS)}.")
    return tree


def _texts(value: Any, key: str, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and "=" in v for v in value):
        raise UsageError(f"{path}: {key} is not a list of key=value", EXAMPLE)
    return list(value)


def _axes(value: Any, path: Path) -> dict[str, dict[str, list[str]]]:
    """Label -> settings for each value of each axis."""
    if not isinstance(value, dict) or not value or "seed" not in value:
        raise UsageError(f"{path}: axes must be a mapping that names at least seed", EXAMPLE)
    axes: dict[str, dict[str, list[str]]] = {}
    for axis, values in value.items():
        if axis == FOLD:
            axes[FOLD] = _folds(values, path)
        elif isinstance(values, list) and values and all(isinstance(v, str) for v in values):
            axes[str(axis)] = {str(v): [f"{axis}={v}"] for v in values}
        elif isinstance(values, dict) and values:
            axes[str(axis)] = {str(label): _texts(v, f"axes.{axis}.{label}", path) for label, v in values.items()}
        else:
            raise UsageError(f"{path}: axes.{axis} is neither a list of values nor a mapping of names", EXAMPLE)
    return axes


def _folds(count: Any, path: Path) -> dict[str, list[str]]:
    if not isinstance(count, str) or not re.fullmatch("[0-9]{1,6}", count) or int(count) < 2:
        raise UsageError(f"{path}: axes.fold is the number of folds, a whole number from 2", "For example `fold: 5`.")
    return {str(fold): [f"partition.folds={count}", f"partition.fold={fold}"] for fold in range(int(count))}


def _narrowed(axes: dict[str, dict[str, list[str]]], override: str) -> dict[str, dict[str, list[str]]]:
    key, equals, text = override.partition("=")
    axis = key.removeprefix("axes.")
    values = [v.strip() for v in text.strip("[] ").split(",") if v.strip()]
    if axis not in axes or not equals or not values:
        raise UsageError(f"{override!r} is not allowed", f"Write axes.NAME=a,b with NAME one of {', '.join(axes)}.")
    known = axes[axis]
    is_setting = all(settings == [f"{axis}={label}"] for label, settings in known.items())
    unknown = [v for v in values if v not in known]
    if unknown and not is_setting:
        raise UsageError(f"axes.{axis} has no value {unknown[0]!r}", f"It has {', '.join(known)}.")
    return {**axes, axis: {v: known.get(v, [f"{axis}={v}"]) for v in values}}
