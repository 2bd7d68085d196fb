"""The run's reply key: made once, the owner's alone, gone when the run is; and whose seals a reply may carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from fed_diffmic.errors import CredentialError
from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.envelope import reply_key_text
from fed_diffmic.exchange.payload import Limits, Payload, encode
from fed_diffmic.exchange.seal import SealError, check_request, seal_reply
from server.seals import REPLY_KEY, Seals, forget_reply_key, run_reply_key
from tests.seals import COORDINATOR, SITE_KEYS, key_of

NAMED = {"request": "ab" * 32, "site": "a"}


def test_a_resumed_run_opens_what_was_sealed_before(tmp_path: Path) -> None:
    first = Seals(COORDINATOR, run_reply_key(tmp_path), key_of)
    asked = check_request(
        first.seal(encode(Payload("train")), to="a", head=Head(1, "0" * 64)), COORDINATOR.public_key(), "a"
    )
    reply = encode(Payload("train.reply", {"n": 1}))
    sealed = seal_reply(reply, SITE_KEYS["a"], head=Head(), reply_key=asked.reply_key, **NAMED)
    resumed = Seals(COORDINATOR, run_reply_key(tmp_path), key_of)
    found, _ = resumed.open(sealed, limits=Limits(0), **NAMED)
    assert found == reply
    forget_reply_key(tmp_path)
    later = Seals(COORDINATOR, run_reply_key(tmp_path), key_of)
    with pytest.raises(SealError):
        later.open(sealed, limits=Limits(0), **NAMED)


def test_a_site_that_the_roster_does_not_name_is_opened_with_no_key(tmp_path: Path) -> None:
    key = run_reply_key(tmp_path)
    sealed = seal_reply(
        encode(Payload("x")), SITE_KEYS["a"], head=Head(), reply_key=reply_key_text(key), **NAMED
    )  # fmt: skip
    for known in (lambda _: None, lambda _: key_of("b")):
        with pytest.raises(SealError):
            Seals(COORDINATOR, key, known).open(sealed, limits=Limits(0), **NAMED)


def test_the_key_is_the_owners_alone_and_is_not_made_anew(tmp_path: Path) -> None:
    before, path = run_reply_key(tmp_path), tmp_path / REPLY_KEY
    assert path.stat().st_mode & 0o777 == 0o600
    assert reply_key_text(run_reply_key(tmp_path)) == reply_key_text(before)
    path.chmod(0o644)
    with pytest.raises(CredentialError, match="may be read by others"):
        run_reply_key(tmp_path)


@pytest.mark.parametrize("data", ["x", "AAAA\n", "é"])
def test_a_damaged_key_is_said_with_what_to_do(tmp_path: Path, data: str) -> None:
    (tmp_path / REPLY_KEY).write_text(data)
    (tmp_path / REPLY_KEY).chmod(0o600)
    with pytest.raises(CredentialError, match="damaged") as caught:
        run_reply_key(tmp_path)
    assert "resume" in caught.value.remedy


def test_forgetting_twice_is_no_harm(tmp_path: Path) -> None:
    run_reply_key(tmp_path)
    forget_reply_key(tmp_path)
    forget_reply_key(tmp_path)
    assert not list(tmp_path.iterdir())
