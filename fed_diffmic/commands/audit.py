"""``fed-diffmic audit``: are the logs whole, do both sides say the same, who signed this model, is privacy kept."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.commands import audit_inversion, audit_keeping, audit_logs
from fed_diffmic.commands.provision_parts import below
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add

_ABOUT = """Is a log whole, and do both sides say the same?

  fed-diffmic audit verify SITE/audit.jsonl --key SITE/site.key.pub
  fed-diffmic audit verify SITE/audit.jsonl --key SITE/site.key.pub \\
      --against RUN/audit.jsonl --against-key coordinator.pub --run RUN_NAME
  fed-diffmic audit model RUN --key coordinator.pub --against SITE/audit.jsonl --against-key SITE/site.key.pub
  fed-diffmic audit rekey SITE/audit.jsonl --key NEW_KEY --old OLD_KEY
  fed-diffmic audit stamp SITE/audit.jsonl --out head.tsq
  fed-diffmic audit privacy --config site.yaml --out audit.json
  fed-diffmic audit inversion --config site.yaml --model compact
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
    about = "find removed, changed, reordered and rewritten lines; compare both sides' logs"
    audit_logs.add_verify(add_below("verify", audit_logs.verify, about))
    about = "verify a final model's signature and digests, print where it comes from, hold it against a site's log"
    audit_logs.add_model(add_below("model", audit_logs.model, about))
    about = "let a new key go on with a log: a line in it, signed by the old key, or by the new one on your word"
    audit_keeping.add_rekey(add_below("rekey", audit_keeping.rekey, about))
    about = "write a request for a timestamp of a log's head (RFC 3161), to be sent to an authority of your choice"
    audit_keeping.add_stamp(add_below("stamp", audit_keeping.stamp, about))
    about = "attack what an update without privacy tells of single images, on phantoms; minutes to hours"
    audit_inversion.add_inversion(add_below("inversion", audit_inversion.inversion, about))
    privacy = add_below("privacy", _privacy, "attack the private training of this installation; some minutes")
    privacy.description = _PRIVACY
    privacy.add_argument("--config", type=Path, metavar="FILE", help="site.yaml, for its privacy settings")
    privacy.add_argument("--stage", default="guidance", choices=("guidance", "diffusion", "plain"))
    privacy.add_argument("--epsilon", type=float, default=4.0, help="epsilon that the noise is planned for (4)")
    privacy.add_argument(
        "--runs", type=int, default=_RUNS, help=f"of the sharpest attack, others in proportion ({_RUNS})"
    )
    privacy.add_argument("--seed", type=int, default=0, help="of the attacker's choices (0)")
    privacy.add_argument("--out", type=Path, metavar="JSON", help="write metrics and verdict into this file")
    privacy.add_argument("settings", nargs="*", metavar="key=value", help="settings, as privacy.unit=image")


def _privacy(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.commands.outputs import check_output, check_spares
    from fed_diffmic.config.compose import compose, compose_site
    from fed_diffmic.files import write_json

    if not 0 < arguments.epsilon <= _MOST_EPSILON:
        raise UsageError(
            f"--epsilon {arguments.epsilon:g} is not allowed",
            f"Give a number above 0 and at most {_MOST_EPSILON:g}: more could not be refuted in usual runs.",
        )
    if not 2 <= arguments.runs <= 100_000:
        raise UsageError(f"--runs {arguments.runs} is not allowed", "Give a number from 2 to 100000.")
    if arguments.out is not None:
        check_output("--out", arguments.out)
        check_spares("--out", arguments.out, [("--config", arguments.config)])
    if arguments.config is not None:
        settings = compose_site(arguments.config, arguments.settings).privacy
    else:
        base = ["privacy=dp_sgd", "model.norm=group", "model.encoder_norm=group"]
        settings = compose(None, [*base, *arguments.settings]).privacy
    if settings.name != "dp_sgd":
        raise UsageError("these settings train without privacy: there is nothing to audit", "Add privacy=dp_sgd.")

    from fed_diffmic.privacy.audit.report import Size, audit
    from fed_diffmic.privacy.audit.subject import make_subject

    if settings.mechanism == "distributed":
        from fed_diffmic.privacy.audit.shared import audit_shared, make_shared_subject

        shared = make_shared_subject(settings, target=arguments.epsilon)
        report: Any = audit_shared(shared, arguments.runs, seed=arguments.seed, tell=_Progress())
    else:
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
