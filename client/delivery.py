"""The finished model, as the coordinator sends it: judged before it is asked for, verified, kept under ``models/RUN``.

The request names everything but the weights: ``model.json`` and the signed statement, as texts. They are judged first;
only then does the site say that it lacks the weights (or takes those that it was sent last, which it keeps). What is
the site's own of the model (FedBN, Ditto) is kept beside it and never crosses.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.crossing import WeightsMissingError
from client.logged import unlike_log
from client.models import KEPT, MODELS
from client.personal import own_parts
from client.state import SiteStore
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec, without_paths
from fed_diffmic.errors import FedDiffmicError, ModelFileError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.payload import Payload, Tensors, request_name
from fed_diffmic.files import atomic_write, private_folder, safe_name, save_tensors, sync_folder, tensors_digest
from fed_diffmic.provision.keys import PrivateKey, PublicKey
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.release.personal import save_part, sign_parts
from fed_diffmic.release.pinned import pin
from fed_diffmic.release.provenance import PROVENANCE, verify_statement

MOST_KEPT = 50
"""Models that a site keeps; each is bounded by ``policy.model_mib``."""
GIVEN = ("train.reply", "evaluate.reply", "conform.reply", "assess.reply")


@dataclass(frozen=True)
class Delivery:
    """Takes the models that are sent to one site.

    Attributes:
        config: of the site.
        audit: its log: says what was sent last, and gets a line of what is kept.
        signer: the site's key.
        coordinator: whose signature a model must have; none: none is taken (an insecure trial).
    """

    config: SiteConfig
    audit: AuditLog
    signer: PrivateKey
    coordinator: PublicKey | None

    def take(self, spec: RunSpec, request: Payload) -> Payload:
        """Keep the model that a request holds, if it is one; the same one again is no harm.

        Args:
            spec: of the run, from the request; the site agreed to it.
            request: already found to be well-formed, of a run that the policy names.

        Raises:
            WeightsMissingError: it may come, and its weights are not here.
            SiteError: it is refused; says why.
            MachineError: it cannot be written.
        """
        header = request.header
        if header["site"] != self.config.site.name:
            raise SiteError(failures.BAD_REQUEST)
        target = private_folder(self._folder / MODELS) / safe_name(spec.run_id)
        if not self._kept(target, header["model"]):
            part = target.with_name(f".{target.name}.coming")
            shutil.rmtree(part, ignore_errors=True)
            try:
                self._keep(spec, request, part)
                part.rename(target)
                sync_folder(target.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        quoted = {"run": spec.run_id, "arm": spec.arm, "site": header["site"], "model": header["model"]}
        return Payload("deliver.reply", {**quoted, "request": request_name(header)})

    @property
    def _folder(self) -> Path:
        return Path(str(self.config.site.folder))

    @property
    def _key(self) -> PublicKey:
        if self.coordinator is None:
            raise SiteError(failures.MODEL_SIGNATURE, "coordinator.public_key is not set")
        return self.coordinator

    def _kept(self, target: Path, digest: str) -> bool:
        """Whether this very model is kept.

        Raises:
            SiteError: another one of the run is, or as many as may be.
        """
        if target.exists():
            if hashlib.sha256((target / "final" / "model.json").read_bytes()).hexdigest() == digest:
                return True
            raise SiteError(failures.MODEL_AGAIN, "models/ holds another model of this run")
        if sum(1 for path in target.parent.iterdir() if path.is_dir() and not path.name.startswith(".")) >= MOST_KEPT:
            raise SiteError(failures.MODEL_AGAIN, f"models/ holds {MOST_KEPT} models")
        return False

    def _keep(self, spec: RunSpec, request: Payload, part: Path) -> None:
        """Write the whole model into ``part``, verified, with its line in the audit log."""
        value, statement = self._judged(spec, request, part)
        states = self._states(value["digests"], statement, request)
        # Once more: what the site keeps already did not travel, and nobody said how large it is.
        self._bound(sum(tensor.nbytes for state in states.values() for tensor in state.values()))
        for stage, tensors in states.items():
            save_tensors(part / "final" / f"{stage}.safetensors", tensors)
        try:
            model = load_final(part, public_key=self._key)
        except FedDiffmicError as error:  # whoever signed it, it is not what its rounds made, or of another network
            raise SiteError(failures.MODEL_OTHER, error.cause) from error
        parts = self._own(model, part)
        pin(part, self._key)  # from here on, parts beside the model must be signed by the site
        digests = {stage: tensors_digest(own) for stage, own in sorted(parts.items())}
        facts = {"of_run": spec.run_id, "model": request.header["model"], "key": model.signed_by, "parts": digests}
        self.audit.append(KEPT, **facts)

    def _own(self, model: FinalModel, part: Path) -> Mapping[str, Tensors]:
        try:
            parts = own_parts(self.config, model, part)
        except ModelFileError:  # no longer here: `use` says so, to a person
            return {}
        for stage, own in parts.items():
            save_part(part, stage, self.config.site.name, own)
        if parts:
            sign_parts(part, self.config.site.name, parts, self.signer)
        return parts

    def _judged(self, spec: RunSpec, request: Payload, part: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The texts of a model as values, judged without its weights.

        Raises:
            SiteError: it is refused.
        """
        header, key = request.header, self._key
        self._bound(max(header["size"], request.tensor_bytes))
        if request.tensor_bytes > header["size"]:
            raise SiteError(failures.MODEL_SIZE, f"{request.tensor_bytes} bytes; it was to be {header['size']}")
        (part / "final").mkdir(mode=0o700, parents=True)
        atomic_write(part / "final" / "model.json", header["model_json"].encode())
        atomic_write(part / "final" / PROVENANCE, header["provenance"].encode())
        try:
            statement, _ = verify_statement(part / "final" / PROVENANCE, key)
        except FedDiffmicError as error:
            raise SiteError(failures.MODEL_SIGNATURE, error.cause) from error
        digest = hashlib.sha256(header["model_json"].encode()).hexdigest()
        if digest != header["model"] or statement.get("model_json") != digest:
            raise SiteError(failures.MODEL_TORN, "model.json is not the one that was signed")
        value = _facts(header["model_json"])
        if value["run"] != spec.run_id or statement.get("edition") != header["site"]:
            raise SiteError(failures.MODEL_RUN, "the signed model is of another run, or made for another site")
        if value["spec"] != json.loads(without_paths(spec).to_json()):
            # Its weights fit the site's log whatever its classes are called, and however an answer is made of them.
            raise SiteError(failures.MODEL_OTHER, "model.json holds other settings or classes than the run's study")
        self._compare(spec.run_id, statement, value)
        return value, statement

    def _bound(self, size: int) -> None:
        """Raises for weights of more bytes than the site takes."""
        most = int(self.config.policy.model_mib * 2**20)
        if size > most:
            raise SiteError(failures.MODEL_SIZE, f"{size} bytes; policy.model_mib is {most >> 20}")

    def _compare(self, run: str, statement: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Hold what was signed against this site's own log.

        Raises:
            SiteError: the site gave the run nothing, or was sent something else.
        """
        lines, site = read_lines(self.audit.path), self.config.site.name
        mine = [line for line in lines if line.kind == "payload" and line.facts.get("run") == run]
        if not any(line.facts.get("reply") in GIVEN for line in mine):
            raise SiteError(failures.MODEL_UNASKED)
        try:
            wrong = unlike_log(lines, self._key, site, run, statement, value)
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # signed, and no statement
            raise SiteError(failures.MODEL_OTHER, "the statement cannot be read") from error
        if wrong:
            raise SiteError(failures.MODEL_OTHER, "; ".join(wrong))

    def _states(self, digests: Mapping[str, str], statement: Mapping[str, Any], request: Payload) -> dict[str, Tensors]:
        """The weights by stage: those that came, or, where the site keeps what it was sent last, those.

        Raises:
            WeightsMissingError: neither.
            SiteError: what came is not what was signed.
        """
        if not request.tensors:
            bound = statement["stages"]  # a statement without them was refused when it was held against the log
            if not set(digests) <= set(bound):
                raise SiteError(failures.MODEL_OTHER, "the statement binds not all stages to their rounds")
            return {stage: self._sent_last(bound[stage], digest) for stage, digest in digests.items()}
        states: dict[str, Tensors] = {stage: {} for stage in digests}
        for name, value in request.tensors.items():
            stage, _, own = name.partition(".")
            if stage not in states or not own:
                raise SiteError(failures.MODEL_TORN, "a tensor of no stage of the model came")
            states[stage][own] = value
        wrong = sorted(stage for stage, digest in digests.items() if tensors_digest(states[stage]) != digest)
        if wrong:
            raise SiteError(failures.MODEL_TORN, f"the weights of stage {wrong[0]} are not those that were signed")
        return states

    def _sent_last(self, bound: Mapping[str, str], digest: str) -> Tensors:
        store = SiteStore(self._folder)
        base, weights = store.base(bound["base"]), store.weights(bound["candidate"])
        state = {**(base or {}), **(weights or {})}
        if base is None or weights is None or tensors_digest(state) != digest:
            raise WeightsMissingError
        return state


def _facts(text: str) -> dict[str, Any]:
    """What is needed of a ``model.json`` before the model is read as a whole; it is signed.

    Raises:
        SiteError: it does not say it.
    """
    try:
        value = json.loads(text)
        found = {name: value[name] for name in ("spec", "digests", "calibration", "sureness")}
        found["run"] = value["spec"]["run_id"]
        if not all(type(digest) is str for digest in found["digests"].values()):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise SiteError(failures.MODEL_TORN, "model.json lacks fields or has others") from error
    return found
