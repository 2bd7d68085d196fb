"""The model that a site took over: what it was then is a line of the site's own audit log, and is checked at each use.

Beside the model lies the coordinator's key that it was verified with (``coordinator.pub``) and, where parts of it are
the site's own, a statement of their digests under the site's key (:mod:`fed_diffmic.release.personal`). Whoever can
write to the folder can exchange all of that; the line ``taken_over`` in the log is signed by the site's key and
chained, and the coordinators of later runs hold the heads behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from client.start import AUDIT, site_audit, site_signer
from fed_diffmic.algorithms import Tensors
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.audit_lines import Line, read_lines
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import PrivateKey, PublicKey, load_public
from fed_diffmic.release.final import FinalModel, load_final, second_of
from fed_diffmic.release.made_at import MIXTURE

IN_USE = "model"
TAKEN = "taken_over"
AGAIN = "Compare it again."
REMEDY = "Take a model over again: `fed-diffmic client model use DIR --config site.yaml`."


def signing_key(config: SiteConfig) -> PrivateKey | None:
    """The site's key; none where its configuration names none.

    Raises:
        CredentialError: it cannot be used.
    """
    named = config.coordinator.key is not None or config.coordinator.insecure
    return site_signer(config) if named else None


def coordinator_key(config: SiteConfig) -> PublicKey | None:
    """The coordinator's key that the configuration pins, or none.

    Raises:
        CredentialError: it cannot be read.
    """
    path = config.coordinator.public_key
    return None if path is None else load_public(path)


def record(
    config: SiteConfig, model: FinalModel, folder: Path, parts: Mapping[str, Tensors], refused: Path | None = None
) -> None:
    """The line of a model that is about to be the one in use; without a key of the site there is no log to hold it.

    Args:
        folder: that the model was read from.
        parts: what of it is the site's own, by stage.
        refused: folder of the one that it takes the place of, where that was not what it should be: the line says so.

    Raises:
        MachineError, ModelFileError: the log cannot be written.
    """
    if signing_key(config) is None:
        return
    digests = {stage: tensors_digest(part) for stage, part in sorted(parts.items())}
    facts = {"of_run": model.spec.run_id, "model": model_digest(folder), "key": model.signed_by, "parts": digests}
    if refused is not None:
        facts["refused"] = _digest_or_none(refused)
    site_audit(config).append(TAKEN, **facts)


def check_copy(
    config: SiteConfig, copy: Path, model: FinalModel, digest: str, key: PublicKey | None = None
) -> FinalModel:
    """The model of a copy, if it is the one that was compared: the folder that it was read from may have changed.

    Args:
        copy: folder that is about to be the model in use.
        model: as it was read and compared.
        digest: of its folder (:func:`model_digest`) before it was read.
        key: that it must be signed by; none: the coordinator's.

    Raises:
        ModelFileError: it is another, or not verified by that key.
    """
    try:
        found = load_final(copy, public_key=key or coordinator_key(config))
        if found.made_at is not None and found.made_at.kind == MIXTURE:
            second_of(found.made_at, copy)
        same = model_digest(copy) == digest
    except ModelFileError as error:
        raise ModelFileError(f"the model changed while it was compared: {error.cause}", AGAIN) from error
    about = [(m.spec, m.digests, m.calibration, m.personal, m.signed_by, m.made_at) for m in (model, found)]
    if not same or about[0] != about[1]:
        raise ModelFileError("the model changed while it was compared", AGAIN)
    return found


def recorded(config: SiteConfig) -> Line | None:
    """The line of the model in use; none: none was written.

    Raises:
        ModelFileError: it, or the log behind it, does not hold.
    """
    path = Path(str(config.site.folder)) / AUDIT
    lines = read_lines(path) if path.exists() else []
    taken = next((line for line in reversed(lines) if line.kind == TAKEN), None)
    if taken is not None:
        check_chain(lines[lines.index(taken) :], signing_key(config), path)
    return taken


def load_kept(config: SiteConfig, folder: Path) -> FinalModel:
    """The model in use, if it is still the one that was taken over.

    Args:
        folder: of the model in use.

    Raises:
        ModelFileError: it was exchanged, or is not signed by the key that it was taken over with.
    """
    line = recorded(config)
    if line is None:  # kept by an earlier version, or without a key: what the configuration pins must have signed it
        return load_final(folder, public_key=coordinator_key(config))
    model = load_final(folder)
    if line.facts.get("model") != model_digest(folder) or line.facts.get("key", "") != model.signed_by:
        raise ModelFileError(f"the model in {folder} is not the one that this site took over last", REMEDY)
    return model


def check_part(config: SiteConfig, stage: str, part: Tensors) -> None:
    """A part of the model in use is the one that was kept with it.

    Raises:
        ModelFileError: it is not.
    """
    line = recorded(config)
    if line is not None and dict(line.facts.get("parts", {})).get(stage) != tensors_digest(part):
        raise ModelFileError(f"this site's own part of stage {stage} is not the one that was taken over", REMEDY)


def model_digest(folder: Path) -> str:
    """SHA-256 of a model's ``model.json``, which names everything else by digest.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        return hashlib.sha256((folder / "final" / "model.json").read_bytes()).hexdigest()
    except OSError as error:
        raise ModelFileError(
            f"{folder / 'final' / 'model.json'} cannot be read: {error.strerror}", "Give the folder of a finished run."
        ) from error


def _digest_or_none(folder: Path) -> str:
    try:
        return model_digest(folder)
    except ModelFileError:
        return ""


def check_chain(lines: Sequence[Line], key: PrivateKey | None, path: Path) -> None:
    """The lines follow each other, and the site's key stands for the last, and through the chain for all."""
    whole = all(line.complete for line in lines)
    linked = all(after.previous == line.digest for line, after in pairwise(lines))
    signed = key is None or lines[-1].signed_by(key.public_key())
    if not (whole and linked and signed):
        raise ModelFileError(
            f"the audit log {path} does not hold where it says which model was taken over",
            "`fed-diffmic audit verify` says what is wrong with it; restore it, then take the model over again.",
        )
