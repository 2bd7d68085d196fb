"""The audit log: what is removed, changed, reordered, cut or torn is found; crashes and processes do no harm."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_diffmic.errors import FedDiffmicError, MachineError, ModelFileError
from fed_diffmic.exchange.audit import GENESIS, AuditLog, Head, parse_line, read_lines, verify
from fed_diffmic.exchange.audit_lines import DOMAIN, canonical, line_digest
from fed_diffmic.provision.keys import sign

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def written(folder: Path, count: int = 12) -> Path:
    log = AuditLog(folder / "audit.jsonl", KEY, owner="a")
    for index in range(count - 1):
        log.append("payload", index=index, digest="0" * 64)
    return log.path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return written(tmp_path_factory.mktemp("log")).read_bytes().splitlines(keepends=True)


def check(folder: Path, lines: list[bytes], anchors: Any = ()) -> set[str]:
    path = folder / "checked.jsonl"
    path.write_bytes(b"".join(lines))
    return {problem.code for problem in verify(path, KEY.public_key(), anchors)}


def test_an_untouched_log_is_whole_private_and_continued(tmp_path: Path) -> None:
    path = written(tmp_path)
    again = AuditLog(path, KEY, owner="a")
    head = again.append("task", round=1)
    assert verify(path, KEY.public_key(), [head, Head()]) == []
    assert [line.n for line in read_lines(path)] == list(range(1, 15))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (head.length, again.head()) == (14, head)


@given(st.integers(0, 11), st.integers(0, 11), st.sampled_from(["remove", "swap", "twice"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_removed_repeated_and_reordered_lines_are_found(
    tmp_path: Path, raw: list[bytes], first: int, second: int, how: str
) -> None:
    lines, head = list(raw), parse_line(raw[-1])
    assert head is not None
    if how == "remove":
        del lines[first]
    elif how == "twice":
        lines.insert(second, lines[first])
    elif first != second:
        lines[first], lines[second] = lines[second], lines[first]
    found = check(tmp_path, lines, [Head(head.n, head.digest)])
    assert bool(found) == (lines != raw)


@given(st.integers(0, 11), st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_changed_byte_is_found(tmp_path: Path, raw: list[bytes], index: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(raw[index]) - 2))  # the end of line aside
    changed = bytearray(raw[index])
    changed[place] ^= data.draw(st.integers(1, 255))
    if parse_line(bytes(changed)) == parse_line(raw[index]):  # another way to write the same
        return
    assert check(tmp_path, [*raw[:index], bytes(changed), *raw[index + 1 :]])


def test_another_spelling_of_a_signature_is_a_change(tmp_path: Path, raw: list[bytes]) -> None:
    """Base64's last letter holds bits that are not read: the same bytes, another line."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    found = 0
    for index, line in enumerate(raw):
        value = json.loads(line)
        body = value["signature"].rstrip("=")
        if len(body) % 4 == 0:
            continue
        value["signature"] = body[:-1] + letters[letters.index(body[-1]) ^ 1] + "=" * (-len(body) % 4)
        assert base64.b64decode(value["signature"]) == base64.b64decode(json.loads(line)["signature"])
        changed = json.dumps(value).encode() + b"\n"
        assert check(tmp_path, [*raw[:index], changed, *raw[index + 1 :]]) == {"signature"}
        found += 1
    assert found or len(raw) < 3  # two lengths of three have such a letter


def test_a_chain_made_anew_without_the_key_is_found(tmp_path: Path, raw: list[bytes]) -> None:
    forged = AuditLog(tmp_path / "forged.jsonl", OTHER, owner="a")
    for _ in range(3):
        forged.append("payload")
    assert {p.code for p in verify(forged.path, KEY.public_key())} == {"signature"}
    value = json.loads(raw[3])
    value["facts"]["index"] = 99
    assert check(tmp_path, [*raw[:3], json.dumps(value).encode() + b"\n", *raw[4:]]) == {"changed"}


def test_what_was_cut_off_is_found_by_the_other_sides_anchor(tmp_path: Path, raw: list[bytes]) -> None:
    last = parse_line(raw[-1])
    assert last is not None
    assert check(tmp_path, raw[:-2]) == set()
    assert check(tmp_path, raw[:-2], [Head(last.n, last.digest)]) == {"cut"}
    assert check(tmp_path, raw, [Head(last.n, "f" * 64)]) == {"rewritten"}
    assert check(tmp_path, []) == {"empty"}


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_line_that_a_crash_left_torn_is_taken_off_and_said(tmp_path: Path, raw: list[bytes], part: float) -> None:
    path = tmp_path / "torn.jsonl"
    torn = raw[-1][: max(1, int(len(raw[-1]) * part))]
    path.write_bytes(b"".join(raw[:-1]) + torn)
    assert {p.code for p in verify(path, KEY.public_key())} == {"torn"}
    AuditLog(path, KEY, owner="a")
    assert verify(path, KEY.public_key()) == []
    recovered, opened = read_lines(path)[-2:]
    assert (recovered.kind, recovered.facts["bytes"], opened.kind) == ("recovered", len(torn), "opened")


