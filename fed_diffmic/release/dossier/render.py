"""A dossier for people: one HTML page that asks nothing of anybody, and Markdown of the drafts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from fed_diffmic.release.dossier.facts import LINES
from fed_diffmic.reporting import page
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.view import DASH, MINUS, number

_SMALL = 5e-4
_STYLE = """
.blank { border: 2px dashed #8a5a00; background: #fff8e6; border-radius: 6px; padding: .6rem .9rem; margin: .8rem 0; }
.blank b { display: block; }
.blank i { display: block; min-height: 2.6rem; font-style: normal; color: #6b4a00; }
.missing { border-left: 4px solid #6b7280; padding: .2rem .8rem; margin: .7rem 0; color: #3f4754; }
.contents { columns: 2 18rem; padding-left: 1.2rem; }
.contents a { color: #005a8c; }
td[title] { cursor: help; }
.words td:first-child { min-width: 7.5rem; overflow-wrap: break-word; }
h2.part { margin: 2.2rem 0 .4rem; font-size: 1.35rem; }
.scroll { margin-bottom: 1rem; }
@media print {
  caption { break-after: avoid; }
  thead { break-inside: avoid; break-after: avoid; }
  .blank { break-inside: avoid; background: #fff; }
  .blank i { min-height: 4rem; }
  section { border: 0; padding: 0; }
  h2.part { break-before: page; }
  a { color: inherit; text-decoration: none; }
}
"""


def shown(cell: Any) -> str:
    """A cell in words; every number as the file has it, to three digits behind the point."""
    if cell is None:
        return DASH
    if not isinstance(cell, Mapping):
        return str(cell)
    if "withheld" in cell:
        return "kept back"
    if "check" in cell:
        return "yes" if cell["holds"] else "NO"
    said = _value(cell["value"])
    if cell.get("low") is not None and cell.get("high") is not None:
        said += f" ({_value(cell['low'])} to {_value(cell['high'])})"
    return said


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        small = value != 0 and abs(value) < _SMALL
        return f"{value:.3g}".replace("-", MINUS, 1) if small else number(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def source_of(cell: Any) -> str:
    """The file and the place of a fact; empty for anything else."""
    if not isinstance(cell, Mapping) or "file" not in cell:
        return ""
    place = "number of lines" if cell["at"] == LINES else cell["at"]
    why = f"; {cell['withheld']}" if "withheld" in cell else ""
    return f"{cell['file']} {place}{why}"


def files_of(block: Mapping[str, Any]) -> list[str]:
    """The files that a table's facts stand in."""
    cells = [cell for row in block.get("rows") or [block.get("items") or []] for cell in row]
    return sorted({cell["file"] for cell in cells if isinstance(cell, Mapping) and "file" in cell})


# ---- HTML ------------------------------------------------------------------------------------


def html(dossier: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        dossier: what ``dossier.json`` holds.
    """
    title = f"Dossier: {dossier['run']}"
    parts: list[object] = [
        Html(f'<header class="top"><h1>{page.text(title)}</h1></header>'),
        page.paragraph(dossier["notice"], "soft"),
        page.paragraph(dossier["about"], "soft"),
        _contents(dossier),
        *(_section(part) for part in dossier["sections"]),
    ]
    for draft in dossier["drafts"]:
        parts.append(Html(f'<h2 class="part" id="{escape(draft["id"])}">{page.text(draft["title"])}</h2>'))
        parts.append(page.paragraph(draft["about"], "notice"))
        parts += [_section(part) for part in draft["sections"]]
    rows = [[name, digest] for name, digest in dossier["sources"].items()]
    digests = page.table(["file of the run", "SHA-256"], rows, words=True)
    parts.append(page.section("Files that these facts stand in", digests))
    parts.append(Html(f"<footer>{page.text(dossier['notice'])}</footer>"))
    return page.page(title, *parts, head=Html(f"<style>{_STYLE}</style>\n"))


def _contents(dossier: Mapping[str, Any]) -> Html:
    links = [(part["id"], part["title"]) for part in [*dossier["sections"], *dossier["drafts"]]]
    items = "".join(f'<li><a href="#{escape(key)}">{page.text(title)}</a></li>' for key, title in links)
    return Html(f'<nav><ul class="contents">{items}</ul></nav>')


def _section(part: Mapping[str, Any]) -> Html:
    blocks = page.join(_BLOCKS[block["kind"]](block) for block in part["blocks"])
    title = page.text(part["title"])
    return Html(f'<section id="{escape(part["id"])}">\n<h2>{title}</h2>\n{blocks}\n</section>')


def _table(block: Mapping[str, Any]) -> Html:
    files = files_of(block)
    caption = block["caption"] + (f". Source: {', '.join(files)}" if files else "")
    words = len(block["columns"]) <= 3
    rows = [[_cell(cell) for cell in row] for row in block["rows"]]
    return _with_sources(page.table(block["columns"], rows, caption=caption, words=words))


def _cell(cell: Any) -> Html:
    said, source = page.text(shown(cell).replace("\0", "")), source_of(cell).replace("\0", "")
    return Html(f"\0{escape(source)}\0{said}") if source else Html(said)


def _with_sources(drawn: Html) -> Html:
    """Cells that said where they come from say it as their title: it shows where they are pointed at."""
    return Html(drawn.replace("<td>\0", '<td title="').replace("\0", '">'))


def _list(block: Mapping[str, Any]) -> Html:
    return Html("<ul>" + "".join(f"<li>{page.text(shown(item))}</li>" for item in block["items"]) + "</ul>")


def _blank(block: Mapping[str, Any]) -> Html:
    inner = f"<b>{page.text(block['ask'])}</b><i>To be filled in by {page.text(block['by'])}: ________</i>"
    return Html(f'<div class="blank">{inner}</div>')


_BLOCKS: dict[str, Callable[[Mapping[str, Any]], Html]] = {
    "text": lambda block: page.paragraph(block["text"]),
    "warning": lambda block: page.paragraph(block["text"], "notice"),
    "missing": lambda block: Html(f'<p class="missing">{page.text(block["text"])}</p>'),
    "heading": lambda block: Html(f"<h3>{page.text(block['text'])}</h3>"),
    "list": _list,
    "table": _table,
    "blank": _blank,
}


# ---- Markdown --------------------------------------------------------------------------------


def markdown(draft: Mapping[str, Any], run: str) -> str:
    """A draft that can be written into with any editor."""
    lines = [f"# {_plain(draft['title'])}", "", f"Run: {_plain(run)}.", "", f"**{_plain(draft['about'])}**", ""]
    for part in draft["sections"]:
        lines += [f"## {_plain(part['title'])}", ""]
        for block in part["blocks"]:
            lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _plain(value: object) -> str:
    """Text of data that is no markup, in one line."""
    said = " ".join(str(value).split())
    for mark in "\\`*_[]<>|#":
        said = said.replace(mark, f"\\{mark}")
    return said


def _markdown(block: Mapping[str, Any]) -> list[str]:
    kind = block["kind"]
    if kind == "blank":
        return [f"> **{_plain(block['ask'])}**", ">", f"> To be filled in by {_plain(block['by'])}: ________"]
    if kind == "list":
        return [f"- {_plain(shown(item))}" for item in block["items"]]
    if kind == "heading":
        return [f"### {_plain(block['text'])}"]
    if kind != "table":
        mark = "**Note:** " if kind == "warning" else "**Not known:** " if kind == "missing" else ""
        return [f"{mark}{_plain(block['text'])}"]
    files = files_of(block)
    rows: Sequence[Sequence[str]] = [[_plain(shown(cell)) for cell in row] for row in block["rows"]]
    head = [_plain(name) for name in block["columns"]]
    source = f". Source: {', '.join(files)}" if files else ""
    lines = [f"*{_plain(block['caption'] + source)}*", ""]
    return [*lines, *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])]
