"""What the coordinator's command says when it is interrupted, and that it works when it is typed."""

import shlex
from pathlib import Path

import pytest

from fed_diffmic.config.compose import compose_server, to_yaml
from fed_diffmic.errors import ConfigError
from server import cli, start, supervisor

GIVEN = ["model=tiny", "security.insecure=true", "consortium.sites=[a]"]


@pytest.fixture
def coordinated(tmp_path, monkeypatch):
    """What the coordinator was called with; it is interrupted once it has written ``config.yaml``, where it is to."""
    calls, writes = [], []

    def coordinate(config, *, resume):
        calls.append((config, resume))
        if writes:
            Path(config.run.dir).mkdir(parents=True, exist_ok=True)
            Path(config.run.dir, "config.yaml").write_text(to_yaml(config))
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervisor, "coordinate", coordinate)
    monkeypatch.setattr("fed_diffmic.reporting.logs.set_up_logs", lambda: None)
    return calls, writes


def said(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(list(arguments)) == 130
    return capsys.readouterr().err


def test_an_interrupted_run_goes_on_as_it_is_said(coordinated, capsys, tmp_path):
    calls, writes = coordinated
    writes.append(True)
    hint = said(capsys, *GIVEN, "run.dir=my runs/it's é", "seed=5").partition("continue with: ")[2]
    program, *again = shlex.split(hint)
    assert (program, again) == ("flower-server", ["--resume", str(tmp_path / "my runs" / "it's é")])
    said(capsys, *again)
    assert [(config.seed, resume) for config, resume in calls] == [(5, False), (5, True)]


def test_one_that_was_not_begun_is_begun_by_the_same_command(coordinated, capsys):
    calls, _ = coordinated
    for _ in range(2):
        hint = said(capsys, *GIVEN, "run.dir=run")
        assert "nothing was begun yet: the same command starts it" in hint and "--resume" not in hint
    assert [resume for _, resume in calls] == [False, False]


def test_a_folder_with_a_run_is_named_as_a_shell_takes_it(tmp_path):
    folder = tmp_path / "my runs" / "a b"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").touch()
    config = compose_server(None, [*GIVEN, f"run.dir={folder}"])
    with pytest.raises(ConfigError) as caught:
        start.check_start(config, resume=False)
    command = caught.value.remedy.split("`")[1]
    assert shlex.split(command) == ["flower-server", "--resume", str(folder)]
