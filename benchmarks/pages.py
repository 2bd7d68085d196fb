"""Pages of the documentation with parts that programs write, between two marks, so that no figure there is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write


def put(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with the lines between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` instead of what stood there.

    Raises:
        UsageError: the page has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UsageError(f"the page has no lines {begin} and {end}", "Add both where the text shall stand.")
    text = "\n".join(lines).strip()
    return f"{before}{begin}\n{text}\n{end}{after}"


def inside(page: str, name: str) -> str:
    """What stands between the marks that :func:`put` writes between."""
    return page.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]


def read(path: Path) -> str:
    """The text of a page.

    Raises:
        UsageError: there is none, or none that is text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no page of text", "Name a page that is there.") from error


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Write what ``change`` makes of a page in its place.

    Raises:
        UsageError: see :func:`read`.
    """
    atomic_write(path, change(read(path)).encode())


def fill(path: Path, mark: str, made: Callable[[], Sequence[str]], name: str = "") -> None:
    """Write between a page's marks, in its place.

    Args:
        path: of the page.
        mark: what the marks are called.
        made: makes the text. It is called once the page has been seen to have its marks: it may measure for minutes.
        name: of the marks, where a page has several of one kind: ``<!-- MARK NAME -->``.

    Raises:
        UsageError: the page has no such marks.
    """
    marks = f"{mark} {name}".strip()
    put(read(path), marks, [])
    lines = made()
    rewrite(path, lambda page: put(page, marks, lines))
