"""``fed-diffmic audit verify`` and ``model``: what logs and models prove, and to whom."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from fed_diffmic.console import Parser
    from fed_diffmic.exchange.audit import Line, Problem
    from fed_diffmic.exchange.audit_findings import Finding
    from fed_diffmic.exchange.audit_heads import Seen
    from fed_diffmic.provision.keys import PublicKey
    from fed_diffmic.release.final import FinalModel

_ONE_SIDE = "--against and --against-key belong together"


def add_verify(verify: Parser) -> None:
    """Options of ``audit verify``."""
    verify.add_argument("log", type=Path, metavar="LOG", help="audit log, of a site or of the coordinator")
    _keys(verify, "--key", "public key of whoever keeps it; again for each key that it had", required=True)
    verify.add_argument("--against", type=Path, metavar="LOG", help="the coordinator's log, where LOG is a site's")
    _keys(verify, "--against-key", "the coordinator's public key; again for each that it had")
    verify.add_argument("--run", dest="named", metavar="NAME", help="run to compare; without it: all that LOG names")
    verify.add_argument("--token", type=Path, metavar="TSR", help="timestamp of a head of LOG, as an authority sent it")
    verify.add_argument("--token-ca", type=Path, metavar="PEM", help="certificate of the authority's root")


def add_model(model: Parser) -> None:
    """Options of ``audit model``."""
    model.add_argument("folder", type=Path, metavar="RUN", help="folder of the run (it holds `final`)")
    model.add_argument("--key", type=Path, metavar="PUB", help="the coordinator's public key, from the kit")
    model.add_argument("--against", type=Path, metavar="LOG", help="a site's audit log: is it what that site was sent?")
    model.add_argument("--json", action="store_true", help="print all that was signed, as JSON; the checks on stderr")
    _keys(model, "--against-key", "the site's public key; again for each that it had")


def verify(arguments: argparse.Namespace, hint: list[str]) -> int:
    """Is a log whole, do both sides say the same, and who wrote another one than was seen."""
    from fed_diffmic.exchange import audit
    from fed_diffmic.exchange.timestamp import verify_token

    if bool(arguments.against) != bool(arguments.against_key):
        raise UsageError(_ONE_SIDE, "Give both, or neither.")
    if arguments.named and arguments.against is None:
        raise UsageError("--run is for the comparison with --against", "Give --against too, or leave --run out.")
    if (arguments.token is None) != (arguments.token_ca is None):
        raise UsageError("--token and --token-ca belong together", "Give both, or neither.")
    lines = audit.read_lines(arguments.log)
    site, say, keys = owner_of(lines), _Said(), public_keys(arguments.key)
    if arguments.against is not None and not site:
        raise ModelFileError(f"{arguments.log} does not say whose log it is", "Its first line says so: restore it.")
    if arguments.against is None:
        say.problems(arguments.log, audit.verify(arguments.log, keys))
    else:
        _compare(arguments, lines, keys, site, say)
    if arguments.token is not None:
        stamped = verify_token(arguments.token, arguments.token_ca, lines)
        print(f"timestamp: line {stamped.head.length} was there no later than {stamped.time:%Y-%m-%d %H:%M:%S} UTC")
    _changes(lines)
    print(f"{arguments.log}: {len(lines)} lines by {site or 'nobody'}, {say.bad or 'no'} problems")
    return ModelFileError.exit_code if say.bad else 0


def _compare(
    arguments: argparse.Namespace, lines: Sequence[Line], keys: Sequence[PublicKey], site: str, say: _Said
) -> None:
    """Each log alone, each against the heads that the other side saw, and what they say of each other."""
    from fed_diffmic.exchange import audit, audit_compare, audit_heads

    others, theirs = audit.read_lines(arguments.against), public_keys(arguments.against_key)
    runs = [arguments.named] if arguments.named else _runs(lines)
    if not arguments.named:  # each run of a coordinator has a log of its own
        for run in sorted(set(runs) - set(_runs(others))):
            print(f"note: run {run}: {arguments.against} says nothing of it; give its own log, or --run {run}")
        runs = [run for run in runs if run in _runs(others)]
    names = audit_compare.names_of(others, site)
    seen, found = audit_heads.site_heads(others, keys, site=site, names=names)
    say.findings(found)
    shown: list[Seen] = []
    for run in runs:
        heads, found = audit_heads.coordinator_heads(lines, theirs, site=site, run=run)
        shown += heads
        say.findings(found, run)
    say.problems(arguments.against, audit.verify(arguments.against, theirs, [s.head for s in shown]), shown)
    say.problems(arguments.log, audit.verify(arguments.log, keys, [s.head for s in seen]), seen)
    for run in runs:
        say.findings(audit_compare.compare(lines, others, site=site, run=run), run)
    say.findings(audit_heads.times(lines, others, shown, seen, site=site))
    counts = f"{len({s.head for s in seen})} heads of its chain, {len({s.head for s in shown})} of the coordinator's"
    print(f"compared: {len(runs)} runs of the site {site}, {counts}")
    if not shown:
        print("note: the site's log holds no head that the coordinator signed: one written anew is not found by it")


def model(arguments: argparse.Namespace, hint: list[str]) -> int:
    """Whose a final model is, and is it what a site was sent: a line a check; with ``--json`` all that was signed."""
    import json

    if not arguments.json:
        return _model(arguments, lambda statement: None)
    kept: list[dict[str, object]] = []
    with contextlib.redirect_stdout(sys.stderr):
        code = _model(arguments, kept.append)
    print(json.dumps(kept[0] if kept else {}, indent=2))
    return code


def _model(arguments: argparse.Namespace, keep: Callable[[dict[str, object]], None]) -> int:
    from fed_diffmic.provision.keys import load_public
    from fed_diffmic.release.binding import is_bound
    from fed_diffmic.release.final import load_final
    from fed_diffmic.release.provenance import PROVENANCE, verify_statement

    if bool(arguments.against) != bool(arguments.against_key):
        raise UsageError(_ONE_SIDE, "Give both, or neither.")
    key = None if arguments.key is None else load_public(arguments.key)
    final = load_final(arguments.folder, public_key=key)
    print(f"The model is {final.origin}.")
    if not final.signed_by:
        if arguments.against is not None:
            raise UsageError(
                "the model is not signed: there is no statement to hold against a log", "Leave --against out."
            )
        return 0
    statement, _ = verify_statement(arguments.folder / "final" / PROVENANCE, key)
    keep(statement)
    rounds = statement.get("rounds") or []
    print(f"Its statement names {len(rounds)} rounds, the payloads of each, and heads of the sites' logs (--json).")
    if key is None:
        print("Whether that is the coordinator's key was not checked: give --key.")
    if is_bound(statement):
        print("The weights are those of the rounds that the statement names as chosen.")
    else:
        print("An earlier version signed it: the statement does not say which round the weights are of.")
    if arguments.against is None:
        print("Whether any site was sent these weights was not checked: give --against with a site's audit log.")
        return 0
    return _model_against(arguments, statement, final, key)


def _model_against(
    arguments: argparse.Namespace, statement: dict[str, object], final: FinalModel, key: PublicKey | None
) -> int:
    from fed_diffmic.exchange import audit, audit_heads
    from fed_diffmic.release.model_audit import model_findings
    from fed_diffmic.release.provenance import PROVENANCE, signed_key

    lines, say, run = audit.read_lines(arguments.against), _Said(), final.spec.run_id
    site = owner_of(lines)
    say.problems(arguments.against, audit.verify(arguments.against, public_keys(arguments.against_key)))
    coordinator = key or signed_key(arguments.folder / "final" / PROVENANCE)
    seen, found = audit_heads.coordinator_heads(lines, [coordinator], site=site, run=run)
    say.findings(found, run)
    calibration = {stage: fitted.to_json() for stage, fitted in final.calibration.items()}
    sets = {stage: sure.to_json() for stage, sure in final.sureness.items()}
    say.findings(model_findings(statement, calibration, lines, seen, site=site, run=run, sureness=sets), run)
    print(f"compared with the log of the site {site}: {say.bad or 'no'} problems")
    return ModelFileError.exit_code if say.bad else 0


def owner_of(lines: Sequence[Line]) -> str:
    """Whose log it is, as it says."""
    return next((str(line.facts.get("owner", "")) for line in lines if line.kind == "opened"), "")


def public_keys(paths: Iterable[Path]) -> list[PublicKey]:
    """The keys in files of OpenSSH text."""
    from fed_diffmic.provision.keys import load_public

    return [load_public(path) for path in paths]


class _Said:
    """Prints what is wrong, and counts it."""

    def __init__(self) -> None:
        self.bad = 0

    def problems(self, log: Path, problems: Sequence[Problem], seen: Sequence[Seen] = ()) -> None:
        """What is wrong with a log; the signed seal with each head that the other side saw otherwise."""
        self.bad += len(problems)
        unsigned = [p for p in problems if p.code == "signature"]
        for problem in [p for p in problems if p.code != "signature"] + unsigned[:5]:
            print(f"problem: {log}, line {problem.line}: {problem.text}")
            shown = [one for one in seen if problem.head is not None and one.head == problem.head]
            if shown:
                print(f"  {max(shown, key=lambda one: bool(one.signer)).evidence()}")
        if len(unsigned) > 5:
            print(f"problem: {log}: {len(unsigned) - 5} more lines are not signed by that key")

    def findings(self, findings: Iterable[Finding], run: str = "") -> None:
        """Differences between two logs."""
        from fed_diffmic.exchange.audit_findings import PROBLEM

        for finding in findings:
            self.bad += finding.level == PROBLEM
            print(f"{finding.level}: {f'run {run}, ' if run else ''}{finding.text}")


def _changes(lines: Sequence[Line]) -> None:
    """Changes of the key that no old key signed are a person's word: they are said each time."""
    for line in lines:
        if line.kind == "rekeyed" and line.facts.get("accepted"):
            text = f"a person let the key {line.facts.get('to')} take over from {line.facts.get('from')}"
            print(f"note: line {line.n}, {line.time}: {text}; the old key did not sign that")


def _runs(lines: Sequence[Line]) -> list[str]:
    return sorted({str(line.facts["run"]) for line in lines if "run" in line.facts})


def _keys(parser: Parser, name: str, about: str, *, required: bool = False) -> None:
    parser.add_argument(name, action="append", default=[], required=required, type=Path, metavar="PUB", help=about)
