"""PMG2000, the ultrasound data set of the DiffMIC papers: an image and one of 4 ordered grades in each row.

The images are not released; the layout is that of the authors' lists. As CSV: ``image`` and ``label`` (or ``grade``).
As pickle: a list of dicts, read by :mod:`fed_diffmic.data.plain_pickle`. Grades are 0 to 3, or 1 to 4.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.data.checks import ungrouped
from fed_diffmic.data.datasets import register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import class_indices, grade_names, task_of
from fed_diffmic.data.manifest import Manifest, Rows
from fed_diffmic.data.plain_pickle import MAX_BYTES, PlainPickleError, load_plain
from fed_diffmic.data.tables import Table, check_filled, read_table
from fed_diffmic.data.tree import ImageTree, Located, keep_found, root_folder
from fed_diffmic.errors import ConfigError, DataError, MachineError

GRADES = 4
_IMAGE_KEYS = ("image", "img_root", "img", "img_path", "path", "file", "filename", "name")
_LABEL_KEYS = ("label", "grade", "class", "target")
_PATIENT = "patient_id"
_CSV = ("pmg2000.csv", "manifest.csv")


@dataclass(frozen=True)
class Options(DatasetOptions):
    """PMG2000 placenta ultrasound (DiffMIC-v2's authors): 4 grades, from their own list."""

    published_split: ClassVar[bool] = True
    public: ClassVar[bool] = True


@register_dataset("pmg2000", Options, modality="ultrasound")
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Read ``pmg2000.csv``, ``manifest.csv``, the only ``.csv``, or every ``.pkl`` / ``.pickle`` list of the root.

    Images are looked for under the path given, relative to the root, else anywhere below it by file name (the lists
    hold paths of their authors' machine). With ``dataset.split=published`` a list with train, val or test in its file
    name is that part. ``dataset.classes`` renames the grades, in order.

    Raises:
        ConfigError: no such root; ``dataset.task``, ``.classes`` or ``.split`` does not fit the data set.
        DataError: no list, or one of which nothing can be used.
    """
    root = root_folder(cfg)
    task = task_of(cfg, "ordinal", ("ordinal", "multiclass"))
    classes = grade_names(cfg, GRADES)
    tree = ImageTree.scan(root)
    tables = _read_lists(root, findings)
    first = 1 if _counted_from_one(tables) else 0
    parts = [_manifest(cfg, root, tree, table, classes, task, first, findings) for table in tables]
    if len(parts) == 1:
        return parts[0]
    t = np.concatenate
    rows = Rows(
        image=t([part.table["image"] for part in parts]),
        label=t([part.labels for part in parts]),
        group=t([part.table["group"] for part in parts]),
        split=t([part.table["split"] for part in parts]),
        line=t([part.table["line"] for part in parts]),
    )
    return Manifest.from_rows(
        rows,
        name=cfg.name,
        source=", ".join(part.source for part in parts),
        root=root,
        classes=classes,
        task=task,
    )


def _manifest(
    cfg: DatasetConfig,
    root: Path,
    tree: ImageTree,
    table: Table,
    classes: tuple[str, ...],
    task: str,
    first: int,
    findings: Findings,
) -> Manifest:
    grades = [str(grade + first) for grade in range(GRADES)]
    labels = class_indices(
        table["label"], grades, lines=table.lines, table=table.name, field="label", findings=findings
    )
    patients = table.text(_PATIENT)
    ungrouped(patients, lines=table.lines, table=table.name, field=_PATIENT, unit="patient", findings=findings)
    located = _locate(table["image"], root, tree)
    usable = (labels >= 0) & keep_found(
        located,
        names=table["image"],
        lines=table.lines,
        table=table.name,
        field="image",
        cfg=cfg,
        findings=findings,
    )
    rows = Rows(
        image=located.paths[usable],
        label=labels[usable],
        group=table.text(_PATIENT)[usable],
        split=_split_of(cfg, table.name),
        line=table.lines[usable],
    )
    return Manifest.from_rows(
        rows,
        name=cfg.name,
        source=table.name,
        root=root,
        classes=classes,
        task=task,
    )


def _split_of(cfg: DatasetConfig, name: str) -> str:
    if cfg.split != "published":
        return ""
    found = [split for split in ("train", "val", "test") if split in name.lower()]
    if len(found) != 1:
        raise ConfigError(
            "dataset.split",
            cfg.split,
            "none; the lists of this folder do not say by their names which is train, val or test",
        )
    return found[0]


def _locate(names: np.ndarray, root: Path, tree: ImageTree) -> Located:
    """Paths below the root, and where a bare name fits several files; see :meth:`ImageTree.locate`."""
    below = {path.removeprefix(f"{root}/"): path for paths in tree.by_name.values() for path in paths}
    relative = [os.path.normpath(name.replace("\\", "/")) for name in names]
    bare = np.array([os.path.basename(name) for name in relative], dtype=object)
    located = tree.locate(bare, ending=True)
    exact = np.array([below.get(name, "") for name in relative], dtype=object)
    paths = np.where(exact != "", exact, located.paths)
    return replace(located, paths=paths, several=located.several & (exact == ""))


def _counted_from_one(tables: list[Table]) -> bool:
    """Grades 1 to 4 are told from 0 to 3 by a 4 without any 0."""
    found = {label for table in tables for label in table["label"]}
    return str(GRADES) in found and "0" not in found


def _read_lists(root: Path, findings: Findings) -> list[Table]:
    pickles = sorted(p for p in root.iterdir() if p.suffix.lower() in (".pkl", ".pickle") and p.is_file())
    tables = sorted(
        p for p in root.iterdir() if p.suffix.lower() == ".csv" and p.is_file() and not p.name.startswith(".")
    )
    named = [p for p in tables if p.name in _CSV] or (tables if len(tables) == 1 else [])
    if named:
        return [_read_csv(named[0], findings)]
    if not pickles:
        raise DataError(
            f"dataset.root holds no list of PMG2000; looked for "
            f"{', '.join(_CSV)}, one single .csv file, *.pkl, *.pickle",
            "Point dataset.root at the folder with the list and the images, or choose another layout: dataset=NAME.",
        )
    lists = [table for path in pickles if (table := _read_pickle(path, findings)) is not None]
    if not lists:
        findings.raise_if_errors()
    return lists


def _read_csv(path: Path, findings: Findings) -> Table:
    table = read_table(path, findings, required=("image",), optional=(*_LABEL_KEYS, _PATIENT))
    label = next((key for key in _LABEL_KEYS if key in table), None)
    if label is None:
        read_table(path, findings, required=("image", "label"))  # reports the missing column
        raise AssertionError("a missing column has left an error")
    columns = {"image": table["image"], "label": table[label], _PATIENT: table.text(_PATIENT)}
    table = Table(table.name, columns, table.lines, table.header)
    return table.take(check_filled(table, ("image", "label"), findings))


def _read_pickle(path: Path, findings: Findings) -> Table | None:
    """One pickled list; rows are numbered from 1. None, with a finding, if it is anything else."""
    try:
        value = load_plain(_bytes_of(path))
        rows = [_row(item) for item in value] if isinstance(value, list) else None
    except PlainPickleError as error:
        remedy = "Ask for the list as CSV (image,label), or write it again with plain strings and numbers only."
        findings.add(
            "unsafe-pickle", "error", f"the list is not read: {error}", table=path.name, count=1, remedy=remedy
        )
        return None
    if not rows:
        findings.add(
            "malformed-table", "error", "not a list of dicts with an image and a grade", table=path.name, count=1
        )
        return None
    good = [row is not None for row in rows]
    wrong = [number for number, ok in enumerate(good, start=1) if not ok]
    if wrong:
        message = (
            f"entries that are no dict with a text under one of {', '.join(_IMAGE_KEYS)} "
            f"and a whole number under one of {', '.join(_LABEL_KEYS)}"
        )
        findings.add("malformed-table", "error", message, table=path.name, rows=wrong)
    kept = [row for row in rows if row is not None]
    if not kept:
        return None
    columns = {}
    for index, name in enumerate(("image", "label", _PATIENT)):
        columns[name] = np.array([row[index] for row in kept], dtype=object)
    lines = np.flatnonzero(good).astype(np.int64) + 1
    return Table(path.name, columns, lines, ("image", "label", _PATIENT))


def _row(item: Any) -> tuple[str, str, str] | None:
    """Image, grade and patient of one entry."""
    if not isinstance(item, dict):
        return None
    image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
    label = next((item[key] for key in _LABEL_KEYS if key in item), None)
    patient = item.get(_PATIENT, "")
    if (
        not isinstance(image, str)
        or not image.strip()
        or isinstance(label, bool)
        or not isinstance(patient, (str, int))
    ):
        return None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, (int, str)):
        return None
    return image.strip(), str(label).strip(), str(patient).strip()


def _bytes_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise MachineError(
            f"cannot read {path.name}: {error.strerror}", "Check that the file is there and readable."
        ) from None
