"""The log of a run: strict, append-only, readable after a crash at any byte."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.reporting.events import Event, EventLog, earlier_seconds, plain, read_events


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        written = [
            log.emit("run_started", run="r", sites=("a", "b")),
            log.emit("round_done", figures={"auroc_macro": 0.5}),
        ]
    found = read_events(path)
    assert found == written and found[0]["sites"] == ["a", "b"]
    age = datetime.now(UTC) - datetime.fromisoformat(found[0]["time"])
    assert age.total_seconds() < 60 and 0 <= found[0]["elapsed"] <= found[1]["elapsed"]


def test_numpy_and_numbers_that_json_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    facts = {
        "loss": np.float32("nan"),
        "n": np.int64(3),
        "v": np.array([1.5, np.inf]),
        "ok": np.bool_(True),
        "m": {1: (2,)},
    }
    EventLog(path).emit("site_done", **facts)
    line = path.read_text()
    assert "NaN" not in line and "Infinity" not in line
    found = json.loads(line)
    assert {key: found[key] for key in facts} == {"loss": None, "n": 3, "v": [1.5, None], "ok": True, "m": {"1": [2]}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
@settings(max_examples=100, deadline=None)
def test_plain_is_always_strict_json(value: object) -> None:
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == plain(value) and "\n" not in text


def test_what_is_not_data_is_refused_and_reserved_names_too(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(TypeError, match="Path|Posix"):
        log.emit("warning", where=tmp_path)
    with pytest.raises(ValueError, match="'time'"):
        log.emit("warning", time=3)
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize("cut", [1, 5, 40, 10_000])
def test_torn_last_line_is_left_out_and_the_log_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit("run_started", run="r")
    whole = path.read_bytes()
    log.emit("round_done", round=1)
    keep = max(len(whole) + 1, len(path.read_bytes()) - cut)
    path.write_bytes(path.read_bytes()[:keep])
    assert read_events(path)[0]["kind"] == "run_started"
    EventLog(path).emit("resumed", run="r")
    kinds = [e["kind"] for e in read_events(path)]
    assert kinds[0] == "run_started" and kinds[-2:] == ["warning", "resumed"]
    assert path.read_bytes().startswith(whole)  # nothing that was written is ever changed


def test_killed_writer_leaves_a_readable_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "import sys, pathlib\nfrom fed_diffmic.reporting.events import EventLog\n"
        "log = EventLog(pathlib.Path(sys.argv[1]))\n"
        "for i in range(100000):\n    log.emit('round_done', round=i)\n    print(i, flush=True)\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 20:
                writer.kill()
                break
    rounds = [e["round"] for e in read_events(path)]
    assert len(rounds) > 20 and rounds == list(range(len(rounds)))


def test_damage_that_no_crash_explains_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for r in range(3):
        log.emit("round_done", round=r)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]) + "\n")
    with pytest.raises(ModelFileError, match="line 2"):
        read_events(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_events(tmp_path / "none.jsonl")


def test_no_folder_is_an_error_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot append to events.jsonl"):
        EventLog(tmp_path / "missing" / "events.jsonl").emit("run_started")


def test_failing_observer_is_dropped_and_said(tmp_path: Path) -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("the terminal went away")

    log = EventLog(tmp_path / "events.jsonl", [broken, seen.append])
    log.emit("run_started")
    log.emit("run_done")
    assert [e["kind"] for e in read_events(log.path or Path())] == ["run_started", "warning", "run_done"]
    assert sorted(e["kind"] for e in seen) == ["run_done", "run_started", "warning"]


def test_observers_are_closed_once_even_after_an_interrupt() -> None:
    class Closing:
        closed = 0

        def __call__(self, event: Event) -> None:
            """Nothing."""

        def close(self) -> None:
            self.closed += 1

    watcher = Closing()
    log = EventLog(None, [watcher, print])

    def interrupted_run() -> None:
        with log:
            log.emit("run_started")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    log.close()
    assert watcher.closed == 1


def test_several_threads_do_not_mix_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    threads = [
        threading.Thread(target=lambda k=k: [log.emit("site_done", site=k, text="x" * 500) for _ in range(20)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_events(tmp_path / "events.jsonl")
    assert sorted(e["site"] for e in found) == sorted(list(range(4)) * 20)


def test_earlier_processes_count_with_what_they_wrote_last() -> None:
    def log(*elapsed: float) -> list[Event]:
        return [{"kind": "round_done", "elapsed": value} for value in elapsed]

    assert earlier_seconds([]) == earlier_seconds(log(0.0, 0.0, 7.5)) == 0
    assert earlier_seconds(log(0.0, 7.5, 0.0, 2.0, 0.5, 0.6)) == 9.5
