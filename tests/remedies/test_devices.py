"""What a site of several devices is told of a run that they cannot share: either way out works."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from client.team import Team, team_of
from fed_diffmic.errors import ConfigError, MachineError
from fed_diffmic.training.stage import StageModule
from tests.privacy.models import private_spec, stage_module
from tests.remedies.places import tries


def _module(encoder_norm: str) -> StageModule:
    spec = private_spec("tiny")
    module: StageModule = stage_module(replace(spec, model=replace(spec.model, encoder_norm=encoder_norm)), "guidance")
    return module


@tries("client/team.py::Team.begin")
def test_one_device_or_another_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="name one in site.device") as refused:
        Team(["cpu", "cpu"], tmp_path).begin(_module("train"))
    assert team_of(["cpu"], tmp_path) is None

    def started(*_: object, **__: object) -> None:
        raise MachineError("it would be started now")

    monkeypatch.setattr("client.team.start_child", started)
    offered = re.search(r"model\.encoder_norm=(\w+) or (\w+)", refused.value.remedy)
    assert offered is not None
    for norm in offered.groups():
        with pytest.raises(MachineError, match="started now"):
            Team(["cpu", "cpu"], tmp_path).begin(_module(norm))
