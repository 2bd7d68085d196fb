"""What is wrong, or worth saying, about a data set: found before training, reported all together.

A finding says which table, which rows (1-based lines of the file), which field and how many. Its message never
holds the name of an image or of a patient: those go to the site's own findings file, readable by its owner alone.
docs/data.md lists every code and the rule for its severity.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

from fed_diffmic.errors import DataError
from fed_diffmic.files import atomic_write

SEVERITIES = ("error", "warning")
ROWS_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one table.

    Args:
        code: stable name, for example ``unknown-label`` (docs/data.md).
        severity: ``error`` (stops before training) or ``warning`` (handled as the message says).
        table: name of the table's file, without its folder.
        rows: 1-based lines of the file, as many as are known; the message shows the first few.
        field: column, or several joined by ``, ``; empty when the finding is about the whole table.
        message: what is wrong, with no image or patient name in it.
        count: how many rows (or images, or groups, as the message says) are concerned.
        remedy: what the user can do.
        names: image names or values, one for each row; they leave this object only through :meth:`Findings.write`.
    """

    code: str
    severity: str
    table: str
    rows: tuple[int, ...]
    field: str
    message: str
    count: int
    remedy: str = ""
    names: tuple[str, ...] = dataclass_field(default=(), repr=False)

    @property
    def row(self) -> int:
        """First line concerned; 0 when the finding is not about a row."""
        return self.rows[0] if self.rows else 0

    @property
    def where(self) -> str:
        """Table, field and the first few rows, in words."""
        parts = [self.table] if self.table else []
        if self.field:
            parts.append(f"field {self.field}")
        if self.rows:
            shown = ", ".join(str(row) for row in self.rows[:ROWS_SHOWN])
            more = ", ..." if len(self.rows) > ROWS_SHOWN else ""
            parts.append(f"row{'s' if len(self.rows) > 1 else ''} {shown}{more}")
        return ", ".join(parts)

    def __str__(self) -> str:
        return (
            f"{self.severity} [{self.code}] {self.where}{': ' if self.where else ''}{self.message} (count {self.count})"
        )


class Findings:
    """Collects findings; nothing is raised until all are known.

    Args:
        path: the findings file that the caller will write, named in the error's remedy; None: there will be none.
        trained: the data are for a model that is trained already: no remedy may ask for other classes.
    """

    def __init__(self, path: Path | None = None, *, trained: bool = False) -> None:
        self.path = path
        self.trained = trained
        self._items: list[Finding] = []

    def add(
        self,
        code: str,
        severity: str,
        message: str,
        *,
        table: str = "",
        rows: Iterable[int] = (),
        field: str = "",
        count: int | None = None,
        remedy: str = "",
        names: Iterable[str] = (),
    ) -> None:
        """Add one finding; ``count`` is the number of rows unless given."""
        if severity not in SEVERITIES:
            raise ValueError(f"severity {severity!r}; allowed: {', '.join(SEVERITIES)}")
        lines = tuple(int(row) for row in rows)
        total = len(lines) if count is None else int(count)
        self._items.append(Finding(code, severity, table, lines, field, message, total, remedy, tuple(map(str, names))))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop a run."""
        return [item for item in self._items if item.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that a run handles and says."""
        return [item for item in self._items if item.severity == "warning"]

    def lines(self) -> list[str]:
        """One line for each finding, errors first, free of image and patient names."""
        return [str(item) for item in [*self.errors, *self.warnings]]

    def raise_if_errors(self) -> None:
        """Raise one :class:`DataError` that lists every finding, if any is an error."""
        errors = self.errors
        if not errors:
            return
        head = f"the data cannot be used as they are ({len(errors)} kind(s) of fault, {len(self.warnings)} warning(s)):"
        remedies = list(dict.fromkeys(item.remedy for item in errors if item.remedy))
        if self.path is not None and any(item.names for item in self._items):
            remedies.append(f"Every image concerned is named in {self.path} (readable by you alone).")
        raise DataError("\n".join([head, *(f"  {line}" for line in self.lines())]), " ".join(remedies))

    def write(self) -> None:
        """Write every finding with every row and image name as CSV to ``path``, mode 0600 (it names patients' images).

        A finding's message stands in its first line only.

        Raises:
            MachineError: the file cannot be written.
        """
        if self.path is None:
            return
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["severity", "code", "table", "row", "field", "image", "message"])
        for item in [*self.errors, *self.warnings]:
            writer.writerows(_file_rows(item))
        atomic_write(self.path, stream.getvalue().encode(errors="backslashreplace"), mode=0o600)


def _file_rows(item: Finding) -> list[Sequence[object]]:
    """The findings-file rows of one finding: one a row of the table, at least one."""
    length = max(len(item.rows), len(item.names), 1)
    rows = [*item.rows, *[""] * (length - len(item.rows))]
    names = [*item.names, *[""] * (length - len(item.names))]
    texts = [item.message, *[""] * (length - 1)]
    return [
        (item.severity, item.code, item.table, row, item.field, name, text)
        for row, name, text in zip(rows, names, texts, strict=True)
    ]
