"""A key that changed is a line of the log, and the log verifies across it with both keys, and not with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fed_diffmic.cli import main
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.provision.keys import load_private, make_site_key

LINES = 30


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of :data:`LINES` lines by the old key."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name in ("old", "new", "third"):
        make_site_key(tmp_path / f"{name}.key")
    log = AuditLog(tmp_path / "audit.jsonl", load_private(tmp_path / "old.key"), owner="a")
    for index in range(LINES - 1):
        log.append("task", run="pilot", request=str(index))
    return tmp_path


def verify(folder: Path, *keys: str) -> int:
    given = [word for key in keys for word in ("--key", str(folder / f"{key}.key.pub"))]
    return main(["audit", "verify", str(folder / "audit.jsonl"), *given])


def rekey(folder: Path, *more: str) -> int:
    return main(["audit", "rekey", str(folder / "audit.jsonl"), "--key", str(folder / "new.key"), *more])


def go_on(folder: Path, key: str = "new") -> None:
    log = AuditLog(folder / "audit.jsonl", load_private(folder / f"{key}.key"), owner="a")
    for index in range(5):
        log.append("task", run="pilot", request=f"later {index}")


@pytest.mark.parametrize("how", [("--old", "old.key"), ("--accept",)])
def test_a_log_verifies_across_a_change_of_its_key(
    folder: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    assert rekey(folder, *(str(folder / word) if word.endswith(".key") else word for word in how)) == 0
    go_on(folder)
    capsys.readouterr()
    assert verify(folder, "old", "new") == verify(folder, "new", "old") == 0
    said = capsys.readouterr().out
    assert f"{LINES + 8} lines by a, no problems" in said
    assert ("the old key did not sign that" in said) == (how == ("--accept",))
    for one in ("old", "new"):  # one key alone: it says which two are needed
        assert verify(folder, one) == 4
        assert "give both with --key" in capsys.readouterr().out
    assert verify(folder, "old", "new", "third") == 0


def test_a_log_is_not_continued_with_another_key_unsaid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "audit.jsonl").read_bytes()
    with pytest.raises(ModelFileError, match="is kept by another key") as caught:
        go_on(folder)
    assert "audit rekey" in caught.value.remedy
    assert (folder / "audit.jsonl").read_bytes() == before
    assert rekey(folder) == 2  # neither the old key nor a person's word
    assert rekey(folder, "--old", str(folder / "third.key")) == 4  # not the key that kept it
    assert (folder / "audit.jsonl").read_bytes() == before


def test_the_old_key_may_not_go_on_behind_the_new_one(folder: Path) -> None:
    still_open = AuditLog(folder / "audit.jsonl", load_private(folder / "old.key"), owner="a")
    assert rekey(folder, "--old", str(folder / "old.key")) == 0
    with pytest.raises(ModelFileError, match="is kept by another key"):
        AuditLog(folder / "audit.jsonl", load_private(folder / "old.key"), owner="a")
    go_on(folder)
    go_on(folder)  # and once more: nothing is handed over twice
    kinds = [line.kind for line in read_lines(folder / "audit.jsonl")]
    assert kinds.count("rekeyed") == 1
    assert still_open.head().length == len(kinds)


def test_two_keys_do_not_excuse_a_change_that_no_line_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was added by another key, chained as it should be, without the change being said."""
    other = folder / "other.jsonl"
    other.write_bytes((folder / "audit.jsonl").read_bytes())
    log = AuditLog.__new__(AuditLog)
    vars(log).update(vars(AuditLog(folder / "audit.jsonl", load_private(folder / "old.key"), owner="a")))
    log._signer = load_private(folder / "new.key")
    log.append("task", run="pilot", request="later")
    assert verify(folder, "old", "new") == 4
    assert "no line says that it took over" in capsys.readouterr().out


def test_taking_over_is_not_possible_for_a_third_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line ``rekeyed`` that neither of the two keys that it names has signed."""
    log = AuditLog(folder / "audit.jsonl", load_private(folder / "old.key"), owner="a")
    log._signer = load_private(folder / "third.key")
    old, new = (_fingerprint(folder / f"{name}.key.pub") for name in ("old", "new"))
    log.append("rekeyed", **{"from": old, "to": new, "accepted": True})
    assert verify(folder, "old", "new") == 4
    assert "without the signature of either" in capsys.readouterr().out


def _fingerprint(path: Path) -> str:
    from fed_diffmic.provision.keys import fingerprint, load_public

    return fingerprint(load_public(path))
