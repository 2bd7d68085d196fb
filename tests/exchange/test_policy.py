"""What the policy lets leave, and what it says; requests are tested at the ClientApp (tests/client/test_enforce.py)."""

from __future__ import annotations

import math
from dataclasses import Field, fields, is_dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.codecs import CODECS
from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.fields import check_value
from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.policy_limits import Limits
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.floors import Basis
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import Denial, Names, SitePolicy
from fed_diffmic.exchange.policy_text import explain
from fed_diffmic.exchange.screening import update_norm
from fed_diffmic.training.few import suppress
from tests.site_rules import OPEN
from tests.toy import toy_spec

REFERENCE = {"w": np.zeros((2, 2), np.float32), "n": np.array(3)}
UPDATE = {"w": np.full((2, 2), 3.0, np.float32), "n": np.array(50)}
HEADER = {"run": "r", "arm": "federated", "stage": "plain", "round": 1, "site": "a", "request": "x", "state": "",
          "num_examples": 12}  # fmt: skip


def update(**changes: Any) -> Payload:
    return replace(Payload("train.reply", HEADER, UPDATE, {"loss": 0.5}), **changes)


def test_names_know_the_star_and_nothing_else() -> None:
    names = Names(["head.*", "a[0]", "exact"])
    assert [n in names for n in ("head.w", "head.", "headxw", "a[0]", "a0", "exact", "exactly", "")] == [
        True, True, False, True, False, True, False, False
    ]  # fmt: skip
    assert "anything\nat all" in Names(["*"])
    assert "x" not in Names([])


def test_an_update_at_the_norm_leaves_and_above_it_does_not() -> None:
    assert update_norm(UPDATE, REFERENCE) == 6.0  # counters do not count
    assert isinstance(SitePolicy(replace(OPEN, max_update_norm=6.0)).release(update(), REFERENCE), Payload)
    denied = SitePolicy(replace(OPEN, max_update_norm=5.999)).release(update(), REFERENCE)
    assert isinstance(denied, Denial)
    assert denied.code == failures.POLICY_NORM


def test_norms_of_what_is_no_number_are_no_number() -> None:
    for value in (math.nan, math.inf, -math.inf):
        bad = {"w": np.array([[value, 0], [0, 0]], np.float32), "n": np.array(3)}
        denied = SitePolicy(OPEN).release(update(tensors=bad), REFERENCE)
        assert isinstance(denied, Denial)


