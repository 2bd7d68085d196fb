"""``fed-diffmic policy``: what a site allows, and what the study of a run asks of it, in words; approval of a study."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import below
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from client.studies import Approval
    from fed_diffmic.commands import Add
    from fed_diffmic.config.site import SiteConfig
    from fed_diffmic.exchange.study import Study

_ABOUT = """What this site allows, and what a run asks of it.

  fed-diffmic policy explain --config site.yaml              the policy in sentences, for an ethics board
  fed-diffmic policy explain --config site.yaml --run RUN    the study of a run: what it will ask, what is new in it
  fed-diffmic policy approve --config site.yaml --run RUN    a person agrees to that study
"""
_HOW = "A person agrees to it with: fed-diffmic policy approve --config {file} --run {run}"


def register(add: Add) -> None:
    """Add ``policy`` and the commands below it."""
    policy = add("policy", None, "what this site allows the coordinator to ask, and what may leave")
    policy.description = _ABOUT
    add_below = below(policy)
    explain = add_below("explain", _explain, "print the policy, or a run's study, in sentences, for an ethics board")
    approve = add_below("approve", _approve, "agree to the study of a run, after `policy explain --run`")
    for command, needed in ((explain, False), (approve, True)):
        command.add_argument("--config", required=True, type=Path, metavar="FILE", help="site.yaml")
        command.add_argument("--run", dest="named", required=needed, metavar="RUN", help="name of the run")
        command.add_argument("settings", nargs="*", metavar="key=value", help="settings of the site, as for `client`")
    approve.add_argument("--by", metavar="NAME", help="who approves, for the audit log (the account's name)")


def _explain(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose_site
    from fed_diffmic.exchange.policy_text import explain

    config = compose_site(arguments.config, arguments.settings)
    if arguments.named is None:
        print(explain(config.policy, config.site.name, config.privacy), end="")
        return 0
    print(_explained(config, arguments.named, arguments.config), end="")
    return 0


def _approve(arguments: argparse.Namespace, hint: list[str]) -> int:
    from client.start import site_audit, site_studies
    from client.studies import kept_study
    from fed_diffmic.config.compose import compose_site

    config = compose_site(arguments.config, arguments.settings)
    folder = _folder(config)
    if kept_study(folder, arguments.named) is None:  # before the audit log says that it was opened
        raise _no_study(arguments.named)
    by = arguments.by or getpass.getuser()
    approval = site_studies(config, site_audit(config)).approve(arguments.named, by)
    print(f"Approved by {by}: the study {approval.study} of the run {arguments.named}.")
    print("The coordinator asks again by itself, within five minutes; the audit log says who approved what, and when.")
    return 0


def _explained(config: SiteConfig, run: str, file: Path) -> str:
    from client.start import site_signer
    from client.studies import kept_approval, kept_study, last_approved
    from fed_diffmic.exchange.study_text import Standing, explain_study

    folder = _folder(config)
    study = kept_study(folder, run)
    if study is None:
        raise _no_study(run)
    key = site_signer(config).public_key()
    approval = kept_approval(folder, study, key)
    before = last_approved(folder, key, but=run)
    standing = Standing(
        config.policy.study,
        status=_status(approval),
        signed=_signed(config, study),
        before=None if before is None else before[0],
        approve="" if approval is not None and approval.how == "person" else _HOW.format(file=file, run=run),
    )
    return explain_study(study, standing)


def _status(approval: Approval | None) -> str:
    if approval is None:
        return "Nobody has approved it: the site does nothing in this run."
    if approval.how == "rule":
        return f"The site's rules agreed to it on {approval.time}; they are asked again at each request."
    return f"{approval.by} approved it on {approval.time}."


def _signed(config: SiteConfig, study: Study) -> str:
    from fed_diffmic.provision.keys import fingerprint, load_public

    if config.coordinator.insecure or config.coordinator.public_key is None:
        return "Who signed it was not checked: coordinator.insecure is set, or coordinator.public_key is not."
    key = load_public(config.coordinator.public_key)
    said = "It bears" if study.signed_by(key) else "It does NOT bear"
    return f"{said} the signature of the coordinator's key, {fingerprint(key)}."


def _folder(config: SiteConfig) -> Path:
    if config.site.folder is None:
        raise UsageError("site.folder is not set", "Name the site's own folder in its configuration.")
    return Path(config.site.folder)


def _no_study(run: str) -> UsageError:
    return UsageError(
        f"no study of the run {run} has come to this site",
        "It comes with the first request, while `fed-diffmic client` runs and policy.runs names the run.",
    )
