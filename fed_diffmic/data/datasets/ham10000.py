"""HAM10000 dermatoscopy (Tschandl et al. 2018; ISIC 2018 task 3): 7 classes, by lesion and institution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.data.checks import group_leak, ungrouped
from fed_diffmic.data.datasets import register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import class_indices, published_classes, task_of
from fed_diffmic.data.manifest import Manifest, Rows
from fed_diffmic.data.published import published_split
from fed_diffmic.data.subgroups import subgroup_texts
from fed_diffmic.data.tables import Table, check_filled, find_table, read_table
from fed_diffmic.data.tree import ImageTree, keep_found, root_folder
from fed_diffmic.errors import DataError

CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")
"""Order of DiffMIC's published split and of the ISIC 2018 ground truth."""

_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "HAM10000_metadata.tsv")
_TRUTH = ("ISIC2018_Task3_Training_GroundTruth.csv", "ISIC2018_Task3_*GroundTruth.csv")
_LESIONS = ("ISIC2018_Task3_*LesionGroupings.csv",)


@dataclass(frozen=True)
class Options(DatasetOptions):
    """HAM10000 dermatoscopy (Tschandl et al. 2018): 7 diagnoses; group = lesion, institution = column dataset."""

    published_split: ClassVar[bool] = True
    public: ClassVar[bool] = True


@register_dataset("ham10000", Options, modality="dermoscopy")
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Read the metadata table (comma or tab), or, where there is none, the ISIC 2018 one-hot ground truth.

    Images lie anywhere below the root under their ``image_id``. The ground truth names no lesion: the ISIC
    lesion groupings are used if they are there, else every image counts as its own lesion, which is said.

    Raises:
        ConfigError: no such root; ``dataset.task`` or ``dataset.classes`` does not fit the data set.
        DataError: no table, or one of which nothing can be used.
    """
    root = root_folder(cfg)
    task = task_of(cfg, "multiclass", ("multiclass",))
    classes = published_classes(cfg, CLASSES)
    table = _read_labels(root, cfg.subgroups, findings)
    lesions = table.text("lesion_id")
    ungrouped(lesions, lines=table.lines, table=table.name, field="lesion_id", unit="lesion", findings=findings)
    labels = class_indices(
        table["dx"], classes, lines=table.lines, table=table.name, field=_label_field(table), findings=findings
    )
    splits = np.full(len(table), "", dtype=object)
    usable = labels >= 0
    if cfg.split == "published":
        own = np.array([CLASSES.index(dx) if dx in CLASSES else -1 for dx in table["dx"]], dtype=np.int64)
        splits = published_split(root, table, "image_id", own, findings)
        usable &= splits != ""
        known = table.text("lesion_id") != ""
        group_leak(
            table.text("lesion_id")[known],
            splits[known],
            table.lines[known],
            table=table.name,
            unit="lesion",
            published=True,
            findings=findings,
        )
    located = ImageTree.scan(root).locate(table["image_id"], ending=False)
    usable &= keep_found(
        located,
        names=table["image_id"],
        lines=table.lines,
        table=table.name,
        field="image_id",
        cfg=cfg,
        findings=findings,
    )
    rows = Rows(
        image=located.paths[usable],
        label=labels[usable],
        group=table.text("lesion_id")[usable],
        institution=table.text("dataset")[usable],
        split=splits[usable],
        line=table.lines[usable],
        subgroups=subgroup_texts(table, cfg.subgroups, findings)[usable],
    )
    return Manifest.from_rows(
        rows,
        name=cfg.name,
        source=table.name,
        root=root,
        classes=classes,
        task=task,
    )


def _label_field(table: Table) -> str:
    return "dx" if "dx" in table.header else ", ".join(name.upper() for name in CLASSES)


def _read_labels(root: Path, subgroups: Sequence[str], findings: Findings) -> Table:
    """A table with ``image_id``, ``dx`` and, where known, ``lesion_id`` and ``dataset``."""
    try:
        path = find_table(root, _METADATA, "HAM10000 metadata", findings)
    except DataError:
        try:
            path = find_table(root, _TRUTH, "ground truth", findings)
        except DataError:
            raise DataError(
                f"dataset.root holds no table of HAM10000; looked for {', '.join((*_METADATA, *_TRUTH))} "
                "in it and one folder down",
                "Point dataset.root at the folder that holds the metadata, or choose another layout: dataset=NAME.",
            ) from None
        return _read_truth(root, path, findings)
    optional = tuple(dict.fromkeys(("lesion_id", "dataset", *subgroups)))
    table = read_table(path, findings, required=("image_id", "dx"), optional=optional)
    return table.take(check_filled(table, ("image_id", "dx"), findings))


def _read_truth(root: Path, path: Path, findings: Findings) -> Table:
    columns = [name.upper() for name in CLASSES]
    table = read_table(path, findings, required=("image", *columns))
    marks = np.stack([np.isin(table[column], ("1", "1.0")) for column in columns], axis=1)
    zeros = np.stack([np.isin(table[column], ("0", "0.0")) for column in columns], axis=1)
    one_hot = (marks.sum(axis=1) == 1) & (marks | zeros).all(axis=1)
    if not one_hot.all():
        message = "not exactly one class marked 1.0 and the others 0.0"
        findings.add(
            "not-one-hot", "error", message, table=table.name, rows=table.lines[~one_hot], field=", ".join(columns)
        )
    names = np.array(CLASSES, dtype=object)[marks.argmax(axis=1)]
    renamed = Table(
        table.name,
        {"image_id": table["image"], "dx": names} | _lesions(root, table, findings),
        table.lines,
        table.header,
    )
    return renamed.take(one_hot & check_filled(renamed, ("image_id",), findings))


def _lesions(root: Path, table: Table, findings: Findings) -> dict[str, np.ndarray]:
    """Lesion of each image by the ISIC groupings, if they are there."""
    try:
        path = find_table(root, _LESIONS, "lesion groupings", findings)
    except DataError:
        return {}
    groupings = read_table(path, findings, required=("image", "lesion_id"))
    lesion = dict(zip(groupings["image"], groupings["lesion_id"], strict=True))
    return {"lesion_id": np.array([lesion.get(name, "") for name in table["image"]], dtype=object)}
