"""Labels as written to class indices or 0/1 vectors, every unknown one found and located."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import SPLITS
from fed_diffmic.data.spelling import alike
from fed_diffmic.errors import ConfigError

SEPARATOR = "|"
CHESTXRAY14_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""Labels of ChestX-ray14 in the order of the CheXNet lists (Rajpurkar et al. 2017)."""

NO_FINDING = "No Finding"
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_OTHER_SEPARATORS = re.compile("[,;]")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def natural_order(names: Sequence[str]) -> list[str]:
    """Names sorted; by value where every one is a number ('2' before '10')."""
    if names and all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def task_of(cfg: DatasetConfig, default: str, allowed: Sequence[str]) -> str:
    """``dataset.task``, or the layout's own.

    Raises:
        ConfigError: the layout cannot be read as that task.
    """
    task = cfg.task or default
    if task not in allowed:
        raise ConfigError("dataset.task", task, f"{', '.join(allowed)} (what the layout {cfg.name} holds)")
    return task


def grade_names(cfg: DatasetConfig, grades: int) -> tuple[str, ...]:
    """Names of the grades 0, 1, ..., in that order: ``dataset.classes`` renames them, and may not reorder them.

    Raises:
        ConfigError: another number of names, or the grades' own numbers in another order.
    """
    own = tuple(str(grade) for grade in range(grades))
    names = tuple(cfg.classes) if cfg.classes else own
    if len(set(names)) != grades or len(names) != grades or (set(names) & set(own) and names != own):
        raise ConfigError(
            "dataset.classes",
            list(names),
            f"{grades} different names for the grades {own[0]} to {own[-1]}, in that order",
        )
    return names


def published_classes(cfg: DatasetConfig, published: Sequence[str]) -> tuple[str, ...]:
    """``dataset.classes`` (some of the published names, in any order), or all of them in the published order.

    Raises:
        ConfigError: a name that the data set does not have, or one given twice.
    """
    classes = tuple(cfg.classes) if cfg.classes else tuple(published)
    if set(classes) - set(published) or len(set(classes)) != len(classes):
        raise ConfigError("dataset.classes", list(classes), f"different names out of {', '.join(published)}")
    return classes


def class_indices(
    values: np.ndarray, classes: Sequence[str], *, lines: np.ndarray, table: str, field: str, findings: Findings
) -> np.ndarray:
    """``(N,)`` int64 class indices of label names; -1, with a finding, where a name is unknown."""
    index = {name: i for i, name in enumerate(classes)}
    result = np.array([index.get(value, -1) for value in values], dtype=np.int64)
    _report_unknown(values, result < 0, classes, lines=lines, table=table, field=field, findings=findings)
    return result


def label_sets(
    values: np.ndarray,
    classes: Sequence[str],
    *,
    lines: np.ndarray,
    table: str,
    field: str,
    findings: Findings,
    known: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Multi-hot labels of ``A|B`` texts: ``(N, C)`` int8, and which rows could be read, ``(N,)`` bool.

    An empty text, and ``No Finding`` alone where it is no class, is an image that carries none of the labels.
    ``No Finding`` beside another label contradicts itself: a finding.

    Args:
        known: names that are no classes of this run but rightly there (their bits are dropped).
    """
    import pandas as pd

    codes, texts = pd.factorize(values)
    index = {name: i for i, name in enumerate(classes)}
    passed = {*known, NO_FINDING}
    bits = np.zeros((len(texts), len(classes)), dtype=np.int8)
    unknown = np.zeros(len(texts), dtype=bool)
    torn = np.zeros(len(texts), dtype=bool)
    for i, text in enumerate(texts):
        names = [name for name in (part.strip() for part in str(text).split(SEPARATOR)) if name]
        torn[i] = NO_FINDING in names and len(set(names)) > 1
        for name in names:
            if name in index:
                bits[i, index[name]] = 1
            elif name not in passed:
                unknown[i] = True
    _report_unknown(values, unknown[codes], classes, lines=lines, table=table, field=field, findings=findings)
    if torn.any():
        message = f"'{NO_FINDING}' together with another label"
        findings.add("contradicting-labels", "error", message, table=table, rows=lines[torn[codes]], field=field)
    return bits[codes], ~(unknown | torn)[codes]


def report_spellings(classes: Sequence[str], *, table: str, field: str, findings: Findings) -> None:
    """Say which classes found in a table may be one spelt in several ways, or several in one field."""
    for names in alike(classes):
        findings.add(
            "label-spelt-twice",
            "warning",
            f"{', '.join(repr(name) for name in names)} differ only in how they are written; each counts as a class",
            table=table,
            field=field,
            count=len(names),
            remedy="Write each label in one way, or name the classes in dataset.classes.",
        )
    joined = [name for name in classes if len([part for part in _OTHER_SEPARATORS.split(name) if part.strip()]) > 1]
    parts = {part.strip() for name in joined for part in _OTHER_SEPARATORS.split(name)}
    if len(joined) > 1 or parts & set(classes):
        findings.add(
            "label-separator",
            "warning",
            f"{len(joined)} labels hold ',' or ';', which do not separate labels: each is one class "
            f"({', '.join(map(repr, joined[:3]))})",
            table=table,
            field=field,
            count=len(joined),
            remedy="Separate several labels of an image by '|'.",
        )


def _report_unknown(
    values: np.ndarray,
    wrong: np.ndarray,
    classes: Sequence[str],
    *,
    lines: np.ndarray,
    table: str,
    field: str,
    findings: Findings,
) -> None:
    if not wrong.any():
        return
    # The value itself is shown only where it is plainly a label: a shifted column would put patients into the message.
    near = {}
    for value in dict.fromkeys(values[wrong].tolist()):
        for name in str(value).split(SEPARATOR):
            match = difflib.get_close_matches(name.strip(), classes, n=1, cutoff=0.75)
            if match and name.strip() != match[0]:
                near[name.strip()] = match[0]
        if len(near) == 3:
            break
    hint = "".join(f"; '{written}' may be meant as '{name}'" for written, name in near.items())
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    findings.add(
        "unknown-label",
        "error",
        f"not one of the {len(classes)} classes ({shown}){hint}",
        table=table,
        rows=lines[wrong],
        field=field,
        remedy="Correct these labels, or leave these rows out: the model has no other classes."
        if findings.trained
        else "Correct these labels, or name all classes in dataset.classes.",
        names=values[wrong],
    )


def split_names(values: np.ndarray, *, lines: np.ndarray, table: str, findings: Findings) -> np.ndarray:
    """``(N,)`` object: a table's own ``split`` column as train, val or test; all empty means no split.

    Unknown words, and rows left empty where others are filled, are findings: such a row belongs nowhere.
    """
    words = np.array([_SPLIT_WORDS.get(str(value).lower(), "") for value in values], dtype=object)
    unknown = (words == "") & (values != "")
    if unknown.any():
        findings.add(
            "unknown-split",
            "error",
            f"not one of {', '.join(SPLITS)}",
            table=table,
            rows=lines[unknown],
            field="split",
            names=values[unknown],
        )
    empty = values == ""
    if empty.any() and not empty.all():
        findings.add(
            "empty-value",
            "error",
            "no split, while other rows have one",
            table=table,
            rows=lines[empty],
            field="split",
            remedy="Fill the split column in every row, or leave it out and let each site split by group.",
        )
    return words
