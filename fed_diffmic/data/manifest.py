"""The table that every published layout is read into: one row an image, checked when built."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_diffmic.errors import DataError
from fed_diffmic.files import atomic_write

if TYPE_CHECKING:  # listing the options of data sets need not wait for it
    import pandas as pd

TASKS = ("multiclass", "ordinal", "multilabel")
SPLITS = ("train", "val", "test")
_REQUIRED = ("image", "label", "group")
_DEFAULTS: dict[str, Any] = {"institution": "", "split": "", "row": -1, "key": 0, "line": 0, "subgroups": ""}
OWN_GROUP = "image:"
"""Prefix of the group of an image whose patient or lesion is unknown."""
_FORMAT = "fed_diffmic manifest 1"


@dataclass(frozen=True, eq=False)
class Rows:
    """What a reader found, one image a row. ``N`` rows, ``C`` classes.

    Attributes:
        image: ``(N,)`` absolute paths.
        label: ``(N,)`` class indices, or ``(N, C)`` of 0 and 1 (multi-label).
        group: ``(N,)`` patient or lesion; empty: unknown.
        line: ``(N,)`` 1-based line in the source table; 0: there is none.
        institution: ``(N,)``, or one for all; empty: unknown.
        split: ``(N,)``, or one for all: train, val, test; empty: not given.
        subgroups: ``(N,)``, or one for all (:mod:`fed_diffmic.data.subgroups`); empty: none.
    """

    image: np.ndarray
    label: np.ndarray
    group: np.ndarray
    line: np.ndarray
    institution: np.ndarray | str = ""
    split: np.ndarray | str = ""
    subgroups: np.ndarray | str = ""


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images of one data set with their labels, groups, institutions and split. ``N`` rows, ``C`` classes.

    Args:
        table: columns ``image`` (absolute path), ``label`` (class index; multi-label: tuple of ``C`` ints 0/1),
            ``group`` (patient or lesion, what must not be split; never empty, unique for an image whose group is
            unknown), and, filled in when missing, ``institution`` (empty: unknown), ``split`` (empty, train, val or
            test), ``row`` (row in the image cache, -1 before it is built), ``key`` (int64, stable non-negative number
            from the image's content, 0 before the cache is built), ``line`` (1-based line in the source table, 0
            unknown) and ``subgroups`` (:mod:`fed_diffmic.data.subgroups`).
        classes: names in the order of the outputs.
        task: one of :data:`TASKS`.
        name: name of the data set.
        source: file name of the table it was read from, for findings.

    Raises:
        DataError: a column is missing or holds what it may not; the message counts rows and names no image.

    Examples:
        >>> import fed_diffmic as fd
        >>> manifest = fd.datasets.load("aptos2019", "first/phantoms")
        >>> manifest.classes, int(manifest.class_counts().sum())
        (('0', '1', '2', '3', '4'), 48)
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    task: str
    name: str
    source: str = ""

    def __post_init__(self) -> None:
        missing = [column for column in _REQUIRED if column not in self.table.columns]
        if missing:
            raise DataError(
                f"a manifest needs the columns {', '.join(_REQUIRED)}; missing: {', '.join(missing)}",
                "Give the table these columns: what each holds is in docs/data.md.",
            )
        table = self.table.reset_index(drop=True)
        for column, value in _DEFAULTS.items():
            if column not in table.columns:
                table[column] = value
        table = table[[*_REQUIRED, *_DEFAULTS]].copy()
        for column, dtype in (("row", np.int64), ("line", np.int64), ("key", np.int64)):
            table[column] = table[column].astype(dtype)
        for column in ("image", "group", "institution", "split", "subgroups"):
            table[column] = table[column].astype(object)
        if self.task != "multilabel":
            table["label"] = _integers(table["label"])
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        self._check()

    @classmethod
    def from_rows(
        cls, rows: Rows, *, name: str, source: str, root: Path, classes: Sequence[str], task: str
    ) -> Manifest:
        """Build from columns.

        An empty group becomes one of the image's own, named after its path below ``root``, so that what is derived from
        groups depends neither on the order of the rows nor on where the folder lies.
        """
        import pandas as pd

        label, ends = rows.label, zip(rows.group, rows.image, strict=True)
        columns = {
            "image": rows.image,
            "label": pd.Series(list(map(tuple, label.tolist())) if label.ndim == 2 else label.tolist(), dtype=object),
            "group": [group or OWN_GROUP + path.removeprefix(f"{root}/") for group, path in ends],
            "institution": rows.institution,
            "split": rows.split,
            "line": rows.line,
            "subgroups": rows.subgroups,
        }
        return cls(pd.DataFrame(columns), tuple(classes), task, name, source)

    def _check(self) -> None:
        t, problems = self.table, []
        if self.task not in TASKS:
            problems.append(f"task is not one of {', '.join(TASKS)}")
        if len(self.classes) < (1 if self.task == "multilabel" else 2):
            problems.append(f"{len(self.classes)} class name(s): too few for {self.task}")
        if len(set(self.classes)) != len(self.classes) or "" in self.classes:
            problems.append("class names are not unique and non-empty")
        for column in ("image", "group", "institution", "split", "subgroups"):
            wrong = sum(not isinstance(v, str) for v in t[column])
            if wrong:
                problems.append(f"{wrong} row(s) of '{column}' are not text")
        for column in ("image", "group"):
            empty = int((t[column] == "").sum())
            if empty:
                problems.append(f"{empty} row(s) of '{column}' are empty")
        wrong = int((~t["split"].isin(["", *SPLITS])).sum())
        if wrong:
            problems.append(f"{wrong} row(s) of 'split' are not empty, train, val or test")
        wrong = self._wrong_labels()
        if wrong:
            problems.append(f"{wrong} row(s) of 'label' do not fit {len(self.classes)} classes ({self.task})")
        if problems:
            raise DataError(
                f"manifest {self.name}: " + "; ".join(problems),
                "Correct these rows and names where the table is made: its reader, or the program that fills it.",
            )

    def _wrong_labels(self) -> int:
        labels, size = self.table["label"], len(self.classes)
        if self.task == "multilabel":
            fits = {v: len(v) == size and set(v) <= {0, 1} for v in {v for v in labels if isinstance(v, tuple)}}
            return sum(not (isinstance(v, tuple) and fits[v]) for v in labels)
        return int(((labels < 0) | (labels >= size)).sum())

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """``(N,)`` int64 class indices, or ``(N, C)`` float32 of 0 and 1 for multi-label."""
        if self.task == "multilabel":
            return np.array(self.table["label"].tolist(), dtype=np.float32).reshape(len(self), len(self.classes))
        return self.table["label"].to_numpy(dtype=np.int64, copy=True)

    def subset(self, which: np.ndarray | Sequence[int] | Sequence[bool] | pd.Series) -> Manifest:
        """The rows that a boolean mask ``(N,)`` or integer positions select, in that order."""
        index = np.asarray(which)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise ValueError(f"mask of shape {index.shape} for {len(self)} rows")
            index = np.flatnonzero(index)
        return self.with_table(self.table.iloc[index.astype(np.int64)])

    def with_table(self, table: pd.DataFrame) -> Manifest:
        """The same data set with another table."""
        return Manifest(table, self.classes, self.task, self.name, self.source)

    def in_stable_order(self) -> Manifest:
        """The rows sorted by content key, group and file: the same whatever order the table had.

        What is trained depends on the order of the images, so a site sorts its own too.
        """
        columns = [self.table[c].to_numpy(dtype=object).astype(str) for c in ("image", "group")]
        return self.subset(np.lexsort((columns[0], columns[1], self.table["key"].to_numpy())))

    def class_counts(self) -> np.ndarray:
        """``(C,)`` int64 images of each class (multi-label: images that carry the label)."""
        if self.task == "multilabel":
            return self.labels.sum(axis=0).astype(np.int64)
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def digest(self) -> str:
        """SHA-256 over classes, task and each row's content key, label, group, institution and split.

        Folders do not enter, so the same data have the same digest on another machine. Before the cache is built
        (key 0) the file's base name stands for its content.
        """
        head = json.dumps([self.name, self.task, list(self.classes)])
        t = self.table
        keys = [str(k) if k else Path(image).name for k, image in zip(t["key"].tolist(), t["image"], strict=True)]
        rows = zip(keys, self._label_texts(), t["group"], t["institution"], t["split"], strict=True)
        return hashlib.sha256(json.dumps([head, list(rows)]).encode()).hexdigest()

    def _label_texts(self) -> list[str]:
        if self.task == "multilabel":
            return [" ".join(map(str, v)) for v in self.table["label"]]
        return [str(v) for v in self.table["label"].tolist()]

    def save(self, path: str | Path) -> Path:
        """Write a JSON header line and the table as CSV, atomically, mode 0600 (it names images and patients)."""
        head = {
            "format": _FORMAT,
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "source": self.source,
            "rows": len(self),
            "digest": self.digest(),
        }
        body = self.table.assign(label=self._label_texts()).to_csv(index=False, lineterminator="\n")
        return atomic_write(path, f"{json.dumps(head)}\n{body}".encode(), mode=0o600)

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: missing, not such a file, torn, or changed since it was written.
        """
        import pandas as pd

        try:
            head_line, _, body = Path(path).read_bytes().decode("utf-8").partition("\n")
            head = json.loads(head_line)
            if head["format"] != _FORMAT:
                raise ValueError("format")
            table = pd.read_csv(io.StringIO(body), dtype=str, keep_default_na=False, na_filter=False)
            if head["task"] == "multilabel":
                table["label"] = pd.Series([tuple(map(int, v.split())) for v in table["label"]], dtype=object)
            manifest = cls(table, tuple(head["classes"]), head["task"], head["name"], head["source"])
            intact = len(manifest) == head["rows"] and manifest.digest() == head["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not a manifest saved by fed_diffmic ({type(error).__name__})", "Read the data set again."
            ) from None
        if not intact:
            raise DataError(f"{path} was changed or torn after it was saved", "Read the data set again.")
        return manifest


def _integers(labels: pd.Series) -> pd.Series:
    """Class indices as int64; whatever is not a whole number becomes -1, which the check refuses."""
    import pandas as pd

    numbers = pd.to_numeric(labels, errors="coerce").to_numpy(dtype=np.float64)
    whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**31)
    return pd.Series(np.where(whole, numbers, -1).astype(np.int64), index=labels.index)
