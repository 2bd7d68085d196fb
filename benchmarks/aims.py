"""What was aimed at in speed and what one run on this machine shows of it, written into a page.

    python -m benchmarks.aims PAGE [--small] [--only start ...] [--pfl-python PATH] [--flower-python PATH]

Each figure comes from one of the programs beside this one, run here one after the other, each in a process of its own:
:mod:`benchmarks.step`, :mod:`benchmarks.private_step`, :mod:`benchmarks.start` and :mod:`benchmarks.peers` (which says
how to have the peers). All are processor seconds or memory, mostly as ratios of one run, and walls where the aim is
one. What failed or is not there has no figure, and the table says so. Everything between ``<!-- aims -->`` and
``<!-- end of aims -->`` is replaced. Half an hour; ``--only``: these programs, and the other rows stay as they are, if
they come from a machine of the same kind; ``--small``: sizes that only show that it works.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.pages import fill, inside, read
from benchmarks.peers_work import end_tree
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from fed_diffmic.training.precision import has_bfloat16
from simulations.experiments.answer import table

MARK = "aims"
LIMIT = 3600.0  # seconds for one program
HEADS = ("what", "aim, at most", "measured", "reached", "when")
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"


@dataclass(frozen=True)
class Aim:
    """A figure and where a program says it.

    Attributes:
        what: is measured, with its unit.
        most: is aimed at.
        pattern: of the program's output; its first group is the figure, of the first line that has it.
    """

    what: str
    most: float
    pattern: str


@dataclass(frozen=True)
class Program:
    """A program beside this one, with its arguments, and what of its output was aimed at."""

    arguments: Sequence[str]
    aims: Sequence[Aim]


def steps(model: str, repeats: int) -> Program:
    """A training step and a prediction over their plain twins."""
    row, name = rf"{NUMBER} \|$", re.escape(model)
    aims = [
        Aim(f"`{model}`, training step, diffusion stage, float32, over its plain twin", 0.7,
            rf"^\| {name}, diffusion, step of \d+ \| float32 \|.*\| {row}"),
        Aim(f"`{model}`, prediction, ten steps, float32, over its plain twin", 0.12,
            rf"^\| {name}, prediction of \d+ \| float32 \|.*\| {row}"),
    ]  # fmt: skip
    if has_bfloat16("cpu"):
        aims += [
            Aim(f"`{model}`, training step, diffusion stage, bfloat16, over its plain twin", 0.45,
                rf"^\| {name}, diffusion, step of \d+ \| bfloat16 \|.*\| {row}"),
            Aim(f"`{model}`, prediction, ten steps, bfloat16, over its plain twin", 0.07,
                rf"^\| {name}, prediction of \d+ \| bfloat16 \|.*\| {row}"),
        ]  # fmt: skip
    return Program(["benchmarks.step", "--models", model, "--repeats", str(repeats)], aims)


def private(model: str, stage: str, images: int, repeats: int) -> Program:
    """A private step over a plain one: seconds and memory."""
    told = f"`{model}`, private step, {stage} stage, {images} images, over a plain one"
    head = ["--set", "model.denoiser=noise"] if model == "compact" and stage == "diffusion" else []
    said = ["--model", model, "--stage", stage, "--images", str(images), "--physical", str(images)]
    return Program(
        ["benchmarks.private_step", *said, "--ways", "plain", "ghost", "--repeats", str(repeats), *head],
        [
            Aim(f"{told}: seconds", 3.0, rf"^ghost .*? over plain +{NUMBER} .*\(ghost\)$"),
            Aim(f"{told}: memory", 2.0, rf"^ghost .*GB +over plain +{NUMBER} +\(ghost\)$"),
        ],
    )


def start(repeats: int) -> Program:
    """Processor seconds of a start."""
    return Program(
        ["benchmarks.start", "--repeats", str(repeats)],
        [
            Aim("`fed-diffmic --help`, processor seconds", 0.2, rf"^fed-diffmic --help +{NUMBER} s$"),
            Aim("`simulate` up to the end of its first round, processor seconds", 4.0, rf"round_done +{NUMBER} s$"),
        ],
    )


def peers(settings: str, rounds: int, pythons: Sequence[str]) -> Program:
    """A round of virtual sites over the same work by the peers."""
    aims = []
    for setting in settings.split(","):
        sites, drawn = setting.split("/")
        told = f"a round of {int(sites):,} virtual sites, {drawn} drawn"
        before = rf"^\| {setting} \|(?:[^|]*\|){{3}}"
        aims += [
            Aim(f"{told}, over pfl's", 1.0, rf"{before}[^|]*\| {NUMBER}, wall"),
            Aim(f"{told}, over Flower's", 0.5, rf"{before}(?:[^|]*\|){{3}} {NUMBER}, wall"),
            Aim(f"{told}, over Flower's, wall", 1.0, rf"{before}(?:[^|]*\|){{3}} [0-9.]+, wall {NUMBER}"),
        ]
    pfl, flower = pythons
    more = ["--pfl-python", pfl, "--flower-python", flower, "--rounds", str(rounds), "--settings", settings]
    return Program(["benchmarks.peers", *more], aims)


def programs(small: bool, pythons: Sequence[str]) -> list[Program]:
    """All of them; ``small``: at sizes that show nothing but that they work."""
    if small:
        return [steps("tiny", 1), private("tiny", "guidance", 4, 1), start(1), peers("4/4", 2, pythons)]
    return [
        steps("paper", 3),
        private("compact", "guidance", 16, 3),
        private("compact", "diffusion", 16, 3),
        private("paper", "guidance", 4, 2),
        private("paper", "diffusion", 4, 2),
        start(3),
        peers("10/10,100/10,100/50,1000/50", 4, pythons),
    ]


def run(program: Program) -> str:
    """What a program printed, also where it failed on the way or took too long; why goes to stderr as it comes.

    What it started ends with it: left behind, that would be measured with the next program.
    """
    with tempfile.TemporaryFile("w+") as said:
        # Python compiles what it imports at every start where it may not keep what it compiled.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with subprocess.Popen([sys.executable, "-m", *program.arguments], stdout=said, env=env) as child:
            try:
                child.wait(LIMIT)
            except subprocess.TimeoutExpired:
                end_tree(child.pid)
        said.seek(0)
        return said.read()


def rows(program: Program, said: str, when: str) -> list[list[str]]:
    """A row of the table for each aim: reached, or by how much not."""
    found = []
    for aim in program.aims:
        seen = re.search(aim.pattern, said, re.MULTILINE)
        if seen is None:
            found.append([aim.what, f"{aim.most:g}", "not measured", "", when])
            continue
        value = float(seen.group(1))
        verdict = "yes" if value <= aim.most else f"no, by {100 * (value / aim.most - 1):.0f} %"
        found.append([aim.what, f"{aim.most:g}", seen.group(1), verdict, when])
    return found


def machine() -> str:
    """What was measured on, and how, in a sentence."""
    units = "with" if has_bfloat16("cpu") else "without"
    kind = f"{torch.backends.cpu.get_cpu_capability()}, {units} units for bfloat16, {os.cpu_count()} cores"
    return (
        f"A processor with {kind}; one thread a process, torch {torch.__version__.split('+')[0]}. A row's program is "
        "one run; the load is the machine's when it began. Seconds are the processor's unless they are called wall; of "
        "a program's repeats the least (steps, starts) or the median."
    )


def kept(page: str) -> dict[str, list[str]]:
    """The rows that stand on a page, by what they are of.

    Raises:
        UsageError: what stands between the marks is from another kind of machine.
    """
    lines = inside(page, MARK).splitlines()
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    if found and machine() not in lines:
        raise UsageError("The page's rows are from another kind of machine.", "Measure all: leave out --only.")
    return {row[0]: row for row in found}


def measured(
    found: Sequence[Program], execute: Callable[[Program], str], old: Mapping[str, list[str]], only: Sequence[str]
) -> list[str]:
    """The table, rows of programs that are not measured as they were, and on what machine that was."""
    lines: list[list[str]] = []
    for program in found:
        if only and program.arguments[0].removeprefix("benchmarks.") not in only:
            lines += [old[aim.what] for aim in program.aims if aim.what in old]
            continue
        when = f"{datetime.datetime.now(datetime.UTC).date()}, load {os.getloadavg()[0]:.1f}"
        lines += rows(program, execute(program), when)
    return [*table(HEADS, lines), machine()]


def main() -> int:
    """Read the arguments, measure, write the page.

    Raises:
        UsageError: the page has no marks, or see :func:`kept`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], choices=("step", "private_step", "start", "peers"))
    parser.add_argument("--pfl-python", default=sys.executable)
    parser.add_argument("--flower-python", default=sys.executable)
    given = parser.parse_args()
    old = kept(read(given.page)) if given.only else {}
    found = programs(given.small, (given.pfl_python, given.flower_python))
    fill(given.page, MARK, lambda: measured(found, run, old, given.only))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