def test_a_log_of_nothing_but_a_torn_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"n": 1, "ti')
    AuditLog(tmp_path / "audit.jsonl", KEY, owner="a")
    assert [line.kind for line in read_lines(tmp_path / "audit.jsonl")] == ["recovered", "opened"]
    assert verify(tmp_path / "audit.jsonl", KEY.public_key()) == []


def test_a_damaged_last_line_is_not_continued(tmp_path: Path, raw: list[bytes]) -> None:
    path = tmp_path / "audit.jsonl"
    for last in (b"not a line\n", raw[-1].replace(b'"index":10', b'"index":11')):
        path.write_bytes(b"".join(raw[:-1]) + last)
        with pytest.raises(ModelFileError, match="damaged"):
            AuditLog(path, KEY, owner="a")


def test_a_disk_that_is_full_is_said_and_the_log_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    log = AuditLog(path, KEY, owner="a")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
        with pytest.raises(MachineError, match="No space left"):
            log.append("payload")
    log.append("payload")
    assert [line.kind for line in read_lines(path)[-2:]] == ["recovered", "payload"]
    assert verify(path, KEY.public_key()) == []


def _write(path: Path, name: str) -> None:
    log = AuditLog(path, KEY, owner=name)
    for index in range(15):
        log.append("payload", index=index)


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    children = [multiprocessing.get_context("fork").Process(target=_write, args=(path, name)) for name in "ab"]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    assert verify(path, KEY.public_key()) == []
    assert len(read_lines(path)) == 32


def test_facts_are_json_and_a_missing_log_is_said(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", KEY, owner="a")
    for fact in (float("nan"), {1, 2}, b"x"):
        with pytest.raises(FedDiffmicError):
            log.append("task", fact=fact)
    log.append("task", long="x" * 200_000)  # longer than what is read at once
    AuditLog(log.path, KEY, owner="a")
    assert verify(log.path, KEY.public_key()) == []
    with pytest.raises(ModelFileError, match="cannot be read"):
        verify(tmp_path / "none", KEY.public_key())


def signed(number: int, previous: str, **facts: Any) -> bytes:
    """A line that the keeper's own key signed, whatever it says."""
    line: dict[str, Any] = {"n": number, "time": "2026-01-01T00:00:00.000+00:00", "kind": "payload", "facts": facts}
    line["previous"] = previous
    line["digest"] = line_digest(line)
    line["signature"] = base64.b64encode(sign(KEY, DOMAIN + line["digest"].encode())).decode()
    return (canonical(line) + "\n").encode()


@pytest.mark.parametrize("place", [0, 3, 11])
def test_a_line_that_the_keeper_wrote_anew_breaks_the_chain_behind_it(
    tmp_path: Path, raw: list[bytes], place: int
) -> None:
    """Whole and signed: only that the next line names another one before it gives it away."""
    old = parse_line(raw[place])
    assert old is not None
    again = signed(old.n, old.previous, index=99)
    path = tmp_path / "checked.jsonl"
    path.write_bytes(b"".join([*raw[:place], again, *raw[place + 1 :]]))
    found = [(problem.line, problem.code) for problem in verify(path, KEY.public_key())]
    assert found == ([(place + 2, "chain")] if place < 11 else [])  # behind the last line stands only an anchor
    assert [p.code for p in verify(path, KEY.public_key(), [Head(old.n, old.digest)])][-1] == "rewritten"


def test_the_first_line_continues_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checked.jsonl"
    path.write_bytes(signed(1, "f" * 64))
    assert [(p.line, p.code) for p in verify(path, KEY.public_key())] == [(1, "chain")]
    path.write_bytes(signed(1, GENESIS))
    assert verify(path, KEY.public_key()) == []


def test_missing_lines_are_counted_and_a_repeated_one_does_not_vouch_for_an_anchor(
    tmp_path: Path, raw: list[bytes]
) -> None:
    path = tmp_path / "checked.jsonl"
    path.write_bytes(b"".join([*raw[:3], *raw[6:]]))
    (problem,) = verify(path, KEY.public_key())
    assert (problem.line, problem.code, problem.text) == (4, "removed", "3 lines before line 7 are missing")
    fifth = parse_line(raw[4])
    assert fifth is not None
    forged = signed(5, fifth.previous, index=99)
    again = parse_line(forged)
    assert again is not None
    # Two lines of one number: the anchor is held against the first.
    path.write_bytes(b"".join([*raw, forged]))
    assert [p.code for p in verify(path, KEY.public_key(), [Head(5, fifth.digest)])] == ["reordered"]
    assert [p.code for p in verify(path, KEY.public_key(), [Head(5, again.digest)])] == ["reordered", "rewritten"]
