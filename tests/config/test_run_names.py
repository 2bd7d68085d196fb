"""Names of runs that come from elsewhere: a control character or a part of a path is refused wherever one enters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.requests import check_request
from fed_diffmic.config.folders import check_run_folder
from fed_diffmic.config.run_names import LONGEST, is_run_name
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.console import harmless
from fed_diffmic.errors import ConfigError, ModelFileError
from fed_diffmic.exchange.failures import BAD_REQUEST, SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.study import make_study, parse_study
from fed_diffmic.release.final import FinalModel, load_final, write_final
from tests.toy import toy_spec

HOSTILE = ["", ".", "..", "a/b", "..\\x", "a\nb", "a\x1b[2Jb", "a\x9bb", "a\u202eb", "a\u200bb", "a\0b"]
HOSTILE += ["x" * (LONGEST + 1)]


@pytest.mark.parametrize("name", ["pilot", "2026-03 second", "Universitätsklinikum_1", "試験", "x" * LONGEST])
def test_a_printable_name_of_any_script_is_taken(name: str) -> None:
    assert is_run_name(name)
    assert RunSpec.from_json(replace(toy_spec(), run_id=name).to_json()).run_id == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_wherever_it_enters(name: str, tmp_path: Path) -> None:
    spec = replace(toy_spec(), run_id=name)
    with pytest.raises(ConfigError, match="run_id") as refused:  # the request of a task
        RunSpec.from_json(spec.to_json())
    assert str(refused.value).isprintable()
    with pytest.raises(SiteError) as wrong:  # the question for labels, which has no specification
        check_request(Payload("labels", {"run": name}), "labels")
    assert wrong.value.code == BAD_REQUEST
    study = make_study(spec, stages=["guidance"], test=False, sites=None, initial={}, code={})
    with pytest.raises(ConfigError):  # a study on its way to approval
        parse_study(study.text)
    (tmp_path / "final").mkdir()
    write_final(tmp_path, FinalModel(spec, {}, {}, [], 0, {}))
    with pytest.raises(ModelFileError, match="names a run") as copied:  # a model that was copied by hand
        load_final(tmp_path)
    assert str(copied.value).isprintable()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb"])
def test_a_coordinator_is_told_before_any_site_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="printable"):
        check_run_folder(tmp_path / name)
    check_run_folder(tmp_path / "pilot")


@given(st.text())
def test_an_error_moves_no_cursor(text: str) -> None:
    shown = harmless(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert not text.isprintable() or shown == text
