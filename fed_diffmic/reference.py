"""The reference of every setting, from the dataclasses that declare them and the options that set them.

``fed-diffmic options`` prints it; ``python -m fed_diffmic.reference`` writes it as docs/configuration.md.
"""

from __future__ import annotations

import difflib
import sys
import typing
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.compose import FOLDER, GROUPS, compose, group_options
from fed_diffmic.config import SimulateConfig
from fed_diffmic.errors import UsageError
from fed_diffmic.fields import allowed_text

_INTRO = """# Configuration

Written by `make docs` from the dataclasses of `fed_diffmic/config.py` and the files of `configs/`; do not edit.

A setting is given as `key=value` on the command line, or under the same name in a YAML file
(`fed-diffmic simulate --config FILE`). Later wins: the option of each group, the file, the command line.

```yaml
# site-study.yaml
seed: 3
dataset: {name: table, root: /data/study, modality: fundus}
model: compact            # an option of the group
partition: {name: dirichlet, sites: 3, alpha: 0.3}
stages:
  guidance: {rounds: 12}  # everything else as in the option
```

- Naming an option (`model=paper`, or `name: paper` in a file) starts that group afresh from it; on the command
  line it also sets aside what the file said about that group. `stages` follows `model` unless it is chosen.
- Values are taken as they are written: a path may hold spaces, commas and `=`; `no` is a name where a name is
  asked for; a list is `[a, b]` or `a,b`. Paths are relative to the current folder, and `~` is your home.
- `--show-config` prints the resolved configuration. The same text is saved as `config.yaml` in the run's
  folder, and given as `--config` it starts the same run again (with another `run.dir`).
"""


@dataclass(frozen=True)
class Setting:
    """One key with what is said about it.

    Attributes:
        key: dotted key.
        default: value of the embedded default configuration, as YAML.
        allowed: what it may hold, in words.
        doc: meaning, unit, source.
        options: value in each option of its group that sets it.
    """

    key: str
    default: str
    allowed: str
    doc: str
    options: dict[str, str]


def settings(group: str | None = None) -> list[Setting]:
    """Every setting, or those of one group; ``group`` may be ``None`` for all.

    Raises:
        UsageError: there is no such group.
    """
    if group is not None and group not in GROUPS:
        near = difflib.get_close_matches(group, GROUPS, n=1)
        raise UsageError(
            f"there is no group {group!r}; there is {', '.join(GROUPS)}", f"Did you mean {near[0]}?" if near else ""
        )
    default = compose(None, [])
    found = list(_walk(SimulateConfig, default, ""))
    return [s for s in found if group is None or s.key.startswith(f"{group}.")]


def option_notes(group: str) -> dict[str, str]:
    """What the first lines of each option's file say about it."""
    notes = {}
    for name in group_options(group):
        lines = (FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = [line.removeprefix("#").strip() for line in lines[: _comment_lines(lines)]]
        notes[name] = " ".join(comment)
    return notes


def options_text(group: str | None = None) -> str:
    """The reference for a terminal."""
    chosen = settings(group)
    groups = [group] if group else ["", *GROUPS]
    blocks = []
    for name in groups:
        lines = [f"{name}=OPTION" if name else "top level"]
        lines += [f"  {option:<12} {note}" for option, note in option_notes(name).items()] if name else []
        for s in chosen:
            if (s.key.split(".")[0] if "." in s.key else "") != name:
                continue
            lines.append(f"\n  {s.key}={s.default}\n      {s.doc}\n      allowed: {s.allowed}")
            if s.options:
                lines.append("      " + ", ".join(f"{option}: {value}" for option, value in s.options.items()))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def configuration_markdown() -> str:
    """docs/configuration.md."""
    parts = [_INTRO]
    everything = settings()
    for group in ("", *GROUPS):
        parts.append(f"## {'`' + group + '`' if group else 'Top level'}\n")
        if group:
            parts.append("| option | what it is |\n|---|---|")
            parts += [f"| `{group}={name}` | {note} |" for name, note in option_notes(group).items()]
            parts.append("")
        parts.append("| key | default | allowed | meaning | in the options |\n|---|---|---|---|---|")
        for s in everything:
            if (s.key.split(".")[0] if "." in s.key else "") == group:
                options = ", ".join(f"{name} `{value}`" for name, value in s.options.items())
                cells = (f"`{s.key}`", f"`{s.default}`", s.allowed, s.doc, options)
                parts.append("| " + " | ".join(_cell(c) for c in cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _walk(config_type: type, value: Any, prefix: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(config_type)
    for f in fields(config_type):
        inner, item = hints[f.name], getattr(value, f.name)
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _walk(inner, item, f"{prefix}{f.name}.")
        else:
            yield _setting(f, item, f"{prefix}{f.name}")


def _setting(f: Field[Any], value: Any, key: str) -> Setting:
    group, _, rest = key.partition(".")
    options: dict[str, str] = {}
    for name in group_options(group) if rest and rest != "name" else []:
        tree: Any = yaml.safe_load((FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8"))
        for part in rest.split("."):
            tree = tree.get(part, _ABSENT) if isinstance(tree, dict) else _ABSENT
        if tree is not _ABSENT:
            options[name] = _shown(tree)
    return Setting(key, _shown(value), allowed_text(f), f.metadata["doc"], options)


_ABSENT = object()


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).strip()
    return text.removesuffix("\n...").strip()


def _comment_lines(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_markdown(), encoding="utf-8")
