"""Studies of toy runs, signed, and a site that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from client.site import Rules
from client.studies import Studies
from fed_diffmic.config.policy_study import StudyRules
from fed_diffmic.config.spec import RunSpec, without_paths
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.study import Study, make_study
from tests import site_rules, toy

COORDINATOR = ec.generate_private_key(ec.SECP256R1())
BY_RULE = StudyRules(approval="rule", backbones=["resnet18"])
BY_PERSON = StudyRules()


def study_of(
    spec: RunSpec | None = None,
    stages: Sequence[str] = ("guidance",),
    test: bool = True,
    key: Any = COORDINATOR,
    initial: Any = None,
) -> Study:
    spec, code = spec or toy.toy_spec(), {"version": "1"}
    study = make_study(spec, stages=stages, test=test, sites=["a"], initial=initial or {}, code=code)
    return study if key is None else study.signed(key)


def query(study: Study, /, spec: RunSpec | None = None, **changes: Any) -> Payload:
    """The first request of a run; ``spec`` where it is not the study's."""
    header = {
        "spec": study.spec_text if spec is None else without_paths(spec).to_json(),
        "run": study.run,
        "arm": str(study.document["arm"]),
        "ledger": "",
        "study": study.digest,
        "document": study.text,
        "signature": study.signature,
    }
    return Payload("query", {name: value for name, value in {**header, **changes}.items() if value is not ...})


def keeping(folder: Path, rules: StudyRules = BY_RULE, name: str = "a", log: str = "log", **policy: Any) -> Rules:
    """Rules of a site whose own folder is ``folder/NAME``, with its studies."""
    found = site_rules.rules(folder / log, name, **policy)
    kept = Studies(folder / name, rules, found.audit, site_rules.KEY, COORDINATOR.public_key())
    return replace(found, studies=kept)
