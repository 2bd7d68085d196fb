"""The final model of a run: weights as safetensors, what they are as JSON, and who signed for them.

``final/`` holds ``<stage>.safetensors``, ``model.json`` (written last: it makes the run complete) and, where a
coordinator with a signing key made it, ``provenance.json``: configuration, code, sites, rounds, digests of payloads
and heads of the audit logs' chains, signed (:mod:`fed_diffmic.release.provenance`). A simulation's model is not signed,
and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.fields import as_written
from fed_diffmic.config.folders import has_final
from fed_diffmic.config.run_names import RUN_NAMES, is_run_name
from fed_diffmic.config.spec import RunSpec, parse_dataclass, without_paths
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import atomic_write, load_tensors, read_json, save_tensors, tensors_digest
from fed_diffmic.provision.keys import PrivateKey, PublicKey, fingerprint
from fed_diffmic.release.binding import check_binding
from fed_diffmic.release.made_at import OWN, MadeAt
from fed_diffmic.release.pinned import must_be_signed, pinned_key
from fed_diffmic.release.provenance import PROVENANCE, sign_statement, verify_statement
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.stages import build_module, full_state
from fed_diffmic.training.sureness import Sureness

FORMAT = 1
OF_A_SITE = 2
"""Format of a model that a site made for itself: an earlier version would take a mixture for its first half."""
_VERSION = "Use the version of fed_diffmic that wrote it, or fetch the folder `final` again, whole."


@dataclass(frozen=True)
class FinalModel:
    """What a run leaves.

    Attributes:
        spec: what the run's sites had in common.
        states: full state of each stage's network.
        calibration: fitted on the sites' validation sums, for each stage.
        history: one mapping of metrics a round.
        bytes_sent: tensor bytes both ways.
        digests: of each stage's weights.
        signed_by: fingerprint of the key whose signature was verified; empty: nobody signed.
        personal: for each stage, digest of each site's own state that belongs to the model there; the state itself
            never left the site. Empty: the model is the same everywhere.
        matrix: metrics on the sites' test images, as far as the sites let them out: stage -> site -> cell
            (:func:`fed_diffmic.training.matrix.cell_from`). Empty: nobody was asked (a simulation).
        sureness: prediction sets and the test of uncertainty, of the stages where they are known: the last one. Empty:
            an earlier version made the model.
        made_at: how one site made this model for itself; none: a run made it.
        together: of a run whose coordinator sees sums alone: stage -> figures over the test images of several sites
            together (:func:`fed_diffmic.training.together.together`), and ``sites``, whose they are.
    """

    spec: RunSpec
    states: dict[str, Tensors]
    calibration: dict[str, Calibration]
    history: list[dict[str, Any]]
    bytes_sent: int
    digests: dict[str, str]
    signed_by: str = ""
    personal: dict[str, dict[str, str]] = field(default_factory=dict)
    matrix: dict[str, dict[str, Any]] = field(default_factory=dict)
    sureness: dict[str, Sureness] = field(default_factory=dict)
    made_at: MadeAt | None = None
    together: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Who stands for this model, in a sentence."""
        if self.signed_by and self.made_at is not None:
            made = f"made by the site {self.made_at.site} for itself ({self.made_at.kind})"
            return f"{made} and signed by the key {self.signed_by}"
        if self.signed_by:
            return f"signed by the key {self.signed_by}"
        return "not signed: a simulation made it, or a coordinator without a signing key"


