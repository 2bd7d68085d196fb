"""The documents as tests read them: their pages, their fenced blocks, the command lines in these."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KINDS = ("sh", "console", "yaml", "toml", "python", "csv", "text")
"""What a fenced block may say that it is: ``text`` is output or a drawing, everything else is parsed or run."""

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S
)
_OPENING = re.compile(r"^ *```")
_VARIABLES = {"S": "S", "W": "model.weights=FILE", "seed": "1", "cell": "CELL", "status": "0"}
"""What the variables of examples stand for."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file.
        line: of its first line of text, 1-based.
        kind: one of :data:`KINDS`, or whatever stands there.
        title: the file that it shows, where it says one.
        body: without indentation.
    """

    page: Path
    line: int
    kind: str
    title: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page.

    Raises:
        ValueError: a fence that is not closed, or that this reader does not understand.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] for line in match["body"].splitlines(keepends=True))
        line = text[: match.start("body")].count("\n") + 1
        found.append(Block(page, line, match["kind"], match["title"] or "", body))
    fences = sum(bool(_OPENING.match(line)) for line in text.splitlines())
    if fences != 2 * len(found):
        raise ValueError(f"{page}: {fences} fences, and {len(found)} blocks that can be read")
    return found


def script_of(block: Block) -> str:
    """What is typed: the whole of a ``sh`` block, of a ``console`` block what stands behind ``$``."""
    if block.kind == "sh":
        return block.body
    joined = block.body.replace("\\\n", "\\\0")
    lines = [line.split("$ ", 1)[1] for line in joined.splitlines() if re.match(r"(\w+ +)?\$ ", line)]
    return "\n".join(lines).replace("\0", "\n") + "\n"


def commands(script: str) -> Iterator[list[str]]:
    """The words of every simple command, variables filled in, what only joins commands taken away."""
    script = re.sub(r"\$\{?(\w+)\}?", lambda match: _VARIABLES.get(match[1], match[0]), script.replace("\\\n", " "))
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|()"):
                yield from _simple(words)
                words = []
            else:
                words.append(word)


def _simple(words: list[str]) -> Iterator[list[str]]:
    """A command without ``do``, ``sudo``, redirections and variables set before it; nothing, if it is none."""
    if ">" in words:
        words = words[: words.index(">")]
    while words and (words[0] in ("do", "sudo", "then") or re.fullmatch(r"[A-Za-z_]\w*=\S*", words[0])):
        words = words[1:]
    if words and words[0] not in ("for", "done", "if", "fi"):
        yield words
