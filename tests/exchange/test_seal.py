"""Seals: what holds comes back bit for bit; whatever else comes is refused with a fixed sentence."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_diffmic.exchange import envelope, seal
from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.envelope import new_reply_key, parse_reply_key, reply_key_text
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, Wire, WireArray, decode, encode, text_digest
from fed_diffmic.exchange.seal import FOREIGN, FORGED, UNSEALED, SealError

COORDINATOR, SITE, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
REPLY_KEY = new_reply_key()
HEAD = Head(7, "ab" * 32)
AMPLE = Limits(1 << 20)
NAMED = {"request": "cd" * 32, "site": "Klinik Süd"}
REQUEST = Payload("train", {"run": "r", "site": "Klinik Süd"}, {"w": np.arange(5, dtype=np.float32)})
REPLY = Payload(
    "train.reply",
    {"num_examples": 12, "note": 'a "quoted"\nline'},
    {
        "w": np.linspace(0, 1, 7, dtype=np.float32),
        "count": np.array(3, np.int64),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float16),
    },
    {"loss": 0.25},
)


def sealed_request(payload: Payload = REQUEST, signer: Any = COORDINATOR, to: str = "Klinik Süd") -> Wire:
    return seal.seal_request(encode(payload), signer, to=to, head=HEAD, reply_key=reply_key_text(REPLY_KEY))


def sealed_reply(signer: Any = SITE, to: Any = REPLY_KEY, **changed: str) -> Wire:
    return seal.seal_reply(encode(REPLY), signer, head=HEAD, reply_key=reply_key_text(to), **(NAMED | changed))


def opened(wire: Wire, limits: Limits = AMPLE, key: Any = REPLY_KEY, **changed: str) -> tuple[Wire, seal.ReplySeal]:
    return seal.open_reply(wire, key, SITE.public_key(), limits=limits, **(NAMED | changed))


def reason(call: Callable[[], Any]) -> str:
    with pytest.raises(SealError) as caught:
        call()
    return caught.value.reason


def copied(wire: Wire, **changed: Any) -> Wire:
    return replace(wire, arrays=dict(changed.pop("arrays", wire.arrays)), **changed)


def test_a_sealed_request_says_who_asks_whom_for_what() -> None:
    wire = sealed_request()
    found = seal.check_request(wire, COORDINATOR.public_key(), "Klinik Süd")
    assert (found.digest, found.to, found.head) == (wire.digest, "Klinik Süd", HEAD)
    assert found.reply_key == reply_key_text(REPLY_KEY)
    assert decode(replace(wire, seal=""), AMPLE).header == REQUEST.header
    assert replace(wire, seal="") == encode(REQUEST)  # the request itself is as it was: its name stays the same
    facts = found.signed.facts()
    assert seal.read_request_seal(facts["seal"], facts["seal_signature"], COORDINATOR.public_key()) == found
    assert json.loads(facts["seal"]) == {
        "v": 1, "digest": wire.digest, "to": "Klinik Süd", "head": {"length": 7, "digest": "ab" * 32},
        "reply_key": reply_key_text(REPLY_KEY),
    }  # fmt: skip


def test_a_request_that_is_not_the_coordinators_own_is_told_apart() -> None:
    def check(wire: Wire, site: str = "Klinik Süd") -> Callable[[], Any]:
        return lambda: seal.check_request(wire, COORDINATOR.public_key(), site)

    good, another = sealed_request(), encode(replace(REQUEST, header={"run": "another"}))
    assert reason(check(encode(REQUEST))) == UNSEALED
    for text in ("{}", "[]", "x", '{"seal":"","signature":1}', good.seal + " ", "[" * 5000, json.dumps("9" * 5000)):
        assert reason(check(replace(good, seal=text))) == UNSEALED
    unread: Any = 7
    assert reason(check(replace(good, seal=unread))) == UNSEALED
    assert reason(check(sealed_request(signer=OTHER))) == FORGED
    assert reason(check(replace(another, seal=good.seal))) == FORGED
    assert reason(check(replace(good, body=another.body))) == FORGED
    assert reason(check(replace(good, digest=another.digest))) == FORGED
    assert reason(check(replace(good, body=unread))) == FORGED
    assert reason(check(sealed_request(to="Klinik Sud"))) == FOREIGN
    assert reason(check(good, "aurum")) == FOREIGN


def test_no_signature_of_ours_stands_for_a_seal() -> None:
    """A line of the audit log, a reply's seal and a request's are signed each under its own domain."""
    text = json.loads(sealed_request().seal)["seal"]
    for domain in (b"", b"fed_diffmic audit line\0", b"fed_diffmic reply seal\0"):
        signature = base64.b64encode(seal.sign(COORDINATOR, domain + text.encode())).decode()
        assert reason(lambda s=signature: seal.read_request_seal(text, s, COORDINATOR.public_key())) == FORGED
    key = REPLY_KEY.public_key()
    value = {"v": 1, "digest": "0" * 64, "to": "a", "head": {"length": 1, "digest": "0" * 64}, "reply_key": ""}
    for changed in ({"v": 2}, {"v": True}, {"digest": "x"}, {"head": {}}, {"head": {"length": -1, "digest": "0" * 64}},
                    {"head": {"length": 1.0, "digest": "0" * 64}}, {"to": ""}, {"to": 3}, {"more": 1}):  # fmt: skip
        signed = seal._signed({**value, **changed}, COORDINATOR, seal._REQUEST)
        call = lambda s=signed: seal.read_request_seal(s.text, s.signature, COORDINATOR.public_key())  # noqa: E731
        assert reason(call) == FORGED
    assert parse_reply_key(reply_key_text(REPLY_KEY)).public_bytes_raw() == key.public_bytes_raw()


@pytest.mark.parametrize("piece", [4, 5, 1 << 20])
def test_a_reply_comes_back_as_it_was_and_nothing_of_it_is_seen_outside(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envelope, "PIECE", piece)
    plain, wire = encode(REPLY), sealed_reply()
    outside = json.dumps([wire.body, wire.digest, wire.seal, *wire.arrays])
    raw = base64.b64decode(wire.body) + b"".join(a.data for a in wire.arrays.values())
    for secret in ("train.reply", "num_examples", "empty", "float32", plain.digest, "Klinik"):
        assert secret not in outside and secret.encode() not in raw
    assert wire.digest == text_digest(wire.body)
    assert {(a.dtype, len(a.shape)) for a in wire.arrays.values()} == {("uint8", 1)}
    found, proof = opened(wire)
    assert found == plain
    assert not wire.arrays  # taken one by one
    assert (proof.digest, proof.request, proof.site, proof.head) == (plain.digest, *NAMED.values(), HEAD)
    facts = proof.signed.facts()
    assert seal.read_reply_seal(facts["seal"], facts["seal_signature"], SITE.public_key()) == proof
    got = decode(found, AMPLE)
    for name, value in REPLY.tensors.items():
        assert got.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(got.tensors[name], value)


def test_sealing_takes_the_arrays_out_of_what_is_sealed() -> None:
    wire = encode(REPLY)
    seal.seal_reply(wire, SITE, head=HEAD, reply_key=reply_key_text(REPLY_KEY), **NAMED)
    assert not wire.arrays


def test_the_same_reply_is_encrypted_under_another_key_each_time() -> None:
    first, second = sealed_reply(), sealed_reply()
    assert first.body != second.body and first.seal != second.seal
    assert first.arrays["1"].data != second.arrays["1"].data


def test_a_reply_of_another_site_key_or_request_is_refused() -> None:
    assert reason(lambda: opened(sealed_reply(signer=OTHER))) == FORGED
    assert reason(lambda: opened(sealed_reply(to=new_reply_key()))) == UNSEALED
    assert reason(lambda: opened(encode(REPLY))) == UNSEALED
    # encrypted as the answer to another request, or as another site's: it does not even decrypt
    assert reason(lambda: opened(sealed_reply(request="ef" * 32))) == UNSEALED
    assert reason(lambda: opened(sealed_reply(site="birch"))) == UNSEALED


def test_a_seal_is_bound_to_what_it_came_with() -> None:
    """Somebody who can encrypt to the run's key, as anybody can, sends an honest site's seal with something else."""
    for signed_for, body in ((NAMED, "another"), (NAMED | {"request": "ef" * 32}, ""), (NAMED | {"site": "b"}, "")):
        wire = encode(REPLY)
        value = {"v": 1, "digest": wire.digest, "request": signed_for["request"], "from": signed_for["site"],
                 "head": {"length": 7, "digest": "ab" * 32}}  # fmt: skip
        signed = seal._signed(value, SITE, seal._REPLY)
        context = seal._context(NAMED["request"], NAMED["site"])
        stolen = replace(wire, body=body or wire.body)
        made = envelope.encrypt(stolen, [signed.text, signed.signature], REPLY_KEY.public_key(), context)
        assert reason(lambda m=made: opened(m)) == (FORGED if body else FOREIGN)


def arrays_of(wire: Wire) -> list[dict[str, WireArray]]:
    a = dict(wire.arrays)
    one, two, data = a["1"], a["2"], a["1"].data
    flipped = replace(one, data=data[:-1] + bytes([data[-1] ^ 1]))
    return [
        {**a, "1": flipped},
        {**a, "1": two, "2": one},
        {**a, "1": replace(one, data=data[:-1])},
        {**a, "1": replace(one, data=data + b"x")},
        {k: v for k, v in a.items() if k != "4"},
        {**a, "5": one},
        {},
        {k: a[k] for k in reversed(a)},
    ]


def test_changed_exchanged_or_missing_tensors_are_refused() -> None:
    for arrays in arrays_of(sealed_reply()):
        with pytest.raises(PayloadError):
            opened(copied(sealed_reply(), arrays=arrays))
    wire, other = sealed_reply(), sealed_reply()
    with pytest.raises(PayloadError, match="changed"):  # of the same site, for the same request, under its other key
        opened(copied(wire, arrays={**wire.arrays, "1": other.arrays["1"]}))


def test_what_is_larger_than_expected_is_refused_before_it_is_decrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits in (Limits(37), Limits(1 << 20, tensors=3)):
        with pytest.raises(PayloadError, match="than expected"):
            opened(sealed_reply(), limits)
    assert decode(opened(sealed_reply(), Limits(38, tensors=4))[0], Limits(38, 4)).metrics == {"loss": 0.25}


TABLES = ("", "{}", "[", "[[]]", '[["w","float32",[7],28,1]]', '[[1,"float32",[7],28]]', '[["w","float32",7,28]]',
          '[["w","float32",[7],-1]]', '[["w","float32",[7],28.0]]', '[["w","float32",[7],true]]', "[" * 9000,
          '[["w","float32",[7],28],["w","float32",[7],28]]', '[["w","float32",[7],1' + "0" * 30 + "]]")  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_none_is_refused(table: str) -> None:
    text = envelope.Opened([], table, "{}", bytes(32))
    with pytest.raises(PayloadError):
        envelope.decrypt_arrays(copied(sealed_reply()), text, AMPLE)


def test_a_shape_that_is_none_is_left_to_the_decoder() -> None:
    rows = [["w", "float32", [-7, "x"], 28]]
    cipher = envelope.AESGCM(bytes(32))
    data = cipher.encrypt(envelope._nonce(1), bytes(28), envelope._associated(1, text_digest("{}"), *rows[0][:3]))
    found = envelope.decrypt_arrays(
        Wire("", "", {"1": WireArray("uint8", (44,), data)}),
        envelope.Opened([], json.dumps(rows), "{}", bytes(32)),
        AMPLE,
    )
    with pytest.raises(PayloadError, match="shape"):
        decode(replace(encode(Payload("k")), arrays=found), AMPLE)


SEALED = sealed_reply()


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_reply_whatever_raises_anything_else(data: Any) -> None:
    wire = copied(SEALED)  # one and the same: what is drawn must not hang on random bytes
    arrays = dict(wire.arrays)
    junk = st.one_of(st.none(), st.integers(), st.text(max_size=40), st.binary(max_size=40), st.booleans())
    for field in sorted(data.draw(st.sets(st.sampled_from(["body", "digest", "seal", "arrays"]), min_size=1))):
        if field == "arrays":
            name = data.draw(st.sampled_from(sorted(arrays)))
            arrays[name] = replace(arrays[name], data=data.draw(st.one_of(st.binary(max_size=60), junk)))
        elif data.draw(st.booleans()):
            wire = replace(wire, **{field: data.draw(junk)})
        else:
            text = getattr(wire, field)
            if isinstance(text, str) and text:
                place = data.draw(st.integers(0, len(text) - 1))
                wire = replace(wire, **{field: text[:place] + data.draw(st.text(max_size=2)) + text[place + 1 :]})
    try:
        found, _ = opened(copied(wire, arrays=arrays))
    except PayloadError:
        return
    assert found == encode(REPLY)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=200), st.recursive(st.none() | st.integers() | st.text(max_size=5),
       lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(["seal", "signature", "v"]), c),
       max_leaves=6).map(lambda v: json.dumps(v, sort_keys=True, separators=(",", ":")))))  # fmt: skip
def test_no_request_whatever_raises_anything_else(text: str) -> None:
    assert reason(
        lambda: seal.check_request(replace(sealed_request(), seal=text), COORDINATOR.public_key(), "a")
    ) in {UNSEALED, FORGED}  # fmt: skip


def test_a_key_for_replies_is_read_strictly() -> None:
    for text in ("", "AAAA", "é", reply_key_text(REPLY_KEY) + "\n", base64.b64encode(bytes(31)).decode()):
        with pytest.raises(PayloadError):
            parse_reply_key(text)