LEAKS: dict[str, tuple[dict[str, Any], Payload, int]] = {
    "a tensor not named": ({"tensors": ["n"]}, update(), failures.POLICY_TENSORS),
    "a tensor that did not come": ({}, update(tensors={**UPDATE, "x": UPDATE["w"]}), failures.POLICY_TENSORS),
    "another type": ({}, update(tensors={"w": UPDATE["w"].astype(np.float64)}), failures.POLICY_DTYPES),
    "another shape": ({}, update(tensors={"w": np.zeros((9, 9), np.float32)}), failures.POLICY_NORM),
    "few images": ({"min_count": 13}, update(), failures.POLICY_COUNT),
    "a header field more": ({}, update(header={**HEADER, "names": ["x"]}), failures.POLICY_METRICS),
    "tensors with metrics": ({}, update(kind="evaluate.reply", header={}), failures.POLICY_TENSORS),
    "another kind": ({}, update(kind="images"), failures.POLICY_METRICS),
    "classes not named": (
        {"classes": ["x"]},
        Payload("labels.reply", {"run": "r", "request": "x", "classes": ["x", "y"], "task": "multiclass"}),
        failures.POLICY_CLASSES,
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_whatever_computed_it_does_not_leave(name: str) -> None:
    changes, payload, code = LEAKS[name]
    denied = SitePolicy(replace(OPEN, **changes)).release(payload, REFERENCE)
    assert isinstance(denied, Denial)
    assert (denied.code, denied.sentence) == (code, failures.FAILURES[code])


def test_metrics_that_are_not_named_are_taken_out() -> None:
    released = SitePolicy(replace(OPEN, metrics=["loss", "nll/*"])).release(
        Payload("evaluate.reply", {}, {}, {"loss": 1.0, "accuracy": 0.5, "nll/0/1": 2.0, "num_examples": 20.0}), {}
    )
    assert isinstance(released, Payload)
    assert released.metrics == {"loss": 1.0, "nll/0/1": 2.0}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_no_suppressed_count_can_be_had_by_subtraction(counts: list[int], least: int) -> None:
    shown = suppress(counts, least)
    hidden = [n for n, s in zip(counts, shown, strict=True) if n != s]
    assert all(s in (None, n) for n, s in zip(counts, shown, strict=True))
    assert all(not s or s >= least for s in shown)
    assert not hidden or any(n < least for n in hidden)  # nothing is hidden without need
    if len([n for n in counts if n > 0]) > len(hidden):  # counts are left that could have been hidden too
        assert len(hidden) != 1
        assert not hidden or sum(hidden) >= least


def test_a_model_is_taken_within_the_hours_alone() -> None:
    """Taking one is work too: hundreds of megabytes are read, verified and written. Training: test_enforce.py."""
    night = SitePolicy(replace(OPEN, hours=["mon-sun 22:00-06:00"], take_model="keep"))
    asked, codes = Payload("deliver", {"run": "toy"}), {}
    for hour in (3, 12, 23):
        denial = night.check("deliver", toy_spec(), asked, dataset="table", now=datetime(2026, 3, 2, hour))
        codes[hour] = None if denial is None else denial.code
    assert codes == {3: None, 12: failures.POLICY_HOURS, 23: None}
    assert failures.POLICY_HOURS in failures.LATER, "it waits, as training does"


def test_hours_are_read_when_the_site_starts() -> None:
    with pytest.raises(ConfigError, match=r"policy\.hours"):
        SitePolicy(replace(OPEN, hours=["now and then"]))


def _inside(field: Field[Any], value: float) -> bool:
    try:
        check_value(field, value, field.name)
    except ConfigError:
        return False
    return True


def values_of(field: Field[Any]) -> st.SearchStrategy[Any]:
    """Values of a field, or a nested group with one field changed."""
    low, high = field.metadata.get("ge"), field.metadata.get("le")
    whole = st.integers(0 if low is None else int(low), 10**6 if high is None else min(10**6, int(high)))
    numbers = NUMBERS.filter(lambda value: _inside(field, value))
    kind = {"float": numbers, "bool": st.booleans(), "int": whole}
    if field.name == "largest_share":
        return st.floats(0.01, 1.0)
    return VALUES[field.name] if field.name in VALUES else kind.get(str(field.type), TEXTS)


def changed_group(group: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(fields(group)).flatmap(
        lambda f: values_of(f).map(lambda value: replace(group, **{f.name: value}))
    )


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "codecs": st.lists(st.sampled_from(CODECS), unique=True),
    "budget": st.builds(
        BudgetRules,
        run_share=st.none() | st.sampled_from([0.25, 1 / 3, 0.5, 1.0]),
        round_share=st.sampled_from([0.1, 1 / 3, 1.0]),
    ),
    "name": st.sampled_from(["closed", "standard"]),
    "stages": st.lists(st.sampled_from(["guidance", "diffusion", "plain"]), unique=True),
    "hours": st.lists(st.sampled_from(["always", "mon 08:00-09:00", "sat,sun 10:00-02:00"]), unique=True),
    "privacy": st.sampled_from(["required", "none"]),
    "secure_aggregation": st.sampled_from(["required", "allowed", "off"]),
    "min_sites": st.integers(2, 200),
    "take_model": st.sampled_from(["never", "keep"]),
    "min_count": st.integers(0, 10**6),
    "max_rounds": st.integers(0, 10**6),
    "max_steps": st.integers(0, 10**6),
    "limits": st.builds(Limits, image_side=st.integers(32, 4096)),  # each of its fields: tests/exchange/test_limits.py
    "approval": st.sampled_from(["person", "rule"]),
    **dict.fromkeys(("run_share", "round_share"), st.floats(0.01, 1.0)),
    "ranges": st.dictionaries(
        st.sampled_from(["stages.lr", "mean"]), st.lists(st.integers(0, 9), min_size=2, max_size=2)
    ),
}
NUMBERS = st.floats(0, 1e6, allow_subnormal=False)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8),
                 max_size=3, unique=True)  # fmt: skip


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_the_text_is_complete_every_field_changes_it(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(fields(PolicyConfig)))
    own = getattr(OPEN, field.name)
    values = changed_group(own) if is_dataclass(own) else values_of(field)
    first, second = data.draw(values), data.draw(values)
    texts = [explain(replace(OPEN, **{field.name: value})) for value in (first, second)]
    assert (texts[0] == texts[1]) == (first == second)


def test_presets_say_what_they_do() -> None:
    closed, standard = (explain(compose_site(None, [f"policy={n}"]).policy, "x") for n in ("closed", "standard"))
    assert closed.startswith("Policy of the site x\n")
    for sentence in ("No run may use the data.", "No part may leave.", "No metric may leave.", "at no time"):
        assert sentence in closed
    assert "A stage trains here with differential privacy" in closed
    assert "No run may use the data." in standard  # which runs, data and classes: a site says so itself
    assert "at most 1,000" in standard


