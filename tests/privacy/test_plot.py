"""The curve of what was spent: each line's total, the budget, and an end where privacy ends."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy import plot
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.continuity import accept
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.provision.keys import load_private, make_site_key
from tests.privacy.test_units import units

STEP = Mechanism(0.1, 2.0, 5)
PLACE = {"run": "r", "arm": "federated", "stage": "guidance", "round_index": 1}
A, B = units((1, "a")), units((2, "b"))


@pytest.fixture
def drawn(monkeypatch):
    """The drawings that were made; their pixels are looked at where the command is (tests/commands/test_ledger.py)."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda self, stream, **_: found.append(self) or stream.write(b"pixels"))
    return found


def books(tmp_path, key=None):
    if key is None:
        make_site_key(tmp_path / "key")
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700, exist_ok=True)
    privacy = PrivacyConfig(name="dp_sgd", unit="patient", budget=8.0, delta=1e-5, accountant="rdp")
    return folder, load_private(tmp_path / "key"), privacy


def test_each_step_is_the_worst_units_total_up_to_that_line(tmp_path, drawn):
    folder, key, privacy = books(tmp_path)
    with Ledger(folder, privacy, key) as ledger:
        for who in (A, B, A):
            ledger.reserve(who, STEP, **PLACE)
        plot.plot_spending(ledger, tmp_path / "epsilon.png")
        ledger.unprotected(A, **PLACE)
        ledger.reserve(B, STEP, **PLACE)
        plot.plot_spending(ledger, tmp_path / "after.png")
    one, two = (epsilon([STEP] * n, 1e-5, "rdp") for n in (1, 2))
    for drawing, name in zip(drawn, ("epsilon.png", "after.png"), strict=True):
        (axes,) = drawing.axes
        curve, budget = axes.lines
        assert np.asarray(curve.get_xdata()).tolist() == [0, 1, 2, 3]  # lines without privacy have no place
        np.testing.assert_allclose(curve.get_ydata(), [0, one, one, two])
        assert set(budget.get_ydata()) == {8.0} and curve.get_drawstyle() == "steps-post"
        assert (axes.get_title(loc="left"), axes.get_ylabel()) == (
            "Spent by the patient that spent most",
            "epsilon at delta 1e-05",
        )
        assert (tmp_path / name).read_bytes() == b"pixels"


def test_what_a_person_stated_is_there_from_the_start_and_long_ledgers_are_thinned_to_their_end(
    tmp_path, drawn, monkeypatch
):
    monkeypatch.setattr(plot, "MOST_POINTS", 2)
    folder, key, privacy = books(tmp_path)
    with Ledger(folder, privacy, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    path = folder / "privacy" / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    accept(folder, key, reason="the disk failed", spent=1.5)
    with Ledger(folder, privacy, key) as ledger:
        for _ in range(7):
            ledger.reserve(A, STEP, **PLACE)
        plot.plot_spending(ledger, tmp_path / "epsilon.png")
    curve = drawn[0].axes[0].lines[0]
    assert np.asarray(curve.get_xdata()).tolist() == [0, 3, 6, 7]
    wanted = [1.5, *(1.5 + epsilon([STEP] * n, 1e-5, "rdp") for n in (3, 6, 7))]
    np.testing.assert_allclose(curve.get_ydata(), wanted, rtol=1e-6)
