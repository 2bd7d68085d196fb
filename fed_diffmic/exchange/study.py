"""The study: everything that a run will ask of its sites, as one document under one digest, signed by the coordinator.

The document is canonical JSON: sorted keys, no spaces, no NaN, every number as Python writes it. It holds nothing that
depends on the time of day, so that a run that is continued has the same one. The signature (ECDSA, base64) stands
beside it: it may be made again without the digest changing.

=========  =============================================================================================
format     1
run, arm   names of the run (ours) and of the training inside it
spec       every number that the sites get (:class:`fed_diffmic.config.spec.RunSpec` without the coordinator's paths)
stages     the stages that will be trained, in order
test       whether metrics over the sites' test images are asked for at the end, once for each stage's model (under
           masks once, of the last stage's)
sites      names of the sites that are expected, sorted; null: whoever is there
initial    ``{stage: {"base", "weights"}}``: digests of the first stage's weights before its first round
code       version of the program, digest of its source files, versions of what it stands on
=========  =============================================================================================

A site keeps the document of a run from the first request on (:mod:`client.studies`); every later request names its
digest and must say nothing else.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fed_diffmic.config.spec import STAGES, RunSpec, without_paths
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.masking.session import MaskingError, Session
from fed_diffmic.exchange.payload import Payload, text_digest
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import PrivateKey, PublicKey, decode_signature, sign, verifies

FORMAT = 1
LARGEST = 1024 * 1024  # characters; the spec is some 6,000, the rest are names
BASE = "base/"
EXTRA = "algorithm/"  # that of fed_diffmic.algorithms, which loads torch: a command that prints sentences need not wait
_DOMAIN = b"fed_diffmic study\0"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "run": str,
    "arm": str,
    "spec": dict,
    "stages": list,
    "test": bool,
    "sites": (list, type(None)),
    "initial": dict,
    "code": dict,
}


@dataclass(frozen=True)
class Study:
    """A study as it travels and is kept; made by :func:`make_study` or :func:`parse_study` only.

    Attributes:
        text: the document, canonical.
        signature: the coordinator's over its digest, base64; empty: nobody signed it.
    """

    text: str
    signature: str = ""

    @functools.cached_property
    def document(self) -> Mapping[str, Any]:
        """The document as values."""
        return dict(json.loads(self.text))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the document: the name of the study."""
        return text_digest(self.text)

    @functools.cached_property
    def spec_text(self) -> str:
        """The spec inside it, as the header of every request must hold it."""
        return canonical(self.document["spec"])

    @property
    def run(self) -> str:
        """Name of the run."""
        return str(self.document["run"])

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that will be trained, in order."""
        return tuple(self.document["stages"])

    def spec(self) -> RunSpec:
        """The spec inside it.

        Raises:
            ConfigError: it is none, or lies outside of what is allowed anywhere.
        """
        return RunSpec.from_json(self.spec_text)

    def signed(self, key: PrivateKey) -> Study:
        """The same study under ``key``'s signature."""
        return replace(self, signature=base64.b64encode(sign(key, self._signed_text)).decode())

    def signed_by(self, key: PublicKey) -> bool:
        """Whether its signature is ``key``'s."""
        try:
            return verifies(key, decode_signature(self.signature), self._signed_text)
        except ValueError:
            return False

    @property
    def _signed_text(self) -> bytes:
        return _DOMAIN + self.digest.encode()


def make_study(
    spec: RunSpec,
    *,
    stages: Sequence[str],
    test: bool,
    sites: Iterable[str] | None,
    initial: Mapping[str, Mapping[str, str]],
    code: Mapping[str, Any],
) -> Study:
    """The study of a run.

    Args:
        spec: of the run; paths are left out.
        stages: that will be trained, in order.
        test: whether metrics over test images are asked for at the end.
        sites: that are expected; none: whoever is there.
        initial: digests of a stage's weights before its first round, of the stages where they are known.
        code: what computes at the coordinator.
    """
    document = {
        "format": FORMAT,
        "run": spec.run_id,
        "arm": spec.arm,
        "spec": json.loads(without_paths(spec).to_json()),
        "stages": list(stages),
        "test": test,
        "sites": None if sites is None else sorted(sites),
        "initial": {stage: dict(digests) for stage, digests in initial.items()},
        "code": dict(code),
    }
    return Study(canonical(document))


