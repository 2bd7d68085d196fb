"""What a dossier is made of: facts with the file and the place that they stand in, and blocks that show them.

A **fact** is a JSON object with ``file`` (in the run's folder), ``at`` (a JSON pointer, RFC 6901, into that file's JSON
or YAML) and ``value``: exactly what stands there. Where ``at`` leads to an estimate, ``value``, ``low`` and ``high``
are its members of these names. ``withheld`` in the place of ``value`` says why a number is not shown. ``at`` may be
``lines``: the value is the number of lines of the file. A **check** (``check``, ``holds``, ``by``) was made when the
dossier was, and is no fact of a file. No number of a dossier stands anywhere else.

A **block** has a ``kind``: ``text``, ``warning`` and ``missing`` (``text``), ``list`` (``items``), ``table``
(``caption``, ``columns``, ``rows``), ``blank`` (``ask`` and ``by``: for people to fill in).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from fed_diffmic.errors import ModelFileError

Block = dict[str, Any]
Fact = dict[str, Any]
BOUNDS = ("value", "low", "high")
LINES = "lines"
MOST_BYTES = 256 * 2**20
SUMMARY, MODEL, CONFIG, PROVENANCE = "summary.json", "final/model.json", "config.yaml", "final/provenance.json"


class Sources:
    """The files of a run, read once; what is not there is none.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trees: dict[str, Any] = {}
        self._extra: dict[str, Path] = {}

    def add(self, name: str, path: Path) -> None:
        """Call a file that lies elsewhere by a name of its own."""
        self._extra[name] = path

    def path(self, name: str) -> Path:
        """Where a file lies.

        Raises:
            ValueError: it is no name of a file in the run's folder. A dossier that came may name anything.
        """
        if name in self._extra:
            return self._extra[name]
        inside = PurePath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{name} is no file of the run")
        return self.folder / inside

    def tree(self, name: str) -> Any:
        """What a JSON or YAML file holds; none where there is no such file.

        Raises:
            ModelFileError: it is there and cannot be read, or is too large.
        """
        if name not in self._trees:
            path = self.path(name)
            self._trees[name] = _read(path) if path.is_file() else None
        return self._trees[name]

    def at(self, name: str, *place: str | int) -> Any:
        """What stands at a place of a file; none where nothing does."""
        found = self.tree(name)
        for step in place:
            inside = isinstance(found, Mapping) and step in found
            if isinstance(found, list) and isinstance(step, int) and -len(found) <= step < len(found):
                inside = True
            if not inside:
                return None
            found = found[step]
        return found

    def fact(self, name: str, *place: str | int) -> Fact | None:
        """A fact; none where nothing stands there, or an estimate that is not defined."""
        found = self.at(name, *place)
        if found is None:
            return None
        fact = {"file": name, "at": pointer(self._whole(name, place))}
        if isinstance(found, Mapping):
            if found.get("value") is None:
                return None
            return {**fact, **{key: found[key] for key in BOUNDS if found.get(key) is not None}}
        return {**fact, "value": found}

    def lines(self, name: str) -> Fact | None:
        """How many lines a file has."""
        path = self.path(name)
        return {"file": name, "at": LINES, "value": count_lines(path)} if path.is_file() else None

    def withheld(self, why: str, name: str, *place: str | int) -> Fact:
        """The place of a number that is not shown."""
        return {"file": name, "at": pointer(self._whole(name, place)), "withheld": why}

    def used(self) -> list[str]:
        """Names of the files that were read."""
        return sorted(name for name, tree in self._trees.items() if tree is not None)

    def _whole(self, name: str, place: Sequence[str | int]) -> list[str | int]:
        """The place with places from the end counted from the start."""
        steps: list[str | int] = []
        for step in place:
            above = self.at(name, *steps)
            from_end = isinstance(step, int) and step < 0 and isinstance(above, list)
            steps.append(len(above) + step if isinstance(step, int) and from_end else step)
        return steps


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelFileError(f"{path} is larger than a run's file is", "Restore it from the backup.")
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelFileError(f"{path} cannot be read: {type(error).__name__}", "Restore it from the backup.") from error


def pointer(place: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in place)


def resolve(tree: Any, at: str) -> Any:
    """What a JSON pointer leads to.

    Raises:
        KeyError, IndexError, ValueError: nowhere.
    """
    for step in at.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    return tree


def count_lines(path: Path) -> int:
    """Lines of a file, a last one without an end included."""
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def check(what: str, holds: bool, by: str = "") -> Fact:
    """The result of something that was looked at while the dossier was made."""
    return {"check": what, "holds": holds, "by": by}


def text(said: str) -> Block:
    """A paragraph that holds no number of the run."""
    return {"kind": "text", "text": said}


def warning(said: str) -> Block:
    """Something that must not be passed over."""
    return {"kind": "warning", "text": said}


def missing(said: str) -> Block:
    """What the run's files do not say, and how they could."""
    return {"kind": "missing", "text": said}


def blank(ask: str, by: str) -> Block:
    """Something that a person must fill in."""
    return {"kind": "blank", "ask": ask, "by": by}


def listing(items: Sequence[Any]) -> Block:
    """A list of texts or facts."""
    return {"kind": "list", "items": [item for item in items if item is not None]}


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """A table; a cell is a text, a fact, a check or none."""
    return {"kind": "table", "caption": caption, "columns": list(columns), "rows": [list(row) for row in rows]}


def named(sources: Sources, rows: Sequence[tuple[str, str, tuple[str | int, ...]]]) -> list[list[Any]]:
    """Rows of a table of two columns: a name, and the fact that stands there; without what is not there."""
    facts = [(name, sources.fact(file, *place)) for name, file, place in rows]
    return [[name, fact] for name, fact in facts if fact is not None]


def section(key: str, title: str, *blocks: Block | None) -> dict[str, Any]:
    """A titled part of the dossier."""
    return {"id": key, "title": title, "blocks": [block for block in blocks if block is not None]}
