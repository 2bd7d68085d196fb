"""A coordinator's signed model against what this site agreed to and wrote down itself, whichever way it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client.studies import kept_study
from fed_diffmic.config.spec import RunSpec, without_paths
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.audit_findings import PROBLEM
from fed_diffmic.exchange.audit_heads import coordinator_heads
from fed_diffmic.exchange.audit_lines import Line
from fed_diffmic.exchange.study import Study
from fed_diffmic.files import read_json
from fed_diffmic.provision.keys import PublicKey
from fed_diffmic.release.model_audit import model_findings

_ASK = "Do not use it: ask the coordinator which model the run made, and keep this one as evidence."


def unlike_log(
    lines: Sequence[Line], key: PublicKey, site: str, run: str, statement: Mapping[str, Any], value: Mapping[str, Any]
) -> list[str]:
    """In what a model is not what this site was sent and last asked about, in words.

    Args:
        lines: of the site's audit log.
        key: the coordinator's.
        site: name.
        run: name.
        statement: signed, its signature verified.
        value: ``calibration`` and ``sureness`` of ``model.json``.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: signed, and no statement.
    """
    seen, _ = coordinator_heads(lines, [key], site=site, run=run)
    found = model_findings(statement, value["calibration"], lines, seen, site=site, run=run, sureness=value["sureness"])
    return [finding.text for finding in found if finding.level == PROBLEM]


def check_agreed(folder: Path, spec: RunSpec, of: Path) -> Study | None:
    """A model has the settings and classes of the study of its run that this site keeps; none: it keeps none.

    Its weights alone do not show it: they fit whatever the classes are called, and however an answer is made of them.

    Args:
        folder: the site's own.
        spec: of the model.
        of: folder of the model, for people.

    Raises:
        ModelFileError: it has others.
        MachineError: the kept study cannot be read.
    """
    study = kept_study(folder, spec.run_id)
    if study is not None and json.loads(without_paths(spec).to_json()) != study.document["spec"]:
        raise ModelFileError(
            f"the model in {of} has other settings or classes than the study of its run that this site keeps", _ASK
        )
    return study


def check_logged(
    lines: Sequence[Line], key: PublicKey, site: str, of: Path, statement: Mapping[str, Any], run: str
) -> None:
    """A model in a folder is what this site's own log says that it was sent, where it took part in the run.

    Raises:
        ModelFileError: it is not.
    """
    if not any(line.facts.get("run") == run for line in lines):
        return
    value = read_json(of / "final" / "model.json")
    try:
        wrong = unlike_log(lines, key, site, run, statement, value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"the signed statement of the model in {of} cannot be read", _ASK) from error
    if wrong:
        raise ModelFileError(f"the model in {of} is not what this site was sent: {wrong[0]}", _ASK)