def parse_study(text: str, signature: str = "") -> Study:
    """A study that came, or lay in a file.

    Raises:
        ConfigError: it is not a canonical document, or its spec is not one of its run.
    """
    if len(text) > LARGEST:
        raise ConfigError("study", f"({len(text)} characters)", f"at most {LARGEST}")
    try:
        value = json.loads(text)
        whole = isinstance(value, dict) and canonical(value) == text
    except (ValueError, RecursionError) as error:
        raise ConfigError("study", "(text)", "canonical JSON") from error
    if not whole or set(value) != set(_FIELDS):
        raise ConfigError("study", "(text)", f"canonical JSON with the fields {', '.join(_FIELDS)}")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(value[name], kind)]
    if wrong or type(value["format"]) is not int or value["format"] != FORMAT:
        raise ConfigError("study", f"wrong {wrong[0] if wrong else 'format'}", f"a study of format {FORMAT}")
    stages, sites = value["stages"], value["sites"] or []
    if not stages or len(set(map(str, stages))) != len(stages) or not set(map(str, stages)) <= set(STAGES):
        raise ConfigError("study.stages", str(stages)[:200], f"some of {', '.join(STAGES)}, each once")
    if not all(isinstance(name, str) for name in sites) or not _are_digests(value["initial"]):
        raise ConfigError("study", "sites or initial", "names, and digests of a stage's base and weights")
    study = Study(text, signature)
    spec = study.spec()
    if (spec.run_id, spec.arm) != (value["run"], value["arm"]) or without_paths(spec) != spec:
        raise ConfigError("study.spec", spec.run_id[:200], "the spec of the study's own run, without paths")
    return study


def contradiction(study: Study, kind: str, request: Payload) -> str:
    """What a request of the study's run says that the study does not, in words for the site's own log; empty: nothing.

    Args:
        kind: ``query``, ``mask``, ``train``, ``evaluate``, ``conform``, ``assess`` or ``deliver``.
    """
    header = request.header
    if header["spec"] != study.spec_text:
        return "its spec is not the study's"
    if kind in ("query", "deliver"):
        return ""
    stage = header["stage"]
    if stage not in study.stages:
        return f"stage {stage} is not one of the study's"
    if kind == "conform" and stage != study.stages[-1]:
        return f"prediction sets are those of the study's last stage, and {stage} is not"
    summed = _is_sum_of_test(kind, header)
    if (kind == "assess" or summed) and not study.document["test"]:
        return "the study asks for no metrics over test images"
    if summed and stage != study.stages[-1]:  # one for each stage would be several, of weights that one likes
        return f"a masked sum over test images is of the study's last stage, and {stage} is not"
    initial = study.document["initial"].get(stage)
    if initial is not None and header["base"] != initial["base"]:
        return f"the frozen part of stage {stage} is not the study's"
    if initial is not None and kind == "train" and header["round"] == 1 and _weights(request) != initial["weights"]:
        return f"the weights with which stage {stage} begins are not the study's"
    return ""


def canonical(value: object) -> str:
    """``value`` as JSON in the one way to write it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _is_sum_of_test(kind: str, header: Mapping[str, Any]) -> bool:
    """Whether a request belongs to a masked sum over test images."""
    if kind != "mask":
        return kind == "assess" and MASKED in header
    try:
        return Session.parse(header["session"]).purpose == "test"
    except MaskingError:
        return False  # it is refused for that


def _weights(request: Payload) -> str:
    """Digest of the weights alone: what an algorithm sends beside them is not the model's."""
    plain = {name: value for name, value in request.tensors.items() if not name.startswith((BASE, EXTRA))}
    if not any(name.startswith(EXTRA) for name in request.tensors):
        return str(request.header["weights"])  # the site compares it with the tensors before it loads them
    return tensors_digest(plain)


def _are_digests(initial: Mapping[str, Any]) -> bool:
    return all(
        isinstance(value, dict) and set(value) == {"base", "weights"} and all(type(d) is str for d in value.values())
        for value in initial.values()
    )
