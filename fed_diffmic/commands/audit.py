"""``fed-diffmic audit``: are the logs whole, do both sides say the same, who signed this model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import below
from fed_diffmic.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.exchange.audit import Line

_ABOUT = """Is a log whole, and do both sides say the same?

  fed-diffmic audit verify SITE/audit.jsonl --key SITE/site.key.pub
  fed-diffmic audit verify SITE/audit.jsonl --key SITE/site.key.pub \\
      --against RUN/audit.jsonl --against-key coordinator.pub --run RUN_NAME
  fed-diffmic audit model RUN --key coordinator.pub
"""


def register(add: Add) -> None:
    """Add ``audit`` and the commands below it."""
    audit = add("audit", None, "verify audit logs and the signature of a final model")
    audit.description = _ABOUT
    add_below = below(audit)
    verify = add_below("verify", _verify, "find removed, changed and reordered lines; compare both sides' logs")
    verify.add_argument("log", type=Path, metavar="LOG", help="audit log, of a site or of the coordinator")
    verify.add_argument("--key", required=True, type=Path, metavar="PUB", help="public key of whoever keeps it")
    verify.add_argument("--against", type=Path, metavar="LOG", help="the coordinator's log, where LOG is a site's")
    verify.add_argument("--against-key", type=Path, metavar="PUB", help="the coordinator's public key")
    verify.add_argument("--run", dest="named", metavar="NAME", help="run to compare; without it: all that LOG names")
    model = add_below("model", _model, "verify a final model's signature and digests, and print where it comes from")
    model.add_argument("folder", type=Path, metavar="RUN", help="folder of the run (it holds `final`)")
    model.add_argument("--key", type=Path, metavar="PUB", help="the coordinator's public key, from the kit")


def _verify(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.exchange.audit import read_lines, verify
    from fed_diffmic.exchange.audit_compare import PROBLEM, anchors, compare
    from fed_diffmic.provision.keys import load_public

    if (arguments.against is None) != (arguments.against_key is None):
        raise UsageError("--against and --against-key belong together", "Give both, or neither.")
    if arguments.named and arguments.against is None:
        raise UsageError("--run is for the comparison with --against")
    lines, heads, others = read_lines(arguments.log), [], []
    site, bad = _owner(lines), 0
    if arguments.against is not None:
        others = read_lines(arguments.against)
        heads = anchors(others, site=site)
        for problem in verify(arguments.against, load_public(arguments.against_key)):
            bad += 1
            print(f"problem: {arguments.against}, line {problem.line}: {problem.text}")
    for problem in verify(arguments.log, load_public(arguments.key), heads):
        bad += 1
        print(f"problem: {arguments.log}, line {problem.line}: {problem.text}")
    if arguments.against is not None:
        runs = [arguments.named] if arguments.named else _runs(lines)
        for run in runs:
            for finding in compare(lines, others, site=site, run=run):
                bad += finding.level == PROBLEM
                print(f"{finding.level}: run {run}, {finding.text}")
        print(f"compared: {len(runs)} runs of the site {site}, {len(heads)} heads of its chain")
    print(f"{arguments.log}: {len(lines)} lines by {site or 'nobody'}, {bad or 'no'} problems")
    return ModelFileError.exit_code if bad else 0


def _model(arguments: argparse.Namespace, hint: list[str]) -> int:
    import json

    from fed_diffmic.final import load_final
    from fed_diffmic.provenance import PROVENANCE, verify_statement
    from fed_diffmic.provision.keys import load_public

    key = None if arguments.key is None else load_public(arguments.key)
    model = load_final(arguments.folder, public_key=key)
    print(f"The model is {model.origin}.")
    if model.signed_by:
        if key is None:
            print("Whether that is the coordinator's key was not checked: give --key.")
        statement, _ = verify_statement(arguments.folder / "final" / PROVENANCE, key)
        print(json.dumps(statement, indent=2))
    return 0


def _owner(lines: list[Line]) -> str:
    return next((str(line.facts.get("owner", "")) for line in lines if line.kind == "opened"), "")


def _runs(lines: list[Line]) -> list[str]:
    return sorted({str(line.facts["run"]) for line in lines if "run" in line.facts})
