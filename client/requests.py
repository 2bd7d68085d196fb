"""What the coordinator may ask of a site: the fields of each request's header, and what every reply quotes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.config.run_names import is_run_name
from fed_diffmic.config.spec import STAGES, RunSpec
from fed_diffmic.exchange.failures import BAD_REQUEST, SiteError
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import HELD, REFERENCE, Payload, request_name

COMMON: dict[str, type] = {"spec": str, "run": str, "arm": str}
TASK: dict[str, type] = {**COMMON, "stage": str, "round": int, "site": str, "base": str, "weights": str}
FIELDS: dict[str, dict[str, type]] = {
    "labels": {"run": str},
    "query": {**COMMON, "ledger": str},
    "mask": {**TASK, "session": str, "step": str, "given": dict},
    "train": {**TASK, "state": str, "keep": str, "guidance": str, "ledger": str},
    "evaluate": {**TASK, "state": str, "guidance": str, "prior": list, "sums": bool, "split": str},
    "conform": {**TASK, "state": str, "guidance": str, "calibration": dict},
    "assess": {**TASK, "state": str, "guidance": str, "calibration": dict},
    "deliver": {**COMMON, "site": str, "model": str, "size": int, "model_json": str, "provenance": str},
}
# What real sites need and virtual ones, which have no rules, do not (client.studies); how weights came
# (client.crossing).
MAY_COME: dict[str, type] = {"study": str, HELD: str, REFERENCE: str}
OPTIONAL: dict[str, dict[str, type]] = {
    "labels": {},
    "query": {"study": str, "document": str, "signature": str},
    "mask": {"study": str},
    "train": {**MAY_COME, MASKED: dict},
    "evaluate": {**MAY_COME, MASKED: dict},
    "conform": {**MAY_COME, MASKED: dict},
    "assess": {**MAY_COME, "sureness": dict, MASKED: dict},
    "deliver": {"study": str},
}


def check_request(request: Payload, kind: str) -> RunSpec | None:
    """Header fields and types of a request, and the spec inside it (a question for labels has none).

    Raises:
        SiteError: the request is not one.
        ConfigError: its spec holds what the configuration does not allow.
    """
    wanted, allowed = FIELDS[kind], FIELDS[kind] | OPTIONAL[kind]
    header = request.header
    if request.kind != kind or not set(wanted) <= set(header) <= set(allowed):
        raise SiteError(BAD_REQUEST)
    if any(type(value) is not allowed[name] for name, value in header.items()) or not is_run_name(header["run"]):
        raise SiteError(BAD_REQUEST)
    if "spec" not in wanted:
        return None
    spec = RunSpec.from_json(header["spec"])
    if (spec.run_id, spec.arm) != (header["run"], header["arm"]) or header.get("stage", STAGES[0]) not in STAGES:
        raise SiteError(BAD_REQUEST)
    return spec


def answer_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """What every reply quotes of its request."""
    quoted = {name: header[name] for name in ("run", "arm", "stage", "round", "site")}
    return {**quoted, "request": request_name(header)}
