"""APTOS 2019 fundus photographs: five ordered grades of diabetic retinopathy, no patient known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.data.checks import ungrouped
from fed_diffmic.data.datasets import register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import class_indices, grade_names, task_of
from fed_diffmic.data.manifest import Manifest, Rows
from fed_diffmic.data.published import published_split
from fed_diffmic.data.tables import check_filled, find_table, read_table
from fed_diffmic.data.tree import ImageTree, keep_found, root_folder

GRADES = 5


@dataclass(frozen=True)
class Options(DatasetOptions):
    """APTOS 2019 fundus photographs: 5 ordered grades of diabetic retinopathy."""

    published_split: ClassVar[bool] = True
    public: ClassVar[bool] = True


@register_dataset("aptos2019", Options, modality="fundus")
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Read ``train.csv`` (``id_code,diagnosis``) and the images below ``train_images/`` (or anywhere below the root).

    ``dataset.classes`` renames the grades 0 to 4, in that order.

    Raises:
        ConfigError: no such root; ``dataset.task`` or ``dataset.classes`` does not fit the data set.
        DataError: no table, or one of which nothing can be used.
    """
    root = root_folder(cfg)
    task = task_of(cfg, "ordinal", ("ordinal", "multiclass"))
    classes = grade_names(cfg, GRADES)
    path = find_table(root, ("train.csv",), "table of APTOS 2019")
    table = read_table(path, findings, required=("id_code", "diagnosis"))
    table = table.take(check_filled(table, ("id_code", "diagnosis"), findings))
    grades = [str(grade) for grade in range(GRADES)]
    labels = class_indices(
        table["diagnosis"], grades, lines=table.lines, table=table.name, field="diagnosis", findings=findings
    )
    usable = labels >= 0
    splits = np.full(len(table), "", dtype=object)
    if cfg.split == "published":
        splits = published_split(root, table, "id_code", labels, findings)
        usable &= splits != ""
    nobody = np.full(len(table), "", dtype=object)
    ungrouped(nobody, lines=table.lines, table=table.name, field="", unit="patient", findings=findings)
    folder = root / "train_images"
    located = ImageTree.scan(folder if folder.is_dir() else root).locate(table["id_code"], ending=False)
    usable &= keep_found(
        located,
        names=table["id_code"],
        lines=table.lines,
        table=table.name,
        field="id_code",
        cfg=cfg,
        findings=findings,
    )
    rows = Rows(
        image=located.paths[usable],
        label=labels[usable],
        group=nobody[usable],
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
