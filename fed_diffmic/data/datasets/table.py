"""A hospital's own table: ``image,label[,patient_id,institution,split]``, image paths relative to the table."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.data.checks import ungrouped
from fed_diffmic.data.datasets import register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import (
    NO_FINDING,
    SEPARATOR,
    class_indices,
    label_sets,
    natural_order,
    report_spellings,
    split_names,
)
from fed_diffmic.data.manifest import TASKS, Manifest, Rows
from fed_diffmic.data.subgroups import subgroup_texts
from fed_diffmic.data.tables import Table, check_filled, read_table
from fed_diffmic.data.tree import Located, NearNames, keep_found, root_folder
from fed_diffmic.errors import DataError

_OPTIONAL = ("patient_id", "institution")
_DRIVE = re.compile(r"[A-Za-z]:")
# More distinct labels than this, on more than half of the rows, is a column of names or numbers of patients.
_MANY_LABELS = 20


@dataclass(frozen=True)
class Options(DatasetOptions):
    """A hospital's own table: image,label[,patient_id,institution,split]. Say the modality to get its augmentation."""

    root_file: ClassVar[bool] = True


@register_dataset("table", Options)
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Read ``manifest.csv``, or the only ``.csv`` or ``.tsv`` of the folder, or ``dataset.root`` if it is a file.

    Labels are names, several separated by ``|`` (multi-label). Without ``dataset.classes`` the classes are the names
    found, sorted (numbers by value); ordered grades that are no numbers need ``dataset.classes``.

    Raises:
        ConfigError: no such root.
        DataError: no table, or one of which nothing can be used.
    """
    return read_table_of_images(cfg, findings, own_split=True)


def read_table_of_images(cfg: DatasetConfig, findings: Findings, *, own_split: bool) -> Manifest:
    """As :func:`read`; without ``own_split`` a column ``split`` is passed over, unread."""
    path = _table_file(root_folder(cfg))
    optional = [*(column for column in cfg.subgroups if column not in ("image", "label")), *_OPTIONAL]
    if own_split:
        optional.append("split")
    table = read_table(path, findings, required=("image", "label"), optional=tuple(dict.fromkeys(optional)))
    patients = table.text("patient_id")
    ungrouped(patients, lines=table.lines, table=table.name, field="patient_id", unit="patient", findings=findings)
    splits = split_names(table.text("split"), lines=table.lines, table=table.name, findings=findings)
    task = cfg.task or ("multilabel" if any(SEPARATOR in label for label in table["label"]) else "multiclass")
    paths, near = _paths(table, path.parent, findings)
    outside = paths == "outside"
    named = ~outside & (table["image"] != "")
    paths[~named] = ""
    # Classes are those of rows whose image is there: a spreadsheet's row of totals names none.
    classes = _classes(cfg, table.take(paths != "") if cfg.on_bad_image == "skip" else table, task, findings)
    labels, usable = _labels(table, classes, task, cfg, paths != "", findings)
    usable &= check_filled(table, ("image",), findings)
    usable[named] &= keep_found(
        Located(paths[named], np.zeros(int(named.sum()), dtype=bool), near),
        names=table["image"][named],
        lines=table.lines[named],
        table=table.name,
        field="image",
        cfg=cfg,
        findings=findings,
    )
    usable &= named
    rows = Rows(
        image=paths[usable],
        label=labels[usable],
        group=table.text("patient_id")[usable],
        institution=table.text("institution")[usable],
        split=splits[usable],
        line=table.lines[usable],
        subgroups=subgroup_texts(table, cfg.subgroups, findings)[usable],
    )
    return Manifest.from_rows(
        rows,
        name=cfg.name,
        source=table.name,
        root=path.parent,
        classes=classes,
        task=task,
    )


def _table_file(root: Path) -> Path:
    if root.is_file():
        return root
    named = root / "manifest.csv"
    if named.is_file():
        return named
    tables = sorted(
        p for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv") and p.is_file() and not p.name.startswith(".")
    )
    if len(tables) == 1:
        return tables[0]
    there = f"{len(tables)} tables, none of that name" if tables else "no table"
    raise DataError(
        f"dataset.root holds {there}; looked for manifest.csv, or one single .csv or .tsv file",
        "Name the table manifest.csv, or give the file itself as dataset.root.",
    )


def _classes(cfg: DatasetConfig, table: Table, task: str, findings: Findings) -> tuple[str, ...]:
    """``dataset.classes``, or the names found in the table."""
    if cfg.classes:
        return tuple(cfg.classes)
    texts = set(table["label"])
    names = {name.strip() for text in texts for name in text.split(SEPARATOR)} if task == "multilabel" else texts
    found = natural_order([name for name in names if name and not (task == "multilabel" and name == NO_FINDING)])
    if len(found) > _MANY_LABELS and len(found) > len(table) / 2:
        findings.add(
            "too-many-labels",
            "error",
            f"{len(found)} different labels in {len(table)} rows: this does not look like a column of labels",
            table=table.name,
            field="label",
            count=len(found),
            remedy="Put the labels into the column 'label', or name the classes in dataset.classes.",
        )
        findings.raise_if_errors()
    # Only now: these messages quote the labels, and what was refused above may be the names of patients.
    report_spellings(found, table=table.name, field="label", findings=findings)
    if task == "ordinal" and not all(re.fullmatch(r"\d+", name) for name in found):
        findings.add(
            "unknown-order",
            "error",
            "ordered grades that are not whole numbers have no known order",
            table=table.name,
            field="label",
            count=len(found),
            remedy="Give the grades from lowest to highest in dataset.classes.",
        )
    if len(found) < (1 if task == "multilabel" else 2):
        findings.add(
            "one-class",
            "error",
            f"{len(found)} different label(s) found; {task} needs {1 if task == 'multilabel' else 2} or more",
            table=table.name,
            field="label",
            count=len(found),
            remedy="Add images of another class, or name all classes in dataset.classes.",
        )
        findings.raise_if_errors()
    return tuple(found)


def _labels(
    table: Table, classes: tuple[str, ...], task: str, cfg: DatasetConfig, there: np.ndarray, findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``(N,)`` or ``(N, C)``, and which rows hold a usable one.

    Args:
        there: ``(N,)`` bool, rows whose image was found; the labels of the others do not matter where they are skipped.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}")
    if cfg.on_bad_image == "skip" and there.any() and not there.all():
        labels, usable = _labels(table.take(there), classes, task, replace(cfg, on_bad_image="error"), there, findings)
        spread = np.full((len(table), *labels.shape[1:]), -1 if task != "multilabel" else 0, dtype=labels.dtype)
        spread[there] = labels
        whole = np.zeros(len(table), dtype=bool)
        whole[there] = usable
        return spread, whole
    if task == "multilabel":
        return label_sets(
            table["label"], classes, lines=table.lines, table=table.name, field="label", findings=findings
        )
    filled = check_filled(table, ("label",), findings)
    labels = np.full(len(table), -1, dtype=np.int64)
    labels[filled] = class_indices(
        table["label"][filled], classes, lines=table.lines[filled], table=table.name, field="label", findings=findings
    )
    return labels, labels >= 0


def _paths(table: Table, folder: Path, findings: Findings) -> tuple[np.ndarray, NearNames]:
    """Absolute path of each image, empty where there is none, ``outside`` (a finding) where it leaves ``folder``.

    Also what of the names that are not there is there under a name that is nearly the same.
    """
    listed: dict[str, frozenset[str]] = {}
    paths = np.empty(len(table), dtype=object)
    missing: dict[str, list[str]] = {}
    for i, written in enumerate(table["image"]):
        relative = os.path.normpath(written.replace("\\", "/"))
        if relative.startswith(("/", "../")) or relative == ".." or _DRIVE.match(relative):
            paths[i] = "outside"
            continue
        parent, name = os.path.split(os.path.join(folder, relative))
        if parent not in listed:
            listed[parent] = _files_in(parent)
        paths[i] = os.path.join(parent, name) if name in listed[parent] else ""
        if not paths[i]:
            missing.setdefault(parent, []).append(name)
    near = NearNames()
    for parent, names in missing.items():
        near.look(names, listed[parent])
    outside = paths == "outside"
    if outside.any():
        drive = np.array([_DRIVE.match(str(written)) is not None for written in table["image"]], dtype=bool) & outside
        message = "the path is absolute or leaves the folder of the table"
        if drive.any():
            message = f"{int(drive.sum())} paths begin with a Windows drive (such as C:); {message}"
        findings.add(
            "path-outside",
            "error",
            message,
            table=table.name,
            rows=table.lines[outside],
            field="image",
            remedy="Write image paths relative to the folder of the table, and keep the images below it.",
            names=table["image"][outside],
        )
    return paths, near


def _files_in(folder: str) -> frozenset[str]:
    """Names in a folder: one listing instead of one question for each image. Empty if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        return frozenset()
