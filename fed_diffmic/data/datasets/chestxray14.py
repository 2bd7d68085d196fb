"""NIH ChestX-ray14 (Wang et al. 2017): 14 labels, several at once, group = patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.data.checks import group_leak, ungrouped
from fed_diffmic.data.datasets import register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import CHESTXRAY14_LABELS, NO_FINDING, label_sets, published_classes, task_of
from fed_diffmic.data.manifest import Manifest, Rows
from fed_diffmic.data.published import report_unlisted
from fed_diffmic.data.tables import Table, check_filled, find_table, read_table, read_text
from fed_diffmic.data.tree import ImageTree, keep_found, root_folder
from fed_diffmic.errors import DataError

CLASSES = CHESTXRAY14_LABELS

_IMAGE, _LABELS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"
# (files, split of each), the first complete set is used.
_LISTS = (
    {"train_val_list.txt": "train", "test_list.txt": "test"},
    {"chexnet_train_list.txt": "train", "chexnet_val_list.txt": "val", "chexnet_test_list.txt": "test"},
    {"train_list.txt": "train", "val_list.txt": "val", "test_list.txt": "test"},
)
# NIH revised labels of the table after the CheXNet lists were made: up to this share of images may differ.
_REVISED = 0.01


@dataclass(frozen=True)
class Options(DatasetOptions):
    """NIH ChestX-ray14 (Wang et al. 2017): 14 labels, several at once; group = patient."""

    published_split: ClassVar[bool] = True
    public: ClassVar[bool] = True

    no_finding: bool = option(False, "'No Finding' as a 15th label, as in the paper", exclusive=True)


@register_dataset("chestxray14", Options, modality="chest")
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Read ``Data_Entry_2017*.csv``; images lie anywhere below the root.

    ``dataset.no_finding`` adds 'No Finding' as a 15th label, as in the paper. With ``dataset.classes`` only those
    labels are predicted. With ``dataset.split=published`` the official lists (``train_val_list.txt``,
    ``test_list.txt``) or, without them, the CheXNet lists are the split.

    Raises:
        ConfigError: no such root; ``dataset.task`` or ``dataset.classes`` does not fit the data set.
        DataError: no table, or one of which nothing can be used.
    """
    root = root_folder(cfg)
    task = task_of(cfg, "multilabel", ("multilabel",))
    known = (*CLASSES, NO_FINDING)
    classes = published_classes(cfg, known) if cfg.classes else known if Options.of(cfg).no_finding else CLASSES
    path = find_table(root, ("Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv"), "table of ChestX-ray14", findings)
    table = read_table(path, findings, required=(_IMAGE, _LABELS, _PATIENT))
    table = table.take(check_filled(table, (_IMAGE, _LABELS), findings))
    ungrouped(table[_PATIENT], lines=table.lines, table=table.name, field=_PATIENT, unit="patient", findings=findings)
    labels, usable = label_sets(
        table[_LABELS], classes, lines=table.lines, table=table.name, field=_LABELS, findings=findings, known=CLASSES
    )
    dropped = [name for name in CLASSES if name not in classes]
    if dropped:
        message = f"labels that this run does not predict: {', '.join(dropped)}"
        findings.add("label-not-predicted", "warning", message, table=table.name, field=_LABELS, count=len(dropped))
    splits = np.full(len(table), "", dtype=object)
    if cfg.split == "published":
        splits = _published(root, table, findings)
        usable &= splits != ""
    located = ImageTree.scan(root).locate(table[_IMAGE], ending=True)
    usable &= keep_found(
        located,
        names=table[_IMAGE],
        lines=table.lines,
        table=table.name,
        field=_IMAGE,
        cfg=cfg,
        findings=findings,
    )
    rows = Rows(
        image=located.paths[usable],
        label=labels[usable],
        group=table[_PATIENT][usable],
        split=splits[usable],
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


@dataclass(frozen=True)
class _List:
    """One list file: ``names`` ``(n,)``, ``bits`` ``(n, 14)`` or None (an official list), ``lines`` ``(n,)``."""

    file: str
    split: str
    names: np.ndarray
    bits: np.ndarray | None
    lines: np.ndarray


def _published(root: Path, table: Table, findings: Findings) -> np.ndarray:
    """``(N,)`` object: the split that the lists give each row, empty (a warning) where they name it not."""
    chosen = next((names for names in _LISTS if all((root / name).is_file() for name in names)), None)
    if chosen is None:
        sets = " or ".join(" + ".join(names) for names in _LISTS)
        raise DataError(
            f"dataset.root holds no complete published split; looked for {sets}",
            "Put the lists beside the table, or set dataset.split=none to split each site by patient.",
        )
    lists = [item for file, split in chosen.items() if (item := _read_list(root / file, split, findings)) is not None]
    if len(lists) < len(chosen):
        findings.raise_if_errors()
    names = np.concatenate([item.names for item in lists])
    position = {name: i for i, name in enumerate(names)}
    if len(position) < len(names):
        message = "image named more than once in the lists"
        findings.add("duplicate-row", "error", message, table=", ".join(chosen), count=len(names) - len(position))
    where = np.array([position.get(name, -1) for name in table[_IMAGE]], dtype=np.int64)
    listed = where >= 0
    result = np.full(len(table), "", dtype=object)
    result[listed] = np.concatenate([np.full(len(item.names), item.split, dtype=object) for item in lists])[
        where[listed]
    ]
    report_unlisted(listed, table, _IMAGE, ", ".join(chosen), findings)
    own, readable = label_sets(
        table[_LABELS], CLASSES, lines=table.lines, table=table.name, field=_LABELS, findings=Findings(), known=CLASSES
    )
    first = 0
    for item in lists:
        if item.bits is not None:
            here = listed & (where >= first) & (where < first + len(item.names)) & readable
            _cross_check(item, item.bits[where[here] - first], own[here], item.lines[where[here] - first], findings)
        first += len(item.names)
    known = listed & (table[_PATIENT] != "")
    group_leak(
        table[_PATIENT][known],
        result[known],
        table.lines[known],
        table=table.name,
        unit="patient",
        published=True,
        findings=findings,
    )
    return result


def _read_list(path: Path, split: str, findings: Findings) -> _List | None:
    """File names, one a line, with or without the 14 bits of CheXNet; None, with a finding, for anything else."""
    text = read_text(path, findings)
    if text is None:
        return None
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    width = len(rows[0][1]) if rows else 0
    bits = {"0", "1"}
    wrong = [n for n, fields in rows if len(fields) != width or not bits.issuperset(fields[1:])]
    if width not in (1, 1 + len(CLASSES)) or wrong:
        message = f"not a list of file names, alone or each with {len(CLASSES)} bits 0 or 1"
        findings.add("malformed-table", "error", message, table=path.name, rows=wrong or [1])
        return None
    names = np.array([fields[0] for _, fields in rows], dtype=object)
    values = np.array([fields[1:] for _, fields in rows], dtype=np.int8) if width > 1 else None
    return _List(path.name, split, names, values, np.array([n for n, _ in rows], dtype=np.int64))


def _cross_check(item: _List, bits: np.ndarray, own: np.ndarray, lines: np.ndarray, findings: Findings) -> None:
    """Compare a list's ``bits`` ``(n, 14)`` with the table's labels ``own`` ``(n, 14)``, which are the ones used."""
    unlike = (bits != own).any(axis=1)
    if unlike.any():
        few = unlike.sum() <= _REVISED * len(bits)
        findings.add(
            "split-label-mismatch",
            "warning" if few else "error",
            "the list's bits differ from the labels of the table, which was revised later and is what is used"
            if few
            else "the list's bits differ from the labels of the table: they do not belong together",
            table=item.file,
            rows=np.sort(lines[unlike]),
            field=_LABELS,
            remedy="" if few else "Use the table and the lists of ChestX-ray14, or set dataset.split=none.",
        )
