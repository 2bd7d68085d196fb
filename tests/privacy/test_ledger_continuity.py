"""A ledger that was lost, cut, set back or changed is refused, and what a person accepts is counted."""

import math
import shutil
from dataclasses import replace

import pytest

from fed_diffmic.errors import BudgetError, LedgerError
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.privacy import continuity
from fed_diffmic.privacy.account import FILE, FOLDER, SECRET
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.privacy.continuity import ANCHOR, accept
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import head_text, parse_seen
from tests.privacy.ledgers import PLACE, PRIVACY, STEP, A, B, refused, spent_something


def test_a_ledger_that_was_shortened_is_refused(site, key):
    spent_something(site, key)
    path = site / FOLDER / FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "ledger accept" in refused(site, key, "seen before|saw line").remedy


@pytest.mark.parametrize("gone", ["file", "empty", "folder"])
def test_a_missing_or_empty_ledger_is_refused(site, key, gone):
    spent_something(site, key)
    if gone == "folder":
        shutil.rmtree(site / FOLDER)
    elif gone == "file":
        (site / FOLDER / FILE).unlink()
    else:
        (site / FOLDER / FILE).write_bytes(b"")
    assert "ledger accept" in refused(site, key, "missing or empty").remedy


def test_an_older_ledger_is_refused_and_a_restored_snapshot_by_the_coordinators_echo(site, key):
    echoed = spent_something(site, key)
    shutil.copy(site.parent / "older" / FOLDER / FILE, site / FOLDER / FILE)
    assert "ledger accept" in refused(site, key, "saw line").remedy
    shutil.copy(site.parent / "older" / ANCHOR, site / ANCHOR)  # the whole folder from a backup
    assert "ledger accept" in refused(site, key, "saw line", echoed).remedy
    shutil.rmtree(site)
    site.mkdir(mode=0o700)  # nothing is left here; the coordinator still knows
    assert "ledger accept" in refused(site, key, "missing or empty", echoed).remedy


def test_a_snapshot_that_was_continued_is_refused_too(site, key):
    echoed = spent_something(site, key)
    shutil.rmtree(site)
    shutil.move(site.parent / "older", site)
    with Ledger(site, PRIVACY, key) as ledger:
        for _ in range(3):
            ledger.reserve(B, STEP, **PLACE)
    assert "ledger accept" in refused(site, key, "another line", echoed).remedy


def test_a_lost_anchor_and_a_changed_line_are_refused(site, key):
    spent_something(site, key)
    (site / ANCHOR).unlink()
    assert "ledger accept" in refused(site, key, "how long it was").remedy
    (site / ANCHOR).write_text("{}")
    assert "ledger accept" in refused(site, key, "damaged").remedy
    path = site / FOLDER / FILE
    path.write_bytes(path.read_bytes().replace(b'"steps":5', b'"steps":1', 1))
    (site / ANCHOR).unlink()
    assert "ledger accept" in refused(site, key, "was changed").remedy


def test_a_torn_last_line_is_named_and_the_rest_goes_on(site, key):
    spent_something(site, key)
    path = site / FOLDER / FILE
    with path.open("ab") as stream:
        stream.write(b'{"digest":"abc')
    with Ledger(site, PRIVACY, key) as ledger:
        assert ledger.spent(A) == pytest.approx(epsilon([STEP, STEP], 1e-5))
    assert any(line.kind == "recovered" for line in read_lines(path))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "1",
        "1:ab",
        "1:" + "0" * 64 + ":-1",
        "1:" + "0" * 64 + ":nan",
        "1:" + "0" * 64 + ":x",
        "-1:" + "0" * 64,
        "1" * 13 + ":" + "0" * 64,
    ],
)
def test_an_echo_that_is_none_is_refused(site, key, text):
    with pytest.raises(LedgerError, match="echo"):
        parse_seen(text)
    with pytest.raises(LedgerError, match="echo"):
        Ledger(site, PRIVACY, key, echoed=text)


