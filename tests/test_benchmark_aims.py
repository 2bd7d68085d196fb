"""The table of what was aimed at: figures are read from the right cells of what the programs print, and judged."""

import re
import sys
import time
from pathlib import Path

import pytest

from benchmarks import aims
from fed_diffmic.errors import UsageError

STEP = """| what | how | least, s | median, s | ratio |
|---|---|---|---|---|
| paper, diffusion, step of 8 | plain float32 | 15.300 | 15.900 | 1.00 |
| paper, diffusion, step of 8 | float32 | 14.000 | 14.600 | 0.92 |
| paper, guidance, step of 8 | plain float32 | 3.950 | 4.000 | 1.00 |
| paper, guidance, step of 8 | float32 | 3.860 | 3.900 | 0.55 |
| paper, prediction of 4 | plain float32 | 28.100 | 28.200 | 1.00 |
| paper, prediction of 4 | float32 | 3.530 | 3.600 | 0.12 |
"""
PRIVATE = """compact, guidance: 16 images of 64 px, 3.6 M trained numbers, 16 units at a time
taken together: yes
plain     0.743 s   over plain   1.00   memory   0.20 GB   over plain  1.00   (plain)
ghost     1.085 s   over plain   1.46   memory   0.50 GB   over plain  2.50   (ghost)
"""
PEERS = """| sites / drawn | bare, CPU s a round | ours / bare | ours, CPU s a round | pfl | ours / pfl | flower | ours / flower | w |
|---|---|---|---|---|---|---|---|---|
| 10/10 | 0.61, wall 0.70 | 1.43, wall 1.60 | 0.88, wall 1.12 | 0.69, wall 0.7 | 1.28, wall 1.9 | 1.48, wall 3.0 | 0.59, wall 0.37 | a |
| 100/10 | 0.61, wall 0.70 | 1.43, wall 1.60 | 0.88, wall 1.12 | not installed |  | failed |  | x |
"""  # noqa: E501
START = """fed-diffmic --help              0.14 s
simulate, up to run_begins      8.00 s
simulate, up to round_done      9.54 s
"""


def judged(program, said):
    return {row[0]: tuple(row[2:4]) for row in aims.rows(program, said, "today")}


def test_a_ratio_is_read_from_the_row_of_its_stage_and_precision(monkeypatch):
    monkeypatch.setattr(aims, "has_bfloat16", lambda device: False)
    found = judged(aims.steps("paper", 3), STEP)
    assert list(found.values()) == [("0.92", "no, by 31 %"), ("0.12", "yes")]
    assert all("`paper`" in what and "float32" in what for what in found)


def test_where_there_are_units_for_bfloat16_its_figures_are_asked_for(monkeypatch):
    monkeypatch.setattr(aims, "has_bfloat16", lambda device: True)
    more = "| paper, diffusion, step of 8 | bfloat16 | 5.000 | 5.100 | 0.33 |\n"
    found = judged(aims.steps("paper", 3), STEP + more)
    assert [found[what] for what in found if "bfloat16" in what] == [("0.33", "yes"), ("not measured", "")]


def test_seconds_and_memory_of_a_private_step_are_not_taken_for_one_another():
    found = judged(aims.private("compact", "guidance", 16, 3), PRIVATE)
    assert [found[what] for what in found if what.endswith("seconds")] == [("1.46", "yes")]
    assert [found[what] for what in found if what.endswith("memory")] == [("2.50", "no, by 25 %")]


def test_who_is_not_there_has_no_figure():
    found = judged(aims.peers("10/10,100/10", 4, ("p", "f")), PEERS)
    assert [found[what] for what in found if " 10 virtual" in what] == [
        ("1.28", "no, by 28 %"), ("0.59", "no, by 18 %"), ("0.37", "yes"),
    ]  # fmt: skip
    assert [found[what] for what in found if " 100 virtual" in what] == [("not measured", "")] * 3


def test_a_start():
    assert list(judged(aims.start(2), START).values()) == [("0.14", "yes"), ("9.54", "no, by 138 %")]


def test_a_program_that_fails_or_takes_too_long_leaves_what_it_printed(monkeypatch, tmp_path):
    (tmp_path / "half.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "print('simulate, up to round_done 3.00 s', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(aims, "LIMIT", 2.0)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert aims.run(aims.Program(["half"], ())) == "simulate, up to round_done 3.00 s\n"
    left = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    for _ in range(100):  # whoever takes over an orphan buries it when it likes
        if not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the program had started goes on")


def test_the_page_keeps_what_is_around_the_table_and_says_on_what_it_was_measured(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- aims -->\nold\n<!-- end of aims -->\nafter\n")
    monkeypatch.setattr(aims, "run", lambda program: START)
    monkeypatch.setattr(sys, "argv", ["aims", str(page), "--small"])
    assert aims.main() == 0
    said = page.read_text()
    assert said.startswith("before\n") and said.endswith("after\n") and "old" not in said
    row = r"\| `simulate` up to the end of its first round, processor seconds \| 4 \| 9.54 \| no, by 138 % \| "
    assert re.search(row + r"\d{4}-\d\d-\d\d, load [0-9.]+ \|\n", said)
    assert re.search(r"\nA processor with .* units for bfloat16, \d+ cores; one thread", said)
    assert said.count("| not measured |  |") == said.count("\n| `tiny`") + 3


def test_rows_of_programs_that_are_not_measured_stay_as_they_are(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- aims -->\n<!-- end of aims -->\n")
    said = {"benchmarks.start": START, "benchmarks.peers": PEERS.replace("10/10", "4/4")}
    monkeypatch.setattr(aims, "run", lambda program: said.get(program.arguments[0], ""))
    monkeypatch.setattr(sys, "argv", ["aims", str(page), "--small"])
    aims.main()
    first = page.read_text()
    said["benchmarks.start"] = START.replace("9.54", "3.50")
    said["benchmarks.peers"] = ""
    monkeypatch.setattr(sys, "argv", ["aims", str(page), "--small", "--only", "start"])
    aims.main()
    assert "| 1.28 | no, by 28 % |" in first and "| 9.54 | no, by 138 % |" in first
    parts = r"(\| 9.54 \| no, by 138 %|\| 3.50 \| yes|load [0-9.]+)"
    assert re.sub(parts, "", page.read_text()) == re.sub(parts, "", first) and "| 3.50 | yes |" in page.read_text()


def test_rows_of_another_machine_do_not_stay(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- aims -->\n| what |\n| --- |\n| a | 1 | 2 | no | x |\n\nA processor with X.\n<!-- end of aims -->\n"
    )
    before = page.read_text()
    monkeypatch.setattr(aims, "measured", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["aims", str(page), "--only", "start"])
    with pytest.raises(UsageError, match="another kind of machine"):
        aims.main()
    assert page.read_text() == before


def test_a_page_without_marks_is_told_of_before_anything_is_measured(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    monkeypatch.setattr(aims, "measured", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["aims", str(page)])
    with pytest.raises(UsageError, match="aims"):
        aims.main()
    assert page.read_text() == "nothing\n"


def test_every_program_is_there():
    for small in (True, False):
        for program in aims.programs(small, ("p", "f")):
            assert (Path(aims.__file__).parent / f"{program.arguments[0].partition('.')[2]}.py").is_file()
