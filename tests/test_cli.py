"""The commands, with the rooms they start replaced; what the rooms do is tested in their own tests."""

import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fed_diffmic import __version__, cli
from fed_diffmic.config.compose import compose, to_yaml
from fed_diffmic.data.cache_files import hold
from server import cli as server_cli


@pytest.fixture
def rooms(monkeypatch):
    """Stand-ins for the rooms; what they were called with."""
    calls = []

    def room(name, **functions):
        module = types.ModuleType(name)
        for function, result in functions.items():
            setattr(module, function, recorder(function, result))
        monkeypatch.setitem(sys.modules, name, module)

    def recorder(name, result):
        def call(*args, **options):
            calls.append((name, args, options))
            return result

        return call

    room("simulations.run", simulate={})
    room("simulations.sites", with_phantoms=compose(None, ["seed=7"]))
    room("fed_diffmic.data.inspect", inspect=3)
    room("fed_diffmic.models.checks", check_model_config=None)
    room("simulations.partitioners", partition={})
    room("fed_diffmic.data.phantoms", write_phantoms=None)
    return calls


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *arguments, code=2):
    capsys.readouterr()
    assert cli.main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out == ""
    return err


def test_help_answers_without_loading_anything_heavy():
    program = (
        "import sys; from fed_diffmic import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'flwr', 'hydra', 'omegaconf', 'pandas', 'numpy', 'ray', 'timm', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert "usage: fed-diffmic" in done.stdout
    assert "not a medical device" in done.stdout
    assert "HEAVY []" in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.strip() == f"fed-diffmic {__version__}"


def test_nothing_given_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "simulate" in capsys.readouterr().out
    assert cli.main(["data"]) == 0
    assert "inspect" in capsys.readouterr().out


# --- simulate


def test_simulate_starts_the_embedded_default_in_a_folder_of_its_own(rooms, tmp_path):
    assert cli.main(["simulate"]) == 0
    [(name, (config,), options)] = rooms
    assert (name, options) == ("simulate", {"resume": False})
    assert Path(config.run.dir).parent == tmp_path / "runs"
    assert config.dataset.name == "phantoms"


def test_simulate_looks_first_at_a_network_that_is_no_preset(rooms):
    assert cli.main(["simulate", "model.regions=2"]) == 0
    [(check, (model,), _), (name, (config,), _)] = rooms
    assert (check, model, name) == ("check_model_config", config.model, "simulate")


def test_simulate_refuses_weights_that_are_not_there_for_a_preset_too(rooms, capsys):
    assert "model.weights" in fails(capsys, "simulate", "model.weights=none.pt")
    assert not rooms


def test_settings_may_stand_anywhere(rooms, tmp_path):
    (tmp_path / "c.yaml").write_text("partition: dirichlet\nseed: 1\n")
    assert cli.main(["simulate", "seed=2", "--config", "c.yaml", "partition.alpha=0.3", "run.dir=a=b"]) == 0
    config = rooms[-1][1][0]
    assert (config.seed, config.partition.name, config.partition.alpha) == (2, "dirichlet", 0.3)
    assert config.run.dir == str(tmp_path / "a=b")


def test_show_config_prints_what_starts_the_same_run_again(rooms, capsys, tmp_path):
    assert cli.main(["simulate", "--show-config", "model=compact", "run.dir=r"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    (tmp_path / "saved.yaml").write_text(shown.out)
    assert cli.main(["simulate", "--config", "saved.yaml"]) == 0
    assert rooms[-1][1][0] == compose(None, ["model=compact", "run.dir=r"])


def test_show_config_answers_for_another_machine_and_says_so(rooms, capsys):
    assert cli.main(["simulate", "--show-config", "dataset=table", "dataset.root=/elsewhere"]) == 0
    shown = capsys.readouterr()
    assert "root: /elsewhere" in shown.out
    assert "would not start here" in shown.err
    assert rooms == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["partition.alfa=0.3"], ["partition.alfa=0.3", "partition.alpha"]),
        (["seed=x"], ["seed=x", "a whole number"]),
        (["stages.guidance.rounds=-1"], ["stages.guidance.rounds=-1", ">= 0"]),
        (["dataset=table", "dataset.root=/nope"], ["dataset.root=/nope", "an existing folder"]),
        (["+seed=1"], ["neither be added"]),
        (["~model"], ["neither be added"]),
        (["--seed", "3"], ["no option '--seed'", "do: Settings have no dashes"]),
        (["--show-confg"], ["no option '--show-confg'", "do: Did you mean --show-config? Settings have no dashes"]),
        (["--seed=3"], ["`seed=value`"]),
        (["--conf", "x"], ["no option '--conf'"]),
        (["--config"], ["expected one argument"]),
        (["--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["--resume"], ["which run"]),
        (["--resume", "run.dir=none"], ["there is no run"]),
        (["model.weights=none.bin"], ["model.weights", "an existing file"]),
    ],
)
def test_mistakes_end_with_exit_code_2_before_any_work(rooms, capsys, arguments, words):
    err = fails(capsys, "simulate", *arguments)
    assert all(word in err for word in words), err
    assert "hydra" not in err.lower()
    assert rooms == []


def test_a_folder_with_a_run_is_refused(rooms, capsys, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "events.jsonl").touch()
    assert "--resume" in fails(capsys, "simulate", "run.dir=r")
    assert rooms == []


def test_resume_needs_nothing_but_the_folder(rooms, capsys, tmp_path):
    started = compose(None, ["model=compact", "seed=5", "run.dir=r"])
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text(to_yaml(started))
    assert cli.main(["simulate", "--resume", "run.dir=r"]) == 0
    assert rooms.pop() == ("simulate", (started,), {"resume": True})
    assert cli.main(["simulate", "model=compact", "seed=5", "run.dir=r", "--resume"]) == 0
    assert rooms.pop() == ("simulate", (started,), {"resume": True})
    rooms.clear()
    err = fails(capsys, "simulate", "--resume", "run.dir=r", "seed=6")
    assert "seed=6 is not allowed; allowed: 5, with which the run was started" in err
    assert rooms == []


def interrupted(begun):
    """A stand-in for the simulation's module that is interrupted; ``begun``: once it wrote its configuration."""

    def simulate(config, *, resume):
        if begun:
            Path(config.run.dir).mkdir(parents=True)
            Path(config.run.dir, "config.yaml").write_text(to_yaml(config))
        raise KeyboardInterrupt

    module = types.ModuleType("simulations.run")
    module.simulate = simulate
    return module


@pytest.mark.parametrize("folder", ["r", "my runs/it's é $HOME"])
def test_ctrl_c_says_how_to_go_on_and_that_goes_on(rooms, monkeypatch, capsys, tmp_path, folder):
    usual = sys.modules["simulations.run"]
    monkeypatch.setitem(sys.modules, "simulations.run", interrupted(begun=True))
    said = fails(capsys, "simulate", f"run.dir={folder}", "seed=5", code=130)
    program, *again = shlex.split(said.partition("resume with: ")[2])
    assert (program, again[-1]) == ("fed-diffmic", f"run.dir={tmp_path / folder}")
    monkeypatch.setitem(sys.modules, "simulations.run", usual)
    assert cli.main(again) == 0
    name, (config,), options = rooms.pop()
    assert (name, config.seed, options) == ("simulate", 5, {"resume": True})


class Interrupting(types.ModuleType):
    """A module that is interrupted while it is loaded."""

    def __getattr__(self, name):
        raise KeyboardInterrupt


@pytest.mark.parametrize("module", [interrupted(begun=False), Interrupting("simulations.run")])
def test_ctrl_c_before_anything_was_begun_says_so(rooms, monkeypatch, capsys, module):
    usual = sys.modules["simulations.run"]
    monkeypatch.setitem(sys.modules, "simulations.run", module)
    said = fails(capsys, "simulate", "run.dir=r", "seed=5", code=130)
    assert "nothing was begun yet: the same command starts it" in said and "--resume" not in said
    monkeypatch.setitem(sys.modules, "simulations.run", usual)
    assert cli.main(["simulate", "run.dir=r", "seed=5"]) == 0


# --- the other commands


def test_data_inspect(rooms, capsys):
    assert cli.main(["data", "inspect", "--out", "look", "seed=7"]) == 3
    (name, (config, out), options) = rooms.pop()
    assert (name, config.seed, out, options) == ("inspect", 7, Path("look"), {"partition": None})
    assert cli.main(["data", "inspect", "partition=iid"]) == 3
    (name, (config, out), options) = rooms.pop()
    assert out == Path("inspect")
    assert options["partition"]("manifest") == {}
    assert rooms.pop() == ("partition", ("manifest", compose(None, []).partition, 0), {})
    rooms.clear()
    assert "dataset.root" in fails(capsys, "data", "inspect", "dataset=table")
    assert rooms == []


def test_data_purge_removes_decoded_images_only(capsys, tmp_path):
    cache = tmp_path / "cache" / "images-cache"
    cache.mkdir(parents=True)
    (cache / "array.bin").write_bytes(b"x" * 2_000_000)
    (tmp_path / "cache" / "mine.txt").touch()
    assert cli.main(["data", "purge", "dataset.cache_dir=cache"]) == 0
    assert "removed 2.0 MB" in capsys.readouterr().out
    assert not cache.exists()
    assert (tmp_path / "cache" / "mine.txt").exists()


def test_data_purge_of_the_accounts_cache_asks_first(capsys, tmp_path, monkeypatch):
    cache = tmp_path / "home" / "images-cache"
    cache.mkdir(parents=True)
    for name, size in (("a", 2_000_000), ("b", 1_000_000)):
        (cache / f"{name}.u8").write_bytes(b"x" * size)
    monkeypatch.setattr("fed_diffmic.data.open.DEFAULT_CACHE", tmp_path / "home")
    capsys.readouterr()
    with hold(cache / "b.u8"):  # as a process does that trains on them
        assert cli.main(["data", "purge"]) == 2
        out, err = capsys.readouterr()
        assert "1 set(s) of decoded images, 2.0 MB" in out and str(tmp_path / "home") in out
        assert "left as they are: 1 set(s), 1.0 MB, which a process is using" in out
        assert "nothing was removed" in err and "`--yes`" in err and "dataset.cache_dir=DIR" in err
        assert (cache / "a.u8").exists()
        assert cli.main(["data", "purge", "--yes"]) == 0
        assert "removed 2.0 MB" in capsys.readouterr().out
        assert [path.name for path in cache.glob("*.u8")] == ["b.u8"]
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert cli.main(["data", "purge"]) == 2
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert cli.main(["data", "purge"]) == 0
    assert not cache.exists()
    assert cli.main(["data", "purge"]) == 0  # there is nothing to ask about


def test_a_start_says_at_once_what_it_does(rooms, capsys):
    assert cli.main(["simulate", "run.dir=r"]) == 0
    assert "run r: loading libraries, then reading images" in capsys.readouterr().err.replace(str(Path.cwd()) + "/", "")


def test_data_phantoms(rooms, capsys, tmp_path):
    assert cli.main(["data", "phantoms", "out", "--modality", "chest", "--images", "20", "--shuffle-labels"]) == 0
    assert rooms.pop() == ("write_phantoms", (Path("out"), "chest", 20, 0), {"sites": 4, "shuffle_labels": True})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "not an empty folder" in fails(capsys, "data", "phantoms", "full")
    assert "--images 3" in fails(capsys, "data", "phantoms", "new", "--images", "3")
    assert "invalid int" in fails(capsys, "data", "phantoms", "new", "--images", "few")
    assert "brain" in fails(capsys, "data", "phantoms", "new", "--modality", "brain")
    assert rooms == []


def test_options(capsys):
    assert cli.main(["options", "partition"]) == 0
    out = capsys.readouterr().out
    assert "partition.alpha" in out
    assert "a number > 0" in out
    assert "model.latent" not in out
    assert "Did you mean partition?" in fails(capsys, "options", "partitoin")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulte"], "Did you mean `fed-diffmic simulate`?"),
        (["data", "inspct"], "Did you mean `fed-diffmic data inspect`?"),
        (["xyz"], "simulate, evaluate, predict, reference, data, options"),
        (["--verbose"], "cannot use --verbose"),
    ],
)
def test_commands_that_do_not_exist(capsys, arguments, words):
    assert words in fails(capsys, *arguments)


def test_the_coordinators_command_says_what_is_wrong(capsys, tmp_path):
    for arguments, words in (
        (["--config", str(tmp_path / "missing.yaml"), "seed=1"], "cannot be read"),
        (["--bogus"], "there is no option"),
        ([f"run.dir={tmp_path / 'run'}"], "security.certificate"),
        (["--resume", str(tmp_path)], "there is no run"),
        (["status", str(tmp_path)], "not the folder of a run"),
    ):
        assert server_cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
