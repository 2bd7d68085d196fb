"""Epsilon over the rounds of a ledger, drawn."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fed_diffmic.files import atomic_write
from fed_diffmic.privacy.account import Account
from fed_diffmic.reporting.plots import STYLE, WIDTH

MOST_POINTS = 200


def plot_spending(account: Account, path: Path) -> None:
    """Draw what the unit that spent most had spent after each line, with the budget, as PNG.

    Lines without privacy have no place on the axis: the curve ends there.

    Raises:
        MachineError: the file cannot be written.
    """
    entries = account.entries()
    step = max(1, len(entries) // MOST_POINTS)
    places = sorted({*range(step, len(entries) + 1, step), len(entries)} - {0})
    spent = [account.total(first=count) for count in places]
    finite = [(count, value) for count, value in zip(places, spent, strict=True) if not math.isinf(value)]
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(WIDTH, WIDTH * 0.6), layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.subplots()
        axes.step(
            [0, *(c for c, _ in finite)], [account.terms.unknown, *(v for _, v in finite)], where="post", label="spent"
        )
        axes.axhline(account.terms.budget, color="#D55E00", linestyle="--", label="budget")
        axes.set_xlabel("lines of the ledger that cost something (rounds, counts)")
        axes.set_ylabel(f"epsilon at delta {account.terms.delta:g}")
        axes.set_title(f"Spent by the {account.terms.unit} that spent most")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.legend(loc="lower right")
        stream = io.BytesIO()
        drawing.savefig(stream, format="png", dpi=150)
    atomic_write(path, stream.getvalue())
