import json
import math
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest

from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import BudgetError, LedgerError, MachineError, RoundShareError, RunShareError
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.privacy import continuity
from fed_diffmic.privacy import ledger as module
from fed_diffmic.privacy.account import FILE, FOLDER, SECRET, UNITS
from fed_diffmic.privacy.accounting import Mechanism, as_unit, epsilon
from fed_diffmic.privacy.continuity import ANCHOR, accept
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import entries, head_text, parse_seen
from fed_diffmic.privacy.shares import shares
from fed_diffmic.provision.keys import load_private, make_site_key
from tests.privacy.test_units import units

PRIVACY = PrivacyConfig(name="dp_sgd", unit="patient", budget=8.0, delta=1e-5)
STEP = Mechanism(0.1, 2.0, 5)
PLACE = {"run": "r1", "arm": "federated", "stage": "guidance", "round_index": 1}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key"
    make_site_key(path)
    return load_private(path)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    return folder


A, B, BOTH = units((1, "a"), (2, "a")), units((3, "b")), units((1, "a"), (3, "b"))


def test_a_reservation_counts_before_and_less_when_settled(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        assert ledger.spent(A) == 0
        number = ledger.reserve(A, STEP, **PLACE)
        full = ledger.spent(A)
        assert full == pytest.approx(epsilon([STEP], 1e-5))
        ledger.settle(number, 2)
        assert ledger.spent(A) == pytest.approx(epsilon([Mechanism(0.1, 2.0, 2)], 1e-5))
        assert ledger.spent(A) < full
        with pytest.raises(ValueError, match="settled"):
            ledger.settle(number, 2)
    with Ledger(site, PRIVACY, key) as again:
        assert again.spent(A) == pytest.approx(epsilon([Mechanism(0.1, 2.0, 2)], 1e-5))
        assert again.spent(A, run="r1") == again.spent(A) and again.spent(A, run="other") == 0


def test_spending_belongs_to_the_units(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        assert ledger.spent(B) == 0
        assert ledger.spent(BOTH) == ledger.spent(A) > 0  # one image of patient a is in it
        ledger.reserve(B, STEP, **{**PLACE, "run": "r2"})
        assert ledger.spent(BOTH) == pytest.approx(ledger.spent(A))  # nobody was in both
        ledger.reserve(BOTH, STEP, **{**PLACE, "run": "r3"})
        assert ledger.spent(A) == pytest.approx(epsilon([STEP, STEP], 1e-5))
        assert ledger.spent(A) == ledger.total()


def test_a_round_over_the_budget_is_refused_and_writes_nothing(site, key):
    tight = replace(PRIVACY, budget=epsilon([STEP, STEP], 1e-5) + 1e-6)
    with Ledger(site, tight, key) as ledger:
        assert ledger.rounds_left(A, STEP) == 2
        for _ in range(2):
            ledger.reserve(A, STEP, **PLACE)
        before = (site / FOLDER / FILE).read_bytes()
        with pytest.raises(BudgetError, match="budget of this site"):
            ledger.reserve(A, STEP, **PLACE)
        assert (site / FOLDER / FILE).read_bytes() == before
        assert ledger.rounds_left(A, STEP) == 0 and ledger.rounds_left(B, STEP) == 2
        ledger.reserve(B, STEP, **PLACE)


def test_only_a_grant_raises_the_budget(site, key):
    small = replace(PRIVACY, budget=0.5)
    with Ledger(site, small, key) as ledger, pytest.raises(BudgetError):
        ledger.reserve(A, STEP, **PLACE)
    with Ledger(site, replace(PRIVACY, budget=100.0), key) as ledger:
        assert ledger.terms.budget == 0.5  # the configuration cannot raise it
        with pytest.raises(BudgetError):
            ledger.reserve(A, STEP, **PLACE)
        with pytest.raises(ValueError, match="reason"):
            ledger.grant(9.0, " ")
        ledger.grant(9.0, "the board agreed")
        ledger.reserve(A, STEP, **PLACE)
    with Ledger(site, small, key) as ledger:
        assert ledger.terms.budget == 0.5  # but lower it


def test_a_smaller_delta_holds_and_a_larger_one_does_not(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    with Ledger(site, replace(PRIVACY, delta=1e-3), key) as ledger:
        assert ledger.spent(A) == pytest.approx(epsilon([STEP], 1e-5))
    with Ledger(site, replace(PRIVACY, delta=1e-7), key) as ledger:
        assert ledger.spent(A) == pytest.approx(epsilon([STEP], 1e-7))


def test_training_without_privacy_voids_the_units_it_saw(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        for _ in range(2):
            ledger.unprotected(A, **PLACE)
        assert ledger.spent(BOTH) == math.inf and ledger.spent(B) == 0
        assert len(ledger.entries()) == 1
        with pytest.raises(BudgetError):
            ledger.reserve(A, STEP, **PLACE)


def test_what_was_counted_by_image_counts_for_the_patient(site, key):
    path = site / FOLDER / FILE
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    lines = read_lines(path)
    as_images = [replace(e, unit="image") for e in entries(lines)]
    with Ledger(site, PRIVACY, key) as ledger:
        ledger._entries = as_images
        assert ledger.spent(A) == pytest.approx(epsilon([as_unit(STEP, "image", "patient", 2)], 1e-5))


def test_another_unit_in_the_configuration_is_refused(site, key):
    Ledger(site, PRIVACY, key).close()
    with pytest.raises(LedgerError, match="counts units of patients"):
        Ledger(site, replace(PRIVACY, unit="image"), key)
    Ledger(site, PRIVACY, key).close()  # the lock was given back


def test_one_writer(site, key, monkeypatch):
    monkeypatch.setattr(module, "LOCK_S", 0.2)
    with Ledger(site, PRIVACY, key), pytest.raises(MachineError, match="held by another"):
        Ledger(site, PRIVACY, key)


def spent_something(site, key):
    """A ledger with two reservations; its head, and the files as they were after the first."""
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        shutil.copytree(site, site.parent / "older")
        ledger.reserve(A, STEP, **PLACE)
        return head_text(ledger.head())


def refused(site, key, match, echoed=""):
    with pytest.raises(LedgerError, match=match) as caught:
        Ledger(site, PRIVACY, key, echoed=echoed)
    return caught.value


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


def test_training_without_privacy_is_written_once_a_stage_of_a_run(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        for run in ("r1", "r2"):
            for stage in ("guidance", "diffusion"):
                for index in (1, 2):
                    ledger.unprotected(A, **{**PLACE, "run": run, "stage": stage, "round_index": index})
        ledger.unprotected(B, **PLACE)
        assert [(e.units, e.run, e.stage, e.round) for e in ledger.entries()] == [
            *((A.name, run, stage, 1) for run in ("r1", "r2") for stage in ("guidance", "diffusion")),
            (B.name, "r1", "guidance", 1),
        ]


def test_what_others_spent_takes_nothing_of_a_runs_share(site, key):
    """A run's share is of what was left when it began; what counts against it is its own lines."""
    rdp = replace(PRIVACY, accountant="rdp")
    two, three = (epsilon([STEP] * n, 1e-5, "rdp") for n in (2, 3))
    budget = three + 2 * two + 1e-6  # half of what three rounds leave is two rounds
    with Ledger(site, replace(rdp, budget=budget), key, rules=BudgetRules(run_share=0.5, round_share=1.0)) as ledger:
        before = ledger.allowance(A, "late")
        assert (before.left, before.run) == (pytest.approx(budget), pytest.approx(budget / 2))
        for _ in range(3):
            ledger.reserve(A, STEP, **PLACE)
        late = ledger.allowance(A, "late")
        assert late.left == pytest.approx(budget - three) and late.run == pytest.approx(two)
        assert ledger.allowance(A, "r1") == before, "its first line stands after nothing"
        ledger.reserve(A, STEP, **{**PLACE, "run": "late"})
        assert ledger.allowance(A, "late") == late
        ledger.reserve(A, STEP, **{**PLACE, "run": "late"})
        assert ledger.spent(A, run="late") == pytest.approx(two) and ledger.spent(A) > late.run
        with pytest.raises(RunShareError):
            ledger.reserve(A, STEP, **{**PLACE, "run": "late"})


def test_a_release_of_counts_is_held_to_the_runs_share_and_not_to_a_rounds(site, key):
    alone, rules = epsilon([STEP], 1e-5), BudgetRules(run_share=0.5, round_share=0.01)
    with Ledger(site, replace(PRIVACY, budget=4 * alone), key, rules=rules) as ledger:
        with pytest.raises(RoundShareError):
            ledger.reserve(A, STEP, **PLACE)
        ledger.reserve(A, STEP, **PLACE, what="counts")
        assert [e.what for e in ledger.entries()] == ["counts"]


def test_a_folder_that_cannot_be_written_beside_the_key_stops_nobody(site, key, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    witness = continuity.witness_of(tmp_path / "site.key")
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    assert not witness.exists()


def test_a_run_and_a_round_take_their_share_of_what_was_left_when_the_run_began(site, key):
    alone, rules = epsilon([STEP], 1e-5), BudgetRules(run_share=0.5, round_share=0.3)
    wide = replace(PRIVACY, budget=alone / 0.3 + 1e-6)
    half = wide.budget / 2
    with Ledger(site, wide, key, rules=rules) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        fits = next(n for n in range(1, 100) if epsilon([STEP] * (n + 1), 1e-5) > half)
        for _ in range(fits - 1):
            ledger.reserve(A, STEP, **PLACE)
        with pytest.raises(RunShareError, match="a run may take"):
            ledger.reserve(A, STEP, **PLACE)
        assert ledger.allowance(A, "r1").left == pytest.approx(wide.budget)
        left = ledger.allowance(A, "r2").left
        assert left == pytest.approx(wide.budget - ledger.spent(A))
        with pytest.raises(RoundShareError, match="by itself"):
            ledger.reserve(A, STEP, **{**PLACE, "run": "r2"})
        ledger.reserve(B, STEP, **{**PLACE, "run": "r3"})  # nobody of A is in it: all is left


def test_shares_by_default_leave_a_run_what_it_was_planned_for():
    rules = BudgetRules()
    most = shares(8.0, replace(PRIVACY, epsilon=8.0), rules)
    assert (most.left, most.run, most.round) == (8.0, 8.0, 8.0 / 3)
    assert shares(24.0, replace(PRIVACY, epsilon=2.0), rules).run == 8.0
    assert shares(24.0, replace(PRIVACY, epsilon=None, noise_multiplier=1.0), rules).run == 8.0
    assert shares(3.0, replace(PRIVACY, epsilon=8.0), rules).run == 3.0
    assert shares(8.0, replace(PRIVACY, epsilon=8.0), replace(rules, run_share=0.5)).run == 4.0
    assert shares(8.0, PRIVACY, None).round == 8.0
    assert shares(-math.inf, PRIVACY, rules).run == 0 == shares(-1.0, PRIVACY, None).run


def test_no_name_of_a_patient_is_written(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(units((11, "Jane Roe 4711")), STEP, **PLACE)
    for path in site.rglob("*"):
        if path.is_file():
            assert b"Jane" not in path.read_bytes() and path.stat().st_mode & 0o077 == 0


# --- crashes -----------------------------------------------------------------------------------------------------


def work(ledger, allowed):
    """Reserve, train, settle; ``allowed`` holds what the caller was let do, before it does it."""
    for index in range(6):
        chosen = (A, B, BOTH)[index % 3]
        number = ledger.reserve(chosen, STEP, **{**PLACE, "round_index": index})
        allowed.append([chosen, STEP])
        taken = index % 6
        allowed[-1][1] = Mechanism(STEP.sample_rate, STEP.noise_multiplier, min(taken, 5))
        ledger.settle(number, min(taken, 5))


class Disk:
    """What a disk holds after a power cut: only what was flushed, and by chance some of what was not.

    The real calls are made in a real folder; before each, and at the end, the folder is looked at. A file's content is
    safe when the file was flushed, a name when its folder was.
    """

    def __init__(self, root):
        self.root, self.moments = root, []
        self.content, self.names = {}, {}  # inode -> flushed bytes; folder -> {name: inode} as flushed
        self.kept = {}  # inode -> last bytes seen: a name that comes back needs them

    def look(self):
        names, content = {}, {}
        for folder, folders, files in os.walk(self.root):
            names[folder] = {n: os.stat(os.path.join(folder, n)).st_ino for n in [*folders, *files]}
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as stream:
                    content[os.stat(path).st_ino] = stream.read()
        self.kept |= content
        return names, content

    def moment(self, allowed, echoed):
        names, content = self.look()
        truth = [(u, m) for u, m in allowed]
        self.moments.append(
            (
                names,
                content,
                {k: dict(v) for k, v in self.names.items()},
                dict(self.content),
                dict(self.kept),
                truth,
                echoed,
            )
        )

    def flushed(self, fd):
        inode = os.fstat(fd).st_ino
        names, content = self.look()
        if inode in content:
            self.content[inode] = content[inode]
        for folder, kept in names.items():
            if os.stat(folder).st_ino == inode:
                self.names[folder] = dict(kept)

    def after_power_cut(self, moment, target, rng):
        """Write what survives into ``target``."""
        names, content, safe_names, safe, kept, _, _ = moment
        root = str(self.root)

        def fill(folder, into):
            now, before = names.get(folder, {}), safe_names.get(folder, {})
            for name in sorted(now.keys() | before.keys()):
                if now.get(name) == before.get(name):
                    inode = now[name]
                else:
                    inode = rng.choice([now.get(name), before.get(name)])
                if inode is None:
                    continue
                inside = os.path.join(folder, name)
                if inside in names and os.path.isdir(inside):
                    (into / name).mkdir(mode=0o700)
                    fill(inside, into / name)
                    continue
                written, flushed = content.get(inode, kept.get(inode, b"")), safe.get(inode, b"")
                if written.startswith(flushed):
                    flushed = written[: rng.randint(len(flushed), len(written))]
                else:
                    flushed = rng.choice([written, flushed])
                (into / name).write_bytes(flushed)

        target.mkdir(mode=0o700)
        fill(root, target)


def test_a_thousand_power_cuts_never_hide_what_was_spent(tmp_path, key, monkeypatch):
    import random

    from fed_diffmic import files
    from fed_diffmic.exchange import audit

    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    disk, allowed, echoed = Disk(site), [], [""]
    disk.names = {str(site): {}}

    class Watched:
        """The operating system's functions; whoever flushes or writes is seen."""

        def __getattr__(self, name):
            real = getattr(os, name)
            if name not in ("write", "fsync", "replace", "truncate", "open", "close"):
                return real

            def call(*args, **kwargs):
                disk.moment(allowed, echoed[0])
                result = real(*args, **kwargs)
                if name == "fsync":
                    disk.flushed(args[0])
                disk.moment(allowed, echoed[0])
                return result

            return call

    for place in (files, audit, continuity):
        monkeypatch.setattr(place, "os", Watched())
    for _ in range(2):  # closed and opened again in between
        with Ledger(site, PRIVACY, key) as ledger:
            work(ledger, allowed)
            echoed[0] = head_text(ledger.head())
            ledger.grant(50.0, "more")
    monkeypatch.undo()
    rng = random.Random(0)
    assert len(disk.moments) > 500
    torn = 0
    for cut in range(1000):
        target = tmp_path / f"cut-{cut}"
        moment = rng.choice(disk.moments)
        disk.after_power_cut(moment, target, rng)
        path = target / FOLDER / FILE
        raw = path.read_bytes() if path.exists() else b""
        torn += bool(raw) and not raw.endswith(b"\n")
        with Ledger(target, PRIVACY, key, echoed=moment[6]) as again:
            for chosen in (A, B, BOTH):
                shared = [m for u, m in moment[5] if u is chosen or (u is BOTH) or (chosen is BOTH)]
                if chosen is BOTH:
                    worst = max(
                        epsilon_of([m for u, m in moment[5] if u in (A, BOTH)]),
                        epsilon_of([m for u, m in moment[5] if u in (B, BOTH)]),
                    )
                else:
                    worst = epsilon_of(shared)
                assert again.spent(chosen) >= worst - 1e-9
        shutil.rmtree(target)
    assert torn > 20  # the case was among them


COSTS = {}


def epsilon_of(mechanisms):
    steps = sum(m.steps for m in mechanisms)
    if steps not in COSTS:
        COSTS[steps] = epsilon([Mechanism(STEP.sample_rate, STEP.noise_multiplier, steps)], 1e-5)
    return COSTS[steps]


def test_killed_processes_never_hide_what_was_spent(tmp_path, key):
    """Twenty times a process that keeps books is killed by its pid, at any moment; what it was let do is in a pipe."""
    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    wide = replace(PRIVACY, budget=1e6)
    Ledger(site, wide, key).close()
    total = 0
    for attempt in range(20):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(read)
                with Ledger(site, wide, key) as ledger:
                    for index in range(1000):
                        ledger.reserve(A, STEP, **{**PLACE, "round_index": index})
                        os.write(write, b".")
            finally:
                os._exit(0)
        os.close(write)
        try:
            got = os.read(read, 1)
            time.sleep(0.002 * attempt)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        while more := os.read(read, 1 << 16):
            got += more
        os.close(read)
        total += len(got)
        with Ledger(site, wide, key) as ledger:
            counted = sum(e.mechanism.steps for e in ledger.entries())
            assert counted >= total * STEP.steps
            total = counted // STEP.steps  # a reservation whose caller never heard of it stays counted
    assert total >= 20
    assert json.loads((site / ANCHOR).read_text())["length"] > 20
    assert len(list((site / FOLDER / UNITS).iterdir())) == 1