def test_a_lost_secret_is_refused(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        assert len(ledger.secret) == 32 and ledger.secret == ledger.secret
        assert (site / FOLDER / SECRET).stat().st_mode & 0o777 == 0o600
        ledger.reserve(A, STEP, **PLACE)
        (site / FOLDER / SECRET).unlink()
        with pytest.raises(LedgerError, match="missing"):
            ledger.secret  # noqa: B018


def test_a_person_accepts_with_a_reason_and_what_was_spent(site, key):
    echoed = spent_something(site, key)
    shutil.rmtree(site / FOLDER)
    with pytest.raises(ValueError, match="reason"):
        accept(site, key, reason="", spent=1.0)
    accept(site, key, reason="the disk failed", spent=1.5, echoed=echoed)
    with Ledger(site, PRIVACY, key, echoed=echoed) as ledger:
        assert ledger.spent(B) == 1.5 == ledger.total()  # nobody knows who it was: everybody
        ledger.reserve(B, STEP, **PLACE)
        assert ledger.spent(B) == pytest.approx(1.5 + epsilon([STEP], 1e-5))
    with pytest.raises(LedgerError, match="nothing is wrong"):
        accept(site, key, reason="again", spent=0.0, echoed=echoed)


def test_accepting_a_damaged_ledger_sets_it_aside_and_carries_over_what_it_shows(site, key):
    spent_something(site, key)
    path = site / FOLDER / FILE
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    accept(site, key, reason="edited by mistake", spent=0.0)
    assert (site / FOLDER / "set-aside-1.jsonl").exists()
    with Ledger(site, PRIVACY, key) as ledger:
        assert ledger.spent(B) == pytest.approx(epsilon([STEP, STEP], 1e-5))
        assert ledger.terms.budget == 8.0


def test_what_other_runs_spent_counts_against_the_budget(site, key):
    tight = replace(PRIVACY, budget=epsilon([STEP], 1e-5) + 0.01)
    with Ledger(site, tight, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        before = ledger.head()
        with pytest.raises(BudgetError, match="the budget of this site"):
            ledger.reserve(A, STEP, **{**PLACE, "run": "another"})
        assert ledger.head() == before
        ledger.reserve(B, STEP, **{**PLACE, "run": "another"})  # nobody of A is in it


def test_what_is_accepted_twice_is_spent_twice(site, key):
    for lost, spent in ((1, 1.5), (2, 0.75)):
        with Ledger(site, PRIVACY, key) as ledger:
            ledger.reserve(A, STEP, **PLACE)
        path = site / FOLDER / FILE
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        accept(site, key, reason=f"loss {lost}", spent=spent)
    with Ledger(site, PRIVACY, key) as ledger:
        assert ledger.terms.unknown == 2.25 == ledger.spent(B)


def test_what_was_spent_without_privacy_is_not_forgotten_with_the_lines(site, key):
    """The coordinator saw infinity; whatever a person says, no epsilon holds for anybody any more."""
    echoed = f"{spent_something(site, key)}:inf"
    shutil.rmtree(site / FOLDER)
    assert accept(site, key, reason="a new machine", spent=0.0, echoed=echoed) == math.inf
    with Ledger(site, PRIVACY, key, echoed=echoed) as ledger:
        assert ledger.spent(B) == math.inf == ledger.total()
        with pytest.raises(BudgetError):
            ledger.reserve(B, STEP, **PLACE)


def test_what_the_coordinator_saw_is_counted_where_the_lines_are_lost(site, key):
    echoed = f"{spent_something(site, key)}:3.25"
    shutil.rmtree(site)
    site.mkdir(mode=0o700)
    refused(site, key, "missing or empty", echoed)
    assert continuity.kept_echo(site) == echoed  # for the person, who need not type it
    assert accept(site, key, reason="a new machine", spent=1.0) == 3.25
    assert continuity.kept_echo(site) == ""
    with Ledger(site, PRIVACY, key, echoed=echoed) as ledger:
        assert ledger.spent(B) == 3.25
    with Ledger(site, PRIVACY, key, echoed=f"{head_text(ledger.head())}:99.0") as ledger:
        assert ledger.spent(B) == 3.25  # a head that is here: its lines say what was spent


def test_an_echo_that_is_settled_is_forgotten(site, key):
    echoed = spent_something(site, key)
    refused(site, key, "saw line", "9:" + "0" * 64)
    assert continuity.kept_echo(site)
    Ledger(site, PRIVACY, key, echoed=echoed).close()
    assert continuity.kept_echo(site) == ""


def test_the_file_beside_the_key_remembers_head_and_spending(site, key, tmp_path):
    witness = continuity.witness_of(tmp_path / "site.key")
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        assert continuity.read_witness(witness).head == ledger.head()
        spent = ledger.total()
    assert witness.stat().st_mode & 0o777 == 0o600
    assert continuity.read_witness(witness).spent == pytest.approx(spent)
    other = tmp_path / "another"
    other.mkdir(mode=0o700)
    with pytest.raises(LedgerError, match="missing or empty"):
        Ledger(other, PRIVACY, key, witness=witness)
    assert accept(other, key, reason="moved", spent=0.0, witness=witness) == pytest.approx(spent)
    with Ledger(other, PRIVACY, key, witness=witness) as ledger:
        assert ledger.spent(B) == pytest.approx(spent)
    with pytest.raises(LedgerError, match="saw"):
        Ledger(site, PRIVACY, key, witness=witness)  # two accounts of one key: the first is the older now
    witness.write_text("x")
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(other, PRIVACY, key, witness=witness)


def test_what_the_file_beside_the_key_says_was_spent_never_falls(site, key, tmp_path):
    """Others, who spent less, come after: whoever spent most is still remembered; without privacy it is infinite."""
    witness = continuity.witness_of(tmp_path / "site.key")
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        for _ in range(3):
            ledger.reserve(A, STEP, **PLACE)
        most = ledger.spent(A)
        ledger.reserve(B, STEP, **{**PLACE, "run": "r2"})
        assert continuity.read_witness(witness).spent == pytest.approx(most) and most > ledger.spent(B)
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        ledger.reserve(B, STEP, **{**PLACE, "run": "r2"})
        assert continuity.read_witness(witness).spent == pytest.approx(most)
        ledger.unprotected(B, **PLACE)
    assert continuity.read_witness(witness).spent == math.inf


def test_of_two_copies_in_use_at_once_one_goes_on(site, key, tmp_path):
    """Both were opened at the same head: each would spend what the other does not know of."""
    witness, copy = continuity.witness_of(tmp_path / "site.key"), tmp_path / "copy"
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    shutil.copytree(site, copy)
    before = witness.read_bytes()
    with Ledger(site, PRIVACY, key, witness=witness) as one:
        witness.write_bytes(before)  # both looked before either wrote
        with Ledger(copy, PRIVACY, key, witness=witness) as other:
            number, lines = other.reserve(A, STEP, **PLACE), len(read_lines(site / FOLDER / FILE))
            with pytest.raises(LedgerError, match="continued elsewhere"):
                one.reserve(A, STEP, **PLACE)
            assert len(read_lines(site / FOLDER / FILE)) == lines, "nothing was reserved"
            other.settle(number, 1)
