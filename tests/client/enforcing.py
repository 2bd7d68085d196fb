"""A site under rules, and what its audit log holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client import site as client_site
from client.site import Rules
from fed_diffmic.exchange.audit import Line, read_lines, verify
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest
from tests import site_rules, toy


class Opened(toy.ToySource):
    """Counts how often the site's data were opened."""

    count = 0

    def __call__(self, context: Any, spec: Any, header: Any) -> Any:
        self.count += 1
        return super().__call__(context, spec, header)


def ruled(tmp_path: Path) -> Iterator[Any]:
    """Puts the site ``a`` under rules; returns how to change them."""
    source = Opened({"a": toy.toy_site("a", 1)})

    def under(gate: Any = None, **changes: Any) -> tuple[Rules, Opened]:
        rules = site_rules.rules(tmp_path / "log", "a", gate, **changes)
        client_site.register_source(source, rules=rules)
        return rules, source

    yield under
    client_site.register_source(source)


def lines(tmp_path: Path) -> list[Line]:
    path = tmp_path / "log" / "a.audit.jsonl"
    assert verify(path, site_rules.KEY.public_key()) == []
    return read_lines(path)


def weights(request: Payload, **changed: np.ndarray) -> Payload:
    """The request with other global tensors, its digest right."""
    tensors = {**request.tensors, **changed}
    plain = {name: value for name, value in tensors.items() if not name.startswith("base/")}
    return replace(request, tensors=tensors, header={**request.header, "weights": tensors_digest(plain)})


def query(**changes: Any) -> Payload:
    spec = replace(toy.toy_spec(), **changes)
    return Payload("query", {"spec": spec.to_json(), "run": spec.run_id, "arm": spec.arm, "ledger": ""})


SPEC = toy.toy_spec()
TYPES = {"mask": "query.mask", "assess": "evaluate.assess"}