def test_every_failure_has_one_sentence_of_its_own() -> None:
    codes = {name: value for name, value in vars(failures).items() if name.isupper() and type(value) is int}
    assert set(codes.values()) == set(failures.FAILURES)
    assert len(set(failures.FAILURES.values())) == len(codes)


def test_a_private_site_may_train_what_it_protects_and_its_weight_is_no_count() -> None:
    private = SitePolicy(replace(OPEN, min_count=20, privacy="required"), ["plain"])
    released = private.release(update(metrics={"steps": 2.0}), REFERENCE)
    assert isinstance(released, Payload) and released.metrics == {"steps": 2.0}
    other = private.release(update(header={**HEADER, "stage": "guidance"}), REFERENCE)
    assert isinstance(other, Denial) and other.code == failures.POLICY_COUNT
    counts = {"images": [9, 0, 0], "class_counts": [3, 6]}
    facts = {"run": "r", "arm": "federated", "request": "x", "site": "a", **counts}
    said = private.release(Payload("query.reply", facts), {})
    assert isinstance(said, Payload) and said.header["class_counts"] == [3, 6]  # noised: nothing to suppress


def test_numbers_of_patients_by_state_decide_and_never_leave() -> None:
    counts = {"num_examples": 60.0, "sets/lac/0/0/30": 28.0, "sets/lac/0/1/171": 12.0, "sets/lac/0/2/60": 20.0}
    owners = {"owners/sets/lac/0/0": 25.0, "owners/sets/lac/0/1": 1.0, "owners/sets/lac/0/2": 15.0}
    reply, basis = Payload("conform.reply", {}, {}, counts | owners), Basis(60, 41)
    for least in (0, 1, 10):
        for patients in (0, 5):
            rules = replace(OPEN, metrics=["*"], min_count=least, floors=replace(OPEN.floors, figure_patients=patients))
            released = SitePolicy(rules).release(reply, {}, basis)
            assert isinstance(released, Payload)
            assert not any(name.startswith("owners") for name in released.metrics)
            assert ("sets/lac/0/1/171" in released.metrics) == (patients == 0)
            assert sum(n for name, n in released.metrics.items() if name.startswith("sets/")) == 60


@pytest.mark.parametrize("least", [0, 10])
def test_counts_of_classes_that_few_patients_have_do_not_leave(least: int) -> None:
    rules = replace(OPEN, metrics=["*"], min_count=least, floors=replace(OPEN.floors, figure_patients=5))
    counts = {"images": [90, 0, 0], "class_counts": [40, 12, 38]}
    reply = Payload("query.reply", {"run": "r", "arm": "federated", "request": "x", "site": "a", **counts})
    said = SitePolicy(rules).release(reply, {}, Basis(90, 60, (60, 0, 0), (40, 1, 30)))
    assert isinstance(said, Payload) and said.header["class_counts"] == [40, None, None]  # one more, or it is the rest
    said = SitePolicy(rules).release(reply, {}, Basis(90, 60, (60, 0, 0), (40, 6, 30)))
    assert isinstance(said, Payload) and said.header["class_counts"] == [40, 12, 38]


@pytest.mark.parametrize("least", [0, 10])
def test_counts_of_test_images_of_a_class_that_few_patients_have_do_not_leave(least: int) -> None:
    sides = {f"points/{c}/{kind}/40": n for c, both in enumerate(((50, 40), (78, 12), (52, 38)))
             for kind, n in enumerate(both)}  # fmt: skip
    owners = {f"owners/points/{c}/{kind}": 30.0 for c in range(3) for kind in range(2)} | {"owners/points/1/1": 1.0}
    metrics = {"test/n": 90.0, "test/groups": 60.0, "test/complete": 1.0, "test/auroc_macro": 0.7}
    metrics |= {f"test/positives/{c}": float(n) for c, n in enumerate((40, 12, 38))}
    metrics |= {f"test/class_coverage/lac/{c}/value": 0.9 for c in range(3)}
    rules = replace(OPEN, metrics=["*"], min_count=least, floors=replace(OPEN.floors, figure_patients=5))
    said = SitePolicy(rules).release(Payload("assess.reply", {}, {}, {**metrics, **sides, **owners}), {}, Basis(90, 60))
    assert isinstance(said, Payload) and said.metrics["test/auroc_macro"] == 0.7
    assert [name for name in said.metrics if "positives" in name] == ["test/positives/0"]
    assert {name.split("/")[1] for name in said.metrics if name.startswith("points/")} == {"0"}
    assert [name for name in said.metrics if "class_coverage" in name] == ["test/class_coverage/lac/0/value"]
    assert said.metrics["test/complete"] == 0.0 and not any(name.startswith("owners") for name in said.metrics)
