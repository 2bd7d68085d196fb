"""What crosses at the site's end: weights put together from what travelled and what is kept, and the coded update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import crossing
from client import site as client_site
from client.crossing import RESIDUAL, WeightsMissingError, coded_update, split_state, whole_request
from client.state import KEPT_WEIGHTS, SiteStore
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.codecs import DELTA, build_codec, code, restore
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.payload import HELD, REFERENCE, Payload, Tensors
from fed_diffmic.exchange.screening import update_norm
from fed_diffmic.files import tensors_digest
from fed_diffmic.training.size import whole_parameters
from fed_diffmic.transport.messages import failure_of, from_record
from tests import site_rules, toy
from tests.client.test_app import AMPLE, context, send, task
from tests.inference.tiny import tiny_spec

INT8 = StrategyConfig(codec="int8")
SPEC = toy.toy_spec(strategy=INT8)


def a_set(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((9, 40)).astype(np.float32), "bias": rng.standard_normal(9).astype(np.float32)}


def request(named: Tensors, travels: Tensors, **header: str) -> Payload:
    return Payload("train", {"weights": tensors_digest(named), **header}, travels)


@pytest.fixture
def store(tmp_path: Path) -> SiteStore:
    return SiteStore(tmp_path / "a")


def test_weights_are_what_travelled_what_is_held_and_what_changed(store: SiteStore) -> None:
    before = {**a_set(1), "algorithm/control.w": np.ones((9, 40), np.float32)}
    whole_request(store, SPEC, request(before, before))
    made = code(build_codec(INT8), a_set(2), before)
    coded = request(made.decoded, made.travels, reference=tensors_digest(before))
    got = whole_request(store, SPEC, replace(coded, tensors={**made.travels, "base/frozen": np.zeros(2)}))
    assert tensors_digest({n: v for n, v in got.tensors.items() if n != "base/frozen"}) == tensors_digest(made.decoded)
    assert "base/frozen" in got.tensors
    held = tensors_digest(made.decoded)
    control = {"algorithm/control.w": np.zeros((9, 40), np.float32)}
    both = whole_request(store, SPEC, request({**made.decoded, **control}, control, held=held)).tensors
    assert both.keys() == {"w", "bias", "algorithm/control.w"}
    again = whole_request(store, SPEC, request({**made.decoded, **control}, {}, held=held)).tensors
    assert tensors_digest(again) == tensors_digest(both)


def test_what_is_not_kept_is_asked_for(store: SiteStore) -> None:
    made = code(build_codec(INT8), a_set(2), a_set(1))
    for lacking in (
        request(a_set(1), {}, held=tensors_digest(a_set(1))),
        request(made.decoded, made.travels, reference=tensors_digest(a_set(1))),
        request(made.decoded, made.travels, reference="../../etc/passwd"),
    ):
        with pytest.raises(WeightsMissingError):
            whole_request(store, SPEC, lacking)


def test_tensors_that_do_not_become_what_is_named_are_refused_and_not_kept(store: SiteStore) -> None:
    whole_request(store, SPEC, request(a_set(1), a_set(1)))
    made = code(build_codec(INT8), a_set(2), a_set(1))
    for wrong in (
        request(a_set(3), a_set(2)),
        request(a_set(2), made.travels, reference=tensors_digest(a_set(1))),  # named before coding
        request(a_set(2), {}, held=tensors_digest(a_set(1))),
    ):
        with pytest.raises(SiteError) as caught:
            whole_request(store, SPEC, wrong)
        assert caught.value.code == failures.BAD_REQUEST
    assert store.weights(tensors_digest(a_set(2))) is None


def test_no_more_is_kept_than_the_network_could_be(store: SiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest is of whatever was named by it: before anything says that it is the model's, its size is bounded."""
    monkeypatch.setattr(crossing, "SLACK", 2**16)
    spec = tiny_spec()
    most = 4 * 4 * whole_parameters(spec) + 2**16
    fits = {"junk": np.zeros(most // 4, np.float32)}
    junk = {"junk": np.zeros(most // 4 + 1, np.float32)}
    for asked in (request(junk, junk), request(a_set(1), junk)):
        with pytest.raises(SiteError) as caught:
            whole_request(store, spec, asked)
        assert caught.value.code == failures.BAD_REQUEST
    assert not list(store.folder.glob("weights/*")), "nothing was written"
    assert whole_request(store, spec, request(fits, fits)).tensors.keys() == {"junk"}
    held, more = tensors_digest(fits), {"more": np.zeros(9, np.float32)}
    with pytest.raises(SiteError) as caught:  # a set cannot grow by what is held either
        whole_request(store, spec, request({**fits, **more}, more, held=held))
    assert caught.value.code == failures.BAD_REQUEST
    assert len(list(store.folder.glob("weights/*"))) == 1


def test_the_two_sets_used_last_are_kept(store: SiteStore) -> None:
    names = [tensors_digest(a_set(seed)) for seed in range(4)]
    for seed in range(2):
        store.keep_weights(names[seed], a_set(seed))
    assert store.weights(names[0]) is not None  # used: the other one goes
    store.keep_weights(names[2], a_set(2))
    kept = [seed for seed in range(3) if store.weights(names[seed]) is not None]
    assert kept == [0, 2] and len(kept) == KEPT_WEIGHTS
    (store.folder / "weights" / f"{names[2]}.safetensors").write_bytes(b"torn")
    assert store.weights(names[2]) is None


def test_what_is_left_out_is_state_and_comes_the_next_time() -> None:
    sent = Payload("train", {}, a_set(1))
    travels, state = coded_update(SPEC, a_set(2), sent, {})
    assert state.keys() == {RESIDUAL + "w"}
    kept, left_out = split_state({**state, "exp_avg/w": np.zeros(1)})
    assert kept.keys() == {"exp_avg/w"} and left_out.keys() == {"w"}
    first = restore(build_codec(INT8), travels, sent.tensors)["w"]
    np.testing.assert_allclose(first + left_out["w"], a_set(2)["w"], atol=1e-6)
    again, _ = coded_update(SPEC, {"w": first}, sent, left_out)  # the update that crossed, with what it lacked
    off = np.abs(restore(build_codec(INT8), again, sent.tensors)["w"] - a_set(2)["w"])
    assert off.max() <= np.abs(a_set(2)["w"] - a_set(1)["w"]).max() / 254 * 1.01


def test_an_update_that_cannot_be_coded_diverged() -> None:
    with pytest.raises(SiteError) as caught:
        coded_update(SPEC, {"w": np.full((9, 40), np.inf, np.float32)}, Payload("train", {}, a_set(1)), {})
    assert caught.value.code == failures.DIVERGED


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the site ``a`` under rules that name every codec."""
    toy.install_toy_networks(monkeypatch.setattr)
    source = toy.ToySource({"a": toy.toy_site("a", 1)})

    def under(**changes: Any) -> None:
        rules = site_rules.rules(tmp_path / "log", "a", None, codecs=["float32", "int8"], **changes)
        client_site.register_source(source, rules=rules)

    yield under
    client_site.register_source(source)


def test_policy_and_log_see_what_the_update_is_decoded_to(tmp_path: Path, site: Any) -> None:
    site()
    asked = task("train", SPEC)
    reply = from_record(send(asked, "train", context(tmp_path)).content, AMPLE)
    assert DELTA + "head.weight" in reply.tensors
    sent = {name: value for name, value in asked.tensors.items() if not name.startswith("base/")}
    seen = restore(build_codec(INT8), reply.tensors, sent)
    facts = read_lines(tmp_path / "log" / "a.audit.jsonl")[-1].facts
    assert facts["norm"] == pytest.approx(update_norm(seen, sent), rel=1e-12)
    assert ["head.weight", "float32", [3, 8]] in facts["tensors"]
    assert facts["bytes"] == reply.tensor_bytes
    norm = facts["norm"]
    site(max_update_norm=norm * 0.999)
    failed = failure_of(send(asked, "train", context(tmp_path / "other")))
    assert failed == (failures.POLICY_NORM, failures.FAILURES[failures.POLICY_NORM])


def test_names_of_tensors_that_the_site_keeps_are_judged_too(tmp_path: Path, site: Any) -> None:
    """A request that names weights by digest brings no tensor to look at: what they become is looked at."""
    site()
    where = context(tmp_path)
    first = task("train", SPEC)
    assert failure_of(send(first, "train", where)) is None
    site(tensors=["head.*"])
    digest_only = replace(task("train", SPEC, round=2), tensors={})
    digest_only = replace(digest_only, header={**digest_only.header, HELD: digest_only.header["weights"]})
    failed = failure_of(send(digest_only, "train", where))
    assert failed == (failures.POLICY_TENSORS, failures.FAILURES[failures.POLICY_TENSORS])


def test_how_weights_came_does_not_change_a_requests_name(tmp_path: Path, site: Any) -> None:
    """Sent whole, and sent again by digest: it is the same request, and the kept reply answers it."""
    site()
    where, first = context(tmp_path), task("train", SPEC)
    reply = from_record(send(first, "train", where).content, AMPLE)
    header = {**first.header, HELD: first.header["weights"], REFERENCE: ""}
    again = from_record(send(replace(first, header=header, tensors={}), "train", where).content, AMPLE)
    assert again.metrics == reply.metrics and tensors_digest(again.tensors) == tensors_digest(reply.tensors)
