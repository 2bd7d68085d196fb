"""When a coordinator hands a finished run's model out, and what it says of who has it; the rest: tests/client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.config.server import ServerConfig, ServerRunConfig, ServerSecurityConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import write_json
from server import supervisor
from server.delivered import FILE, delivered, delivery_lines, lacking
from tests.toy import Events

SAID = {"a": {"has": True, "why": ""}, "b": {"has": False, "why": "it is not connected"}}


@pytest.mark.parametrize(
    ("final", "said", "resume", "seconds", "insecure", "times"),
    [
        (False, None, False, 300.0, False, 1),  # a run as ever
        (True, None, False, 300.0, False, 1),  # killed after the model was written, before anybody had it
        (True, SAID, True, 300.0, False, 1),  # resumed: whoever was away is offered it again
        (True, SAID, False, 300.0, False, 0),
        (True, {"a": SAID["a"]}, True, 300.0, False, 0),  # everybody has it
        (True, SAID, True, 0.0, False, 0),
        (True, None, True, 300.0, True, 0),  # nobody is known by a key: nothing is sent
    ],
)
def test_a_finished_run_starts_again_for_its_model_alone_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: bool, said: Any, resume: bool, seconds: float,
    insecure: bool, times: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(supervisor, "signing_key", lambda _: None)
    if final:
        write_json_in(tmp_path / "final" / "model.json", {})
    if said is not None:
        write_json(tmp_path / FILE, {"sites": said})
    one = supervisor._Coordinator.__new__(supervisor._Coordinator)
    one.run_dir = tmp_path
    one.config = ServerConfig(run=ServerRunConfig(deliver_s=seconds), security=ServerSecurityConfig(insecure=insecure))
    calls = []

    def once(*_: Any) -> None:
        calls.append(1)
        write_json_in(tmp_path / "final" / "model.json", {})
        write_json(tmp_path / FILE, {"sites": SAID})  # still not everybody

    monkeypatch.setattr(one, "_train_once", once)
    one._train_until_done(Events([]), resume=resume)  # type: ignore[arg-type]
    assert len(calls) == times


def write_json_in(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json(path, value)


def test_who_has_it_is_said_and_who_has_not_with_the_reason(tmp_path: Path) -> None:
    assert delivery_lines({}) == [] and lacking(tmp_path) is None
    write_json(tmp_path / FILE, {"sites": SAID})
    assert lacking(tmp_path) == ["b"]
    assert delivery_lines(delivered(tmp_path)) == [
        "The model is kept, verified, by a.",
        "b has not got it: it is not connected.",
    ]
    assert delivery_lines({"b": SAID["b"]})[0] == "No site keeps the model."
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ModelFileError):
        delivered(tmp_path)
