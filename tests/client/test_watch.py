"""What a worker says of its task, what is left of one that was ended, and when that holds."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import site as client_site
from client.watch import COMPUTING, DOING, ENDED, OPENING, Doing, Mark, Watch, leave_mark, read_doing
from client.watchdog import Verdict, Watchdog, machine_memory, memory_bound, record, resident_bytes
from fed_diffmic.config.policy_limits import Limits
from fed_diffmic.errors import MachineError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import request_name
from fed_diffmic.transport.messages import failure_of
from tests import site_rules, toy
from tests.client.test_app import context, send, task

NAME = "a" * 64


def test_a_task_is_said_while_it_lasts(tmp_path: Path) -> None:
    watch = Watch(tmp_path, tmp_path)
    with watch.doing("train", COMPUTING, NAME, 5.0, 2033):
        said = read_doing(tmp_path)
        assert said is not None
        assert (said.pid, said.task, said.request, said.allowed) == (os.getpid(), "train", NAME, 5.0)
        assert said.until == pytest.approx(time.monotonic() + 5.0, abs=2)
    assert read_doing(tmp_path) is None
    with watch.doing("query", OPENING, NAME, float("inf"), 2033):
        said = read_doing(tmp_path)
        assert said is not None and said.until is None
    (tmp_path / DOING).write_text("{")
    assert read_doing(tmp_path) is None


def test_what_cannot_be_said_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(MachineError), Watch(tmp_path / "gone", tmp_path).doing("train", COMPUTING, NAME, 5.0, 2033):
        pytest.fail("begun")


def test_time_ends_a_task_after_the_grace_and_only_this_workers(tmp_path: Path) -> None:
    dog = Watchdog(Limits(grace_s=2.0), tmp_path, float("inf"))
    assert dog.look(os.getpid(), 0.0) is None
    with Watch(tmp_path, tmp_path).doing("train", COMPUTING, NAME, 5.0, failures.POLICY_SECONDS):
        now = time.monotonic()
        assert dog.look(os.getpid(), now + 6.5) is None
        assert dog.look(os.getpid() + 1, now + 100) is None
        found = dog.look(os.getpid(), now + 8.0)
    assert found is not None and found.doing is not None
    assert (found.code, found.allowed, found.doing.request) == (failures.POLICY_SECONDS, 5.0, NAME)


def test_memory_ends_a_worker_in_a_task_or_not(tmp_path: Path) -> None:
    used = resident_bytes(os.getpid())
    assert used > 10 * 2**20
    assert resident_bytes(2**30) == 0
    assert Watchdog(Limits(), tmp_path, 2.0 * used).look(os.getpid(), 0.0) is None
    found = Watchdog(Limits(), tmp_path, used / 2).look(os.getpid(), 0.0)
    assert found is not None and found.doing is None and found.code == failures.LIMIT_MEMORY
    assert memory_bound(Limits(memory_mib=3.0)) == 3 * 2**20
    assert memory_bound(Limits()) == 0.8 * machine_memory() < float("inf")


def test_a_mapped_file_is_no_memory_of_ones_own(tmp_path: Path) -> None:
    import mmap

    (tmp_path / "big").write_bytes(bytes(64 << 20))
    before = resident_bytes(os.getpid())
    with (tmp_path / "big").open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert resident_bytes(os.getpid()) - before < 8 << 20


def test_a_mark_is_left_but_not_of_what_the_hours_ended(tmp_path: Path) -> None:
    doing = Doing(1, "train", COMPUTING, NAME, 1.0, 5.0, failures.POLICY_SECONDS)
    facts = record(Verdict("late", failures.POLICY_SECONDS, 5.0, doing), tmp_path)
    assert facts["code"] == failures.POLICY_SECONDS and facts["request"] == NAME
    assert (tmp_path / ENDED / f"{NAME}.json").stat().st_mode & 0o777 == 0o600
    other = replace(doing, request="b" * 64)
    record(Verdict("night", failures.POLICY_HOURS, 5.0, other), tmp_path)
    assert [path.stem for path in (tmp_path / ENDED).iterdir()] == [NAME]
    assert record(Verdict("idle", failures.LIMIT_MEMORY, 5.0, None), tmp_path) == {
        "code": failures.LIMIT_MEMORY,
        "reason": "idle",
    }


def test_a_question_of_every_run_is_refused_for_a_while_only(tmp_path: Path) -> None:
    for at, held in ((time.time(), True), (time.time() - 1000, False)):
        leave_mark(tmp_path, NAME, Mark("query", OPENING, failures.POLICY_SECONDS, 5.0, at))
        assert (Watch(tmp_path, tmp_path).mark(NAME) is not None) == held
    leave_mark(tmp_path, NAME, Mark("train", COMPUTING, failures.POLICY_SECONDS, 5.0, time.time() - 1e6))
    assert Watch(tmp_path, tmp_path).mark(NAME) is not None
    (tmp_path / ENDED / f"{NAME}.json").write_text("{")
    assert Watch(tmp_path, tmp_path).mark(NAME) is None


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    source = toy.ToySource({"a": toy.toy_site("a", 1)})
    (tmp_path / "a").mkdir()

    def under(**changes: Any) -> None:
        rules = site_rules.rules(tmp_path / "log", "a", **changes)
        watch = Watch(tmp_path, tmp_path / "a")
        client_site.register_source(source, rules=replace(rules, watch=watch))

    yield under
    client_site.register_source(source)


def test_a_request_that_was_ended_is_answered_until_more_is_allowed(tmp_path: Path, watched: Any) -> None:
    request = task("train")
    mark = Mark("train", COMPUTING, failures.POLICY_SECONDS, 600.0, time.time())
    leave_mark(tmp_path / "a", request_name(request.header), mark)
    watched(max_seconds=600.0)
    failed = failure_of(send(request, "train", context(tmp_path)))
    assert failed == (failures.POLICY_SECONDS, failures.FAILURES[failures.POLICY_SECONDS])
    assert failure_of(send(task("train", round=2), "train", context(tmp_path))) is None  # another one
    watched(max_seconds=601.0)
    assert failure_of(send(task("train", round=3, made_for=toy.toy_spec(rounds=3)), "train", context(tmp_path))) is None
    leave_mark(tmp_path / "a", request_name(request.header), replace(mark, code=failures.LIMIT_MEMORY, allowed=100.0))
    watched(limits=Limits(memory_mib=100.0))
    failed = failure_of(send(request, "train", context(tmp_path)))
    assert failed == (failures.LIMIT_MEMORY, failures.FAILURES[failures.LIMIT_MEMORY])


def test_images_that_take_too_long_to_read_end_the_task(
    tmp_path: Path, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fed_diffmic.deadline import check_time

    watched(limits=Limits(prepare_s=1e-3))

    def slow(*_: Any) -> None:
        time.sleep(0.02)
        check_time()

    monkeypatch.setattr(client_site._REGISTERED, "source", slow)
    failed = failure_of(send(task("train"), "train", context(tmp_path)))
    assert failed == (failures.POLICY_SECONDS, failures.FAILURES[failures.POLICY_SECONDS])
