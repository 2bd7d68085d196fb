"""What this site agreed to: the study of each run, kept from the run's first request on, and who approved it.

``studies/<run>.study.json`` in the site's folder holds the document with the coordinator's signature,
``studies/<run>.approval.json`` the approval with the site's (two endings, so that no run's name makes one the
other). Neither is ever purged or written over by another study:
what was asked can be shown as long as the folder exists.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fed_diffmic.config.policy_study import StudyRules
from fed_diffmic.errors import ConfigError, MachineError, ModelFileError, UsageError
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.exchange.failures import STUDY_CHANGED, STUDY_MISSING, STUDY_RULES, STUDY_WAITS, SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.study import Study, canonical, contradiction, parse_study
from fed_diffmic.exchange.study_rules import breaches
from fed_diffmic.files import private_folder, read_json, safe_name, write_json
from fed_diffmic.provision.keys import PrivateKey, PublicKey, decode_signature, fingerprint, sign, verifies

FOLDER, STUDY, APPROVAL = "studies", ".study.json", ".approval.json"
PERSON, RULE = "person", "rule"
MOST_KEPT = 1000  # files of at most a megabyte
_DOMAIN = b"fed_diffmic study approval\0"
_RESTORE = "Restore the file from the backup; without it nobody knows what the site agreed to."


@dataclass(frozen=True)
class Approval:
    """Who agreed to a study.

    Attributes:
        study: its digest.
        how: ``person`` or ``rule``.
        by: whose account; empty with a rule.
        time: UTC, ISO 8601.
    """

    study: str
    how: str
    by: str
    time: str


class Studies:
    """The studies of one site.

    Args:
        folder: the site's own.
        rules: group ``policy.study``.
        audit: takes a line of each study that is kept or approved.
        signer: the site's key, which signs approvals.
        coordinator: whose signature a study must bear (``coordinator.public_key``); none: no such key is known here.
    """

    def __init__(
        self, folder: Path, rules: StudyRules, audit: AuditLog, signer: PrivateKey, coordinator: PublicKey | None = None
    ) -> None:
        self._folder = folder / FOLDER
        self._rules = rules
        self._audit = audit
        self._signer = signer
        self._coordinator = coordinator

    def check(self, kind: str, request: Payload) -> None:
        """Let a request pass that asks for what the site agreed to; the first one of a run brings the study.

        Args:
            kind: ``query``, ``train``, ``evaluate`` or ``assess``.
            request: already found to be well-formed (:func:`client.requests.check_request`).

        Raises:
            SiteError: there is no study, or the request is not of it, or nobody agreed to it.
            MachineError: what was agreed to cannot be read or written.
        """
        header = request.header
        study = kept_study(self._folder.parent, header["run"])
        if "document" in header:
            came = self._came(request)
            if study is None:
                study = self._keep(came)
        if study is None or "study" not in header:
            raise SiteError(STUDY_MISSING, "the request names no study, or one that never came")
        if header["study"] != study.digest:
            raise SiteError(STUDY_CHANGED, f"this run began with the study {study.digest}")
        said = contradiction(study, kind, request)
        if said:
            raise SiteError(STUDY_CHANGED, said)
        self._agreed(study)

    def approve(self, run: str, by: str) -> Approval:
        """A person agrees to the study of a run.

        Args:
            by: whose account.

        Raises:
            UsageError: no study of that run has come.
            MachineError: what was agreed to cannot be read or written.
        """
        study = kept_study(self._folder.parent, run)
        if study is None:
            raise UsageError(
                f"no study of the run {run} has come to this site",
                "It comes with the first request, while `fed-diffmic client` runs and policy.runs names the run.",
            )
        return self._approve(study, PERSON, by)

    def _came(self, request: Payload) -> Study:
        """The study that a request brings.

        Raises:
            SiteError: it is not the one that the request names, or not signed as it must be.
        """
        header = request.header
        try:
            study = parse_study(header["document"], header.get("signature", ""))
        except ConfigError as error:
            raise SiteError(STUDY_MISSING, error.cause) from error
        if study.digest != header.get("study") or study.run != header["run"]:
            raise SiteError(STUDY_MISSING, "the study that came is not the one that the request names")
        if self._coordinator is not None and not study.signed_by(self._coordinator):
            raise SiteError(STUDY_MISSING, f"not signed by coordinator.public_key, {fingerprint(self._coordinator)}")
        said = contradiction(study, "query", request)
        if said:
            raise SiteError(STUDY_CHANGED, said)
        return study

    def _keep(self, study: Study) -> Study:
        folder = private_folder(self._folder)
        if sum(1 for _ in folder.glob("*.json")) >= 2 * MOST_KEPT:
            raise MachineError(f"studies of {MOST_KEPT} runs are kept", "Move old ones from `studies` into an archive.")
        signer = "" if self._coordinator is None else fingerprint(self._coordinator)
        self._audit.append("study", run=study.run, study=study.digest, signed_by=signer)
        write_json(_study_file(folder, study.run), {"study": study.text, "signature": study.signature}, mode=0o600)
        return study

    def _agreed(self, study: Study) -> None:
        """Raises where neither a person nor the rules agree; the rules are asked each time, a person once."""
        approval = kept_approval(self._folder.parent, study, self._signer.public_key())
        if approval is not None and approval.how == PERSON:
            return
        if self._rules.approval != RULE:
            raise SiteError(STUDY_WAITS, f"see `fed-diffmic policy explain --run {study.run}`")
        found = breaches(study.spec(), study.stages, self._rules)
        if found:
            raise SiteError(STUDY_RULES, "; ".join(found))
        if approval is None:
            self._approve(study, RULE, "")

    def _approve(self, study: Study, how: str, by: str) -> Approval:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        approval = Approval(study.digest, how, by, now)
        self._audit.append("approval", run=study.run, study=study.digest, how=how, by=by)
        signature = base64.b64encode(sign(self._signer, _DOMAIN + canonical(vars(approval)).encode())).decode()
        write_json(_approval_file(self._folder, study.run), {**vars(approval), "signature": signature}, mode=0o600)
        return approval


def kept_study(folder: Path, run: str) -> Study | None:
    """The study of a run that a site keeps, or none.

    Args:
        folder: the site's own.

    Raises:
        MachineError: it cannot be read whole.
    """
    path = _study_file(folder / FOLDER, run)
    if not path.exists():
        return None
    try:
        value = read_json(path)
        study = parse_study(value["study"], value["signature"])
    except (ConfigError, ModelFileError, KeyError, TypeError) as error:
        raise MachineError(f"the study that this site keeps cannot be read: {path}", _RESTORE) from error
    if study.run != run:
        raise MachineError(f"the study that this site keeps is of another run: {path}", _RESTORE)
    return study


def kept_approval(folder: Path, study: Study, key: PublicKey) -> Approval | None:
    """Who agreed to a study, or none.

    Args:
        folder: the site's own.
        key: the site's, which signed it.

    Raises:
        MachineError: it cannot be read, is of another study, or its signature does not hold.
    """
    path = _approval_file(folder / FOLDER, study.run)
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = dict(read_json(path))
        signature = decode_signature(value.pop("signature"))
        approval = Approval(**value)
    except (ModelFileError, KeyError, TypeError, ValueError) as error:
        raise MachineError(f"the approval of a study cannot be read: {path}", _RESTORE) from error
    signed = verifies(key, signature, _DOMAIN + canonical(vars(approval)).encode())
    if not signed or approval.study != study.digest:
        raise MachineError(f"the approval of a study is of another study or key: {path}", _RESTORE)
    return approval


def last_approved(folder: Path, key: PublicKey, *, but: str) -> tuple[Study, Approval] | None:
    """The study that the site agreed to last, of another run than ``but``; none: there is none.

    Raises:
        MachineError: one cannot be read.
    """
    found: list[tuple[Study, Approval]] = []
    for path in sorted((folder / FOLDER).glob(f"*{APPROVAL}")):
        kept = path.with_name(path.name.removesuffix(APPROVAL) + STUDY)
        if not kept.exists():
            continue
        value = read_json(kept)
        study = parse_study(value["study"], value["signature"])
        approval = kept_approval(folder, study, key)
        if approval is not None and study.run != but:
            found.append((study, approval))
    return max(found, key=lambda pair: pair[1].time, default=None)


def _study_file(folder: Path, run: str) -> Path:
    return folder / f"{safe_name(run)}{STUDY}"


def _approval_file(folder: Path, run: str) -> Path:
    return folder / f"{safe_name(run)}{APPROVAL}"
