"""The package of docs/plugins.md as it would lie after ``pip install``: modules and metadata in one folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


def files_of_the_page() -> dict[str, str]:
    """Every file that the page shows in full, by its path."""
    return dict(re.findall(r"^`([\w/.]+)`:.*?\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.M | re.S))


def install(folder: Path, changed: dict[str, str] | None = None, project: dict[str, Any] | None = None) -> Path:
    """Put the package into ``folder``, which is then one to be found from.

    Args:
        changed: files in the place of the page's.
        project: name, version and entry points in the place of the page's.
    """
    files = files_of_the_page() | (changed or {})
    said = tomllib.loads(files.pop("pyproject.toml"))["project"] | (project or {})
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        (path.parent / "__init__.py").touch()
    about = folder / f"{said['name'].replace('-', '_')}-{said['version']}.dist-info"
    about.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {said['name']}\nVersion: {said['version']}\n"
    (about / "METADATA").write_text(head, encoding="utf-8")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in names.items())
        for group, names in said["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    return folder
