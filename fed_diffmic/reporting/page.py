"""The shell of a self-contained HTML page: style, tables, figures. Everything that is data is escaped here.

The page asks for nothing from anywhere: its content security policy forbids it, pictures are ``data:`` addresses, and
there is no script but what :mod:`fed_diffmic.reporting.live` puts there where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

NARROW = 4
"""Columns that a phone shows beside each other."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5b6472; --line: #dfe3e8; --blue: #0072b2; --back: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 1.25rem; }
header.top { padding: .5rem 0 .25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .2rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0 .7rem; max-width: 62rem; }
.soft, figcaption, small { color: var(--soft); }
section, .story { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 1.1rem 1.25rem;
  margin: 1rem 0; }
.story { border-left: 6px solid #8a94a3; }
.story.helped { border-left-color: var(--blue); }
.story.worse { border-left-color: #d55e00; }
.story p.headline { font-size: 1.25rem; line-height: 1.4; font-weight: 600; margin: 0 0 .5rem; }
.story ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.notice { border: 1px solid #e0b050; background: #fff8e6; border-radius: 8px; padding: .6rem 1rem; margin: .8rem 0;
  max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; display: block; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; max-width: 34rem; height: auto; display: block; }
figcaption { font-size: .87rem; margin-top: .3rem; max-width: 34rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; scrollbar-width: auto; scrollbar-color: #8a94a3 #eceff3;
  background: linear-gradient(to left, #fff 2.5rem, transparent) right / 5rem 100% no-repeat local,
    linear-gradient(to left, #0003, transparent) right / 1.4rem 100% no-repeat scroll; }
.scroll::-webkit-scrollbar { height: .7rem; }
.scroll::-webkit-scrollbar-track { background: #eceff3; border-radius: .35rem; }
.scroll::-webkit-scrollbar-thumb { background: #8a94a3; border-radius: .35rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 60%; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
td:first-child { font-weight: 500; position: sticky; left: 0; background: #fff; max-width: 16rem; white-space: normal;
  overflow-wrap: break-word; }
td { white-space: nowrap; }
th small, td small { display: block; font-weight: 400; }
td:first-child small { white-space: normal; }
.words td { white-space: normal; overflow-wrap: anywhere; }
.wide { display: none; color: var(--soft); font-size: .85rem; margin: .6rem 0 .2rem; }
.figures + .scroll, details { margin-top: 1rem; }
tr.sum td { background: #f2f6fa; font-weight: 600; }
tr.sum td small { font-weight: 400; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; font-size: .8rem;
  line-height: 1.45; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
footer { color: var(--soft); font-size: .9rem; padding: .5rem 0 2rem; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  main { padding: .7rem; }
  section, .story { padding: .9rem; }
  h1 { font-size: 1.35rem; }
  .story p.headline { font-size: 1.08rem; }
  th, td { padding: .3rem .4rem; }
  table { font-size: .82rem; }
  th { hyphens: auto; max-width: 6.5rem; }
  td:first-child { max-width: 6.5rem; }
  td:not(:first-child) small { white-space: normal; max-width: 5.2rem; margin-left: auto; }
  .wide { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .tile b { font-size: 1.15rem; }
}
@media print {
  body { background: #fff; font-size: 10pt; }
  main { max-width: none; padding: 0; }
  section, .story, .tile { border-radius: 0; }
  .figures { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; background: none; }
  .wide { display: none; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .35rem; }
  td, td small { white-space: normal; }
  td:first-child { position: static; }
  tr, figure, .tile { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


class Html(str):
    """Text that is markup already; any other string is escaped before it is placed."""

    __slots__ = ()


def text(value: object) -> Html:
    """``value`` as it may stand between tags."""
    return value if isinstance(value, Html) else Html(escape(str(value)).replace(" %", "&nbsp;%"))


def join(parts: Iterable[object]) -> Html:
    """Several pieces, one after the other."""
    return Html("\n".join(text(part) for part in parts))


def paragraph(value: object, kind: str = "") -> Html:
    """A paragraph, optionally of a class."""
    return Html(f'<p class="{escape(kind)}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>")


def section(title: str, *parts: object) -> Html:
    """A titled block."""
    return Html(f"<section>\n<h2>{text(title)}</h2>\n{join(parts)}\n</section>")


def details(title: str, *parts: object) -> Html:
    """A block that is opened by a click."""
    return Html(f"<details>\n<summary>{text(title)}</summary>\n{join(parts)}\n</details>")


def stacked(value: str, under: str) -> Html:
    """A value with something smaller under it, in a table's cell."""
    return Html(f"{text(value)}<small>{text(under)}</small>" if under else text(value))


def table(
    columns: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    caption: str = "",
    sums: int = 0,
    words: bool = False,
) -> Html:
    """A table that scrolls sideways where it does not fit, with a bar and a shadow to show it; the first column stays.

    Args:
        columns: headings.
        rows: cells.
        caption: what it shows.
        sums: number of leading rows that sum up the rest.
        words: cells are words, aligned left.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    lines = [
        f"<tr{' class=sum' if number < sums else ''}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    ]
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{join(map(Html, lines))}\n</tbody>"
    hint = (
        ""
        if words or len(columns) <= NARROW
        else f'<p class="wide">{len(columns)} columns: move the table sideways.</p>'
    )
    kind = " class=words" if words else ""
    return Html(f'{hint}<div class="scroll" tabindex="0"><table{kind}>{title}\n{body}</table></div>')


def picture(address: str, caption: str, attribute: str = "") -> Html:
    """A figure with its caption, which is also what a screen reader says; ``attribute`` is markup for its tag."""
    image = f'<img src="{escape(address)}" alt="{escape(caption)}">'
    return Html(f"<figure{attribute}>{image}<figcaption>{text(caption)}</figcaption></figure>")


def tiles(facts: Sequence[tuple[str, str]]) -> Html:
    """Large values with what they are under them, side by side."""
    inner = "".join(f'<div class="tile"><b>{text(big)}</b><span>{text(small)}</span></div>' for big, small in facts)
    return Html(f'<div class="tiles">{inner}</div>')


def pictures(parts: Sequence[Html]) -> Html:
    """Figures side by side where there is room."""
    return Html(f'<div class="figures">\n{join(parts)}\n</div>') if parts else Html("")


def page(title: str, *parts: object, head: Html | None = None, scripts: str = "") -> str:
    """The whole document.

    Args:
        title: of the window.
        parts: the body.
        head: further markup of the head.
        scripts: digests of the scripts that may run, as a policy names them; none may else.
    """
    policy = f"{_POLICY}; script-src {scripts}" if scripts else _POLICY
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n{head or ''}</head>\n<body>\n<main>\n"
        f"{join(parts)}\n</main>\n</body>\n</html>\n"
    )
