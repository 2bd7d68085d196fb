"""A good reply passes; each way in which it can be wrong is refused with its own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.screening import REFUSALS, Expected, Refusal, schema_of, screen

TENSORS = {
    "head.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "norm.running_mean": np.ones(4, np.float32),
    "norm.num_batches_tracked": np.array(7, np.int64),
}
EXPECTED = Expected(
    kind="train.reply",
    header={"run": "r", "arm": "federated", "stage": "guidance", "round": 3, "site": "a", "request": "d" * 64},
    fields={"state": str},
    schema=schema_of(TENSORS),
    weighted=True,
    metrics={"loss": (-1e300, 1e300), "auroc_macro": (0.0, 1.0), "nll/": (0.0, 1e300)},
)


def good() -> Payload:
    return Payload(
        "train.reply",
        {**EXPECTED.header, "state": "", "num_examples": 12},
        {name: value.copy() for name, value in TENSORS.items()},
        {"loss": 0.3, "auroc_macro": 0.9, "nll/0/1": 3.0},
    )


def header(**changes: Any) -> Callable[[Payload], Payload]:
    return lambda p: replace(p, header={k: v for k, v in {**p.header, **changes}.items() if v is not ...})


def tensors(**changes: Any) -> Callable[[Payload], Payload]:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda p: replace(p, tensors={k: v for k, v in {**p.tensors, **named}.items() if v is not ...})


def metrics(**changes: float) -> Callable[[Payload], Payload]:
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    return lambda p: replace(p, metrics={**p.metrics, **named})


def poisoned(value: float) -> np.ndarray:
    array = TENSORS["head.weight"].copy()
    array[1, 2] = value
    return array


MUTATIONS: list[tuple[str, Callable[[Payload], Payload]]] = [
    ("kind", lambda p: replace(p, kind="evaluate.reply")),
    ("header", header(state=...)),
    ("header", header(more=1)),
    ("header", header(state=None)),
    ("header", header(state=3)),
    ("header", header(round="3")),
    ("header", header(round=3.0)),
    ("header", header(num_examples=...)),
    ("replay", header(run="other")),
    ("replay", header(arm="local/a")),
    ("replay", header(stage="diffusion")),
    ("replay", header(round=2)),
    ("replay", header(request="e" * 64)),
    ("site", header(site="b")),
    ("weight", header(num_examples=0)),
    ("weight", header(num_examples=-4)),
    ("weight", header(num_examples=2.0)),
    ("weight", header(num_examples=True)),
    ("weight", header(num_examples=2**41)),
    ("weight", header(num_examples="12")),
    ("names", tensors(head__weight=...)),
    ("names", tensors(head__bias=np.zeros(3, np.float32))),
    ("names", lambda p: replace(p, tensors={})),
    ("dtype", tensors(head__weight=TENSORS["head.weight"].astype(np.float64))),
    ("dtype", tensors(norm__num_batches_tracked=np.array(7, np.int32))),
    ("shape", tensors(head__weight=TENSORS["head.weight"].T.copy())),
    ("shape", tensors(norm__num_batches_tracked=np.array([7], np.int64))),
    ("not_finite", tensors(head__weight=poisoned(np.nan))),
    ("not_finite", tensors(head__weight=poisoned(np.inf))),
    ("not_finite", tensors(head__weight=poisoned(-np.inf))),
    ("metrics", metrics(auroc_macro=1.5)),
    ("metrics", metrics(auroc_macro=-0.1)),
    ("metrics", metrics(nll__0__0=-1.0)),
    ("metrics", metrics(patient_17=1.0)),
    ("metrics", metrics(other__0=1.0)),
]


def test_a_good_reply_passes() -> None:
    assert screen(good(), EXPECTED) is None


@pytest.mark.parametrize(("code", "mutate"), MUTATIONS, ids=[f"{n}-{code}" for n, (code, _) in enumerate(MUTATIONS)])
def test_each_mutation_is_refused(code: str, mutate: Callable[[Payload], Payload]) -> None:
    assert screen(mutate(good()), EXPECTED) == Refusal(code)


@given(st.lists(st.sampled_from([m for _, m in MUTATIONS]), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_mixture_of_mutations_is_refused(chosen: list[Callable[[Payload], Payload]]) -> None:
    payload = good()
    for mutate in chosen:
        payload = mutate(payload)
    refusal = screen(payload, EXPECTED)
    assert refusal is not None
    assert refusal.sentence == REFUSALS[refusal.code]


def test_an_unweighted_reply_may_not_carry_a_weight() -> None:
    plain = replace(EXPECTED, weighted=False)
    assert screen(good(), plain) == Refusal("header")


def test_limits_follow_from_the_schema() -> None:
    assert EXPECTED.limits.tensors == 3
    assert EXPECTED.limits.tensor_bytes == 12 * 4 + 4 * 4 + 8
