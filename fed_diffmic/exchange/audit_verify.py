"""Is one log whole: every line there, in order, unchanged, signed by whoever keeps it, over changes of the key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fed_diffmic.exchange.audit_lines import GENESIS, REKEYED, Head, Line, parse_line, raw_lines
from fed_diffmic.provision.keys import PublicKey, fingerprint


@dataclass(frozen=True)
class Problem:
    """What is wrong with a log.

    Attributes:
        line: place in the file, from 1; 0 where it is the log as a whole.
        code: ``damaged``, ``changed``, ``signature``, ``key``, ``removed``, ``reordered``, ``chain``, ``torn``,
            ``cut``, ``rewritten`` or ``empty``.
        text: for people.
        head: that the other side saw, and that is not of this log; none for any other problem.
    """

    line: int
    code: str
    text: str
    head: Head | None = None


def verify(
    path: str | os.PathLike[str], public_key: PublicKey | Sequence[PublicKey], anchors: Iterable[Head] = ()
) -> list[Problem]:
    """Everything that is wrong with a log; an empty list: its lines are whole, in order and by that key.

    Args:
        path: the log.
        public_key: of whoever keeps it; several where a line ``rekeyed`` says that the key was changed.
        anchors: heads that the other side saw: each must be a line of this log.

    Raises:
        ModelFileError: the file cannot be read.
    """
    keys = _Keys(public_key if isinstance(public_key, Sequence) else [public_key])
    problems: list[Problem] = []
    digests: dict[int, str] = {0: GENESIS}
    before = Head()
    for place, raw, whole in raw_lines(path):
        line = parse_line(raw)
        if line is None:
            code, text = ("torn", "the last line is torn") if not whole else ("damaged", "not a line of an audit log")
            problems.append(Problem(place, code, text))
            continue
        if line.complete:
            problems.extend(Problem(place, code, text) for code, text in keys.judge(line))
        else:
            problems.append(Problem(place, "changed", f"line {line.n} was changed: its digest is another"))
        problems.extend(_order(place, line, before))
        before = Head(line.n, line.digest)
        digests.setdefault(line.n, line.digest)
    if len(digests) == 1:
        problems.append(Problem(0, "empty", "the log holds no line"))
    problems.extend(_anchors(digests, anchors))
    return problems


def _anchors(digests: dict[int, str], anchors: Iterable[Head]) -> Iterator[Problem]:
    """Heads that the other side saw and this log does not have."""
    for head in sorted(set(anchors), key=lambda h: (h.length, h.digest)):
        if head.length not in digests:
            text = f"the other side saw line {head.length}, which is not here"
            yield Problem(0, "cut" if head.length > max(digests) else "removed", text, head)
        elif digests[head.length] != head.digest:
            yield Problem(0, "rewritten", f"the other side saw another line {head.length}", head)


def _order(place: int, line: Line, before: Head) -> Iterator[Problem]:
    named = f"line {line.n}"
    if line.n > before.length + 1:
        yield Problem(place, "removed", f"{line.n - before.length - 1} lines before {named} are missing")
    elif line.n <= before.length:
        yield Problem(place, "reordered", f"{named} stands behind line {before.length}")
    elif line.previous != before.digest:
        yield Problem(place, "chain", f"{named} does not continue line {before.length} as it stands here")


class _Keys:
    """Whose signature the next line must have.

    The first line may be signed by any of the keys given; from there on a line ``rekeyed`` alone changes it, signed by
    the key in force or by the one that takes over.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = {fingerprint(key): key for key in keys}
        self._now = next(iter(self._keys)) if len(self._keys) == 1 else ""
        self._missing: set[str] = set()

    def judge(self, line: Line) -> Iterator[tuple[str, str]]:
        """Code and text of what is wrong with a whole line's signature."""
        signer = self._signer(line)
        if line.kind == REKEYED:
            yield from self._change(line, signer)
        elif not signer:
            yield "signature", f"line {line.n} is not signed by that key"
        elif self._now and signer != self._now:
            yield (
                "key",
                f"line {line.n} is signed by the key {signer}, and no line says that it took over from {self._now}",
            )
        self._now = signer or self._now
        if line.kind == REKEYED and line.facts.get("to") in self._keys:
            self._now = str(line.facts["to"])

    def _change(self, line: Line, signer: str) -> Iterator[tuple[str, str]]:
        old, new = str(line.facts.get("from", "")), str(line.facts.get("to", ""))
        for key in (old, new):
            if key and key not in self._keys and key not in self._missing:
                self._missing.add(key)
                yield "key", f"line {line.n} says that the key changed from {old} to {new}: give both with --key"
                return
        if not signer or signer not in (old, new) or (self._now and old != self._now):
            yield "key", f"line {line.n} hands the log from the key {old} to {new} without the signature of either"

    def _signer(self, line: Line) -> str:
        """Which of the keys signed; the one in force is tried first."""
        order = sorted(self._keys, key=lambda name: name != self._now)
        return next((name for name in order if line.signed_by(self._keys[name])), "")
