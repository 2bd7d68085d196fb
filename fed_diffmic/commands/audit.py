"""``fed-diffmic audit``: are the logs whole, do both sides say the same, who signed this model."""

from __future__ import annotations

import argparse
import sys
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
  fed-diffmic audit privacy --config site.yaml --out audit.json
"""
_PRIVACY = """Attack this installation's private training, on pictures of noise: no image of the site is read.

Canaries are put into the training set with probability one half; from what leaves, attackers guess which. Right guesses
give a lower bound on epsilon (Steinke et al. 2023), held against what the ledger would claim for the same rounds. The
unit, clipping bound, delta, accountant and fixed seed are those of the settings; rounds and noise are the audit's own.
Exit code 0: consistent; 4: refuted, do not train; 5: inconclusive, use more runs.
"""
_EXIT = {"consistent": 0, "refuted": 4, "inconclusive": 5}
_RUNS = 160
_MOST_EPSILON = 7.0  # 5,000 right guesses in a row refute 7.1


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
    privacy = add_below("privacy", _privacy, "attack the private training of this installation; some minutes")
    privacy.description = _PRIVACY
    privacy.add_argument("--config", type=Path, metavar="FILE", help="site.yaml, for its privacy settings")
    privacy.add_argument("--stage", default="guidance", choices=("guidance", "diffusion", "plain"))
    privacy.add_argument("--epsilon", type=float, default=4.0, help="epsilon that the noise is planned for (4)")
    privacy.add_argument(
        "--runs", type=int, default=_RUNS, help=f"of the sharpest attack, others in proportion ({_RUNS})"
    )
    privacy.add_argument("--seed", type=int, default=0, help="of the attacker's choices (0)")
    privacy.add_argument("--out", type=Path, metavar="JSON", help="write figures and verdict into this file")
    privacy.add_argument("settings", nargs="*", metavar="key=value", help="settings, as privacy.unit=image")


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

    from fed_diffmic.provision.keys import load_public
    from fed_diffmic.release.final import load_final
    from fed_diffmic.release.provenance import PROVENANCE, verify_statement

    key = None if arguments.key is None else load_public(arguments.key)
    model = load_final(arguments.folder, public_key=key)
    print(f"The model is {model.origin}.")
    if model.signed_by:
        if key is None:
            print("Whether that is the coordinator's key was not checked: give --key.")
        statement, _ = verify_statement(arguments.folder / "final" / PROVENANCE, key)
        print(json.dumps(statement, indent=2))
    return 0


def _privacy(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose, compose_site
    from fed_diffmic.files import write_json

    if not 0 < arguments.epsilon <= _MOST_EPSILON:
        raise UsageError(
            f"--epsilon {arguments.epsilon:g} is not allowed",
            f"Give a number above 0 and at most {_MOST_EPSILON:g}: more could not be refuted in usual runs.",
        )
    if not 2 <= arguments.runs <= 100_000:
        raise UsageError(f"--runs {arguments.runs} is not allowed", "Give a number from 2 to 100000.")
    if arguments.out is not None and not arguments.out.parent.is_dir():
        raise UsageError(f"--out {arguments.out}: there is no such folder", "Make it, or name another file.")
    if arguments.config is not None:
        settings = compose_site(arguments.config, arguments.settings).privacy
    else:
        base = ["privacy=dp_sgd", "model.norm=group", "model.encoder_norm=group"]
        settings = compose(None, [*base, *arguments.settings]).privacy
    if settings.name != "dp_sgd":
        raise UsageError("these settings train without privacy: there is nothing to audit", "Add privacy=dp_sgd.")

    from fed_diffmic.privacy.audit.report import Size, audit
    from fed_diffmic.privacy.audit.subject import make_subject

    subject = make_subject(settings, stage=arguments.stage, target=arguments.epsilon)
    report = audit(subject, Size().scaled(arguments.runs), seed=arguments.seed, tell=_Progress())
    print("\n".join(report.lines()))
    if arguments.out is not None:
        write_json(arguments.out, report.to_json())
        print(f"written: {arguments.out}")
    return _EXIT[report.verdict]


class _Progress:
    """Says now and then how far an attack is: on the error stream, at each tenth."""

    def __init__(self) -> None:
        self._said: tuple[str, int] = ("", -1)

    def __call__(self, name: str, done: int, total: int) -> None:
        now = (name, 10 * done // total)
        if now != self._said:
            self._said = now
            print(f"{name}: {done} of {total} runs", file=sys.stderr, flush=True)


def _owner(lines: list[Line]) -> str:
    return next((str(line.facts.get("owner", "")) for line in lines if line.kind == "opened"), "")


def _runs(lines: list[Line]) -> list[str]:
    return sorted({str(line.facts["run"]) for line in lines if "run" in line.facts})