def write_final(
    run_dir: str | os.PathLike[str],
    model: FinalModel,
    *,
    signer: PrivateKey | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``final/``; its ``model.json`` comes last and makes the run complete.

    Args:
        signer: signs the provenance; none: there is none.
        facts: what the provenance says besides the model itself.

    Raises:
        MachineError: no space, no permission.
    """
    final = Path(run_dir) / "final"
    final.mkdir(exist_ok=True)
    for stage, tensors in model.states.items():
        save_tensors(final / f"{stage}.safetensors", tensors)
    data, statement = final_texts(model, signer, facts)
    (final / PROVENANCE).unlink(missing_ok=True)
    if signer is not None:
        sign_statement(final / PROVENANCE, statement, signer)
    atomic_write(final / "model.json", data)


def final_texts(
    model: FinalModel, signer: PrivateKey | None, facts: Mapping[str, Any] | None
) -> tuple[bytes, dict[str, Any]]:
    """``model.json`` of a model, and the statement that its provenance signs.

    Args:
        signer, facts: as :func:`write_final`.
    """
    value: dict[str, Any] = {
        "format": FORMAT if model.made_at is None else OF_A_SITE,
        "spec": as_written(model.spec),
        "digests": model.digests,
        "architecture": {stage: architecture_digest(tensors) for stage, tensors in model.states.items()},
        "calibration": {stage: fitted.to_json() for stage, fitted in model.calibration.items()},
        "history": model.history,
        "bytes_sent": model.bytes_sent,
        "personal": model.personal,
        "matrix": model.matrix,
        "sureness": {stage: sure.to_json() for stage, sure in model.sureness.items()},
        # Says that there must be a provenance, so that a model that lost it is not taken for one that never had any.
        "signed": "" if signer is None else fingerprint(signer.public_key()),
    }
    if model.together:
        value["together"] = model.together
    if model.made_at is not None:
        value["made_at"] = model.made_at.to_json()
    data = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    named = {"digests": value["digests"], "architecture": value["architecture"]}
    named |= {"spec": as_written(without_paths(model.spec)), "model_json": hashlib.sha256(data).hexdigest()}
    return data, {**named, **(facts or {})}


def load_final(
    run_dir: str | os.PathLike[str],
    *,
    public_key: PublicKey | None = None,
    architecture: Mapping[str, str] | None = None,
) -> FinalModel:
    """The final model of a completed run, every file checked against its digest.

    Args:
        run_dir: the run's folder.
        public_key: of the coordinator; the model must be signed by it. None: the key that the folder is pinned to, if
            it is (:mod:`fed_diffmic.release.pinned`); else a signature that is there must hold, and one that was there
            must be, and :attr:`FinalModel.signed_by` says whose it is.
        architecture: digest that each of these stages must have (:func:`architecture_of`).

    Raises:
        ModelFileError: the run is not complete; a file is missing, torn or changed; the signature does not hold or is
            another key's; the weights are of another architecture, or not those that the signed rounds made.
    """
    final = Path(run_dir) / "final"
    if not has_final(run_dir):
        inside = Path(run_dir).name == "final" and (Path(run_dir) / "model.json").exists()
        raise ModelFileError(
            f"{run_dir} holds no final model" + (": it is one" if inside else ""),
            f"Name the folder that it lies in: {Path(run_dir).parent}."
            if inside
            else "Name a run that has ended (its folder holds final/); --resume continues one that has not.",
        )
    path = final / "model.json"
    value = read_json(path)
    try:
        made_at = MadeAt.from_json(value["made_at"]) if value["format"] == OF_A_SITE else None
        if value["format"] not in (FORMAT, OF_A_SITE) or (made_at is None and "made_at" in value):
            raise ModelFileError(f"{path} was written by another version", _VERSION)
        statement, signed_by = _verified(final, value, public_key or pinned_key(Path(run_dir)))
        states = {stage: load_tensors(final / f"{stage}.safetensors") for stage in value["digests"]}
        for stage, digest in value["digests"].items():
            if tensors_digest(states[stage]) != digest:
                raise ModelFileError(
                    f"{final / stage}.safetensors does not hold the weights that model.json names",
                    "Fetch the folder `final` again, whole.",
                )
        check_binding(statement, states, str(final))
        _check_architecture(path, states, {**value.get("architecture", {}), **(architecture or {})})
        spec = parse_dataclass(RunSpec, value["spec"], "spec")
        if not is_run_name(spec.run_id):
            raise ModelFileError(f"{path} names a run {spec.run_id!r}; allowed: {RUN_NAMES}")
        return FinalModel(
            spec=spec,
            states=states,
            calibration={stage: Calibration.from_json(c) for stage, c in value["calibration"].items()},
            history=value["history"],
            bytes_sent=value["bytes_sent"],
            digests=value["digests"],
            signed_by=signed_by,
            personal={stage: dict(states) for stage, states in value.get("personal", {}).items()},
            matrix={stage: dict(row) for stage, row in value.get("matrix", {}).items()},
            sureness={stage: Sureness.from_json(sure) for stage, sure in value.get("sureness", {}).items()},
            made_at=made_at,
            together={stage: dict(figures) for stage, figures in value.get("together", {}).items()},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} lacks fields or has others", _VERSION) from error


def second_of(made_at: MadeAt, folder: Path) -> FinalModel:
    """The model that a site trained alone, beside the global one of a mixture.

    Raises:
        ModelFileError: it is missing, or not the one that ``model.json`` names.
    """
    second = load_final(folder / OWN)
    if hashlib.sha256((folder / OWN / "final" / "model.json").read_bytes()).hexdigest() != made_at.own:
        raise ModelFileError(
            f"the second model of the mixture in {folder} is not the one that was mixed",
            "Make it again: `fed-diffmic client model own RUN mixture --config site.yaml`.",
        )
    return second


def architecture_digest(tensors: Tensors) -> str:
    """SHA-256 over sorted names, dtypes and shapes: two networks of the same digest take each other's weights."""
    rows = [[name, value.dtype.name, list(value.shape)] for name, value in sorted(tensors.items())]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def architecture_of(spec: RunSpec, stage: str) -> str:
    """The digest of the network that a spec describes."""
    return architecture_digest(full_state(build_module(spec, stage)))


def _verified(final: Path, value: Mapping[str, Any], public_key: PublicKey | None) -> tuple[dict[str, Any], str]:
    """What was signed, checked against the files, and the fingerprint of the key that signed; empty: nobody did."""
    path, said = final / PROVENANCE, str(value.get("signed", ""))
    if not path.exists():
        if public_key is not None or must_be_signed(final.parent):
            raise ModelFileError(
                f"the model in {final} is not signed, and it must be: a coordinator's key is pinned",
                "Take a model that the coordinator signed, with provenance.json.",
            )
        if said:
            raise ModelFileError(
                f"the model in {final} was signed by the key {said}, and its {PROVENANCE} is gone",
                "Fetch the folder `final` again, whole, from the coordinator or from the backup.",
            )
        return {}, ""
    try:
        statement, signed_by = verify_statement(path, public_key)
    except ModelFileError as error:
        if not isinstance(value.get("made_at"), dict):
            raise
        raise ModelFileError(
            f"a site made this model for itself, and {error.cause}",
            "Name that site's public key, `<its key>.pub`, in place of the coordinator's.",
        ) from error
    model_json = hashlib.sha256((final / "model.json").read_bytes()).hexdigest()
    if statement.get("model_json") != model_json or statement.get("digests") != value["digests"]:
        raise ModelFileError(
            f"{final / 'model.json'} is not the one that was signed", "Fetch the folder `final` again, whole."
        )
    if said and said != signed_by:
        raise ModelFileError(
            f"the model in {final} says that the key {said} signed it, and {signed_by} did",
            "Fetch the folder `final` again, whole; compare the key with what the coordinator reads to you by phone.",
        )
    return statement, signed_by


def _check_architecture(path: Path, states: Mapping[str, Tensors], expected: Mapping[str, str]) -> None:
    for stage, digest in expected.items():
        if stage not in states or architecture_digest(states[stage]) != digest:
            raise ModelFileError(
                f"stage {stage} in {path.parent} is of another architecture than expected (names, dtypes, shapes)",
                "Fetch the folder `final` again, whole; an architecture that you asked for yourself is of another "
                "configuration than `spec` in model.json.",
            )
