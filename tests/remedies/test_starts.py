"""What is refused before anything starts: folders, files and names that the configuration needs are put as it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fed_diffmic.config.checks import check_same_run, check_start
from fed_diffmic.config.compose import compose, compose_server, compose_site, compose_text, config_from_run_config
from fed_diffmic.config.network_checks import check_server_start, check_site_start
from fed_diffmic.config.owners import ALGORITHMS
from fed_diffmic.config.simulation import StrategyConfig
from server.start import check_same_run as check_same_server_run
from server.start import check_start as check_coordinator
from server.status import show_status
from simulations.experiments import definition
from simulations.experiments.definition import load_experiment
from tests.remedies.places import remedy_in, tries

FOLDERS, NETWORK = "fed_diffmic/config/folders.py::", "fed_diffmic/config/network_checks.py::"
SERVER, EXPERIMENT = "server/start.py::", "simulations/experiments/definition.py::"
SAFE = ["security.insecure=true", "consortium.sites=[a]", "consortium.classes=[x,y]", "consortium.task=multiclass"]
SITE = ["site.name=a", "site.folder=site", "coordinator.insecure=true", "coordinator.address=127.0.0.1:9"]


def start(*settings: str, resume: bool = False) -> None:
    check_start(compose(None, list(settings)), resume=resume)


def site(*settings: str) -> None:
    check_site_start(compose_site(None, list(settings)))


def without(key: str, *more: str) -> list[str]:
    return [setting for setting in [*SITE, "dataset.root=data"] if not setting.startswith(key)] + list(more)


@pytest.fixture(autouse=True)
def _there(elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()
    (elsewhere / "old").mkdir()
    (elsewhere / "old" / "events.jsonl").touch()
    (elsewhere / "file").touch()


@tries(
    f"{FOLDERS}check_folders | a folder",
    f"{FOLDERS}check_folders | the folder that",
    f"{FOLDERS}check_folders | Check the path",
    f"{FOLDERS}check_folders | a folder, existing",
    f"{FOLDERS}check_path",
)
def test_folders_of_a_run() -> None:
    remedy_in(lambda: start("dataset.root=file"), "allowed: a folder")
    start("dataset.root=data")
    remedy_in(lambda: start("dataset=table"), "the folder that holds the images")
    start("dataset=table", "dataset.root=data")
    remedy_in(lambda: start("dataset=table", "dataset.root=none"), "relative one starts at the current folder")
    start("dataset=table", f"dataset.root={Path.cwd() / 'data'}")
    remedy_in(lambda: start("run.dir=file"), "allowed: a folder, existing or not")
    start("run.dir=data")
    start("run.dir=new")
    remedy_in(lambda: start(f"run.dir={'x' * 300}"), "Choose a shorter name")
    start(f"run.dir={'x' * 200}")


@tries(
    f"{FOLDERS}check_folders | Say run.dir",
    f"{FOLDERS}check_folders | Choose another folder",
    f"{FOLDERS}check_folders | Check run.dir",
    "fed_diffmic/config/checks.py::check_start | Check the path",
    "fed_diffmic/config/stages.py::check_crossfit",
)
def test_a_run_that_is_there_or_not() -> None:
    [key] = remedy_in(lambda: start(resume=True), r"Say (run\.dir)=DIR").groups()
    start(f"{key}=old", resume=True)
    remedy_in(lambda: start("run.dir=old"), "another folder, or continue that run with --resume")
    start("run.dir=another")
    start("run.dir=old", resume=True)
    remedy_in(lambda: start("run.dir=data", resume=True), "Check run.dir, or leave --resume out")
    start("run.dir=data")
    remedy_in(lambda: start("model.weights=none"), "relative one starts at the current folder")
    start("model.weights=file")
    [none] = remedy_in(lambda: start("stages.diffusion.crossfit=2"), r"allowed: (0): only").groups()
    start(f"stages.diffusion.crossfit={none}")


@tries(
    "fed_diffmic/config/checks.py::check_same_run | Leave the key",
    "fed_diffmic/config/checks.py::check_same_run | {*renamed",
    f"{SERVER}check_same_run | Leave the key",
    f"{SERVER}check_same_run | {{*renamed",
)
def test_a_run_goes_on_as_it_began() -> None:
    saved = compose(None, ["run.dir=old", "seed=3"])
    other = compose(None, ["run.dir=old", "seed=4"])
    remedy_in(lambda: check_same_run(saved, other), "Leave the key out")
    check_same_run(saved, compose(None, ["run.dir=old", "seed=3"]))
    moved = compose(None, ["run.dir=moved", "seed=3"])
    [name] = remedy_in(lambda: check_same_run(saved, moved), r"Name the folder (\w+) again").groups()
    check_same_run(saved, compose(None, [f"run.dir=elsewhere/{name}", "seed=3"]))
    begun = compose_server(None, [*SAFE, "run.dir=old"])
    remedy_in(lambda: check_same_server_run(begun, compose_server(None, [*SAFE, "run.dir=old", "seed=9"])), "Leave the")
    check_same_server_run(begun, compose_server(None, [*SAFE, "run.dir=old"]))
    gone = compose_server(None, [*SAFE, "run.dir=moved"])
    [name] = remedy_in(lambda: check_same_server_run(begun, gone), r"Name the folder (\w+) again").groups()
    check_same_server_run(begun, compose_server(None, [*SAFE, f"run.dir=elsewhere/{name}"]))


@tries(
    f"{NETWORK}check_site_start | {{_KIT}}",
    f"{NETWORK}check_site_start | a folder for",
    f"{NETWORK}check_site_start | a folder, existing",
    f"{NETWORK}_check_turn | a file (no link)",
    f"{NETWORK}check_site_start | Without TLS",
    f"{NETWORK}check_site_start | the folder that",
)
def test_a_site_says_who_and_where_it_is() -> None:
    remedy_in(lambda: site(*without("site.name")), "name of this site in the coordinator's roster")
    remedy_in(lambda: site(*without("site.folder")), "a folder for the site's own state")
    remedy_in(lambda: site(*without("site.folder", "site.folder=file")), "a folder, existing or not")
    remedy_in(lambda: site(*without("nothing", "site.turn=none/turn")), "existing or not, in a folder that is there")
    Path("link").symlink_to("elsewhere")
    for wrong in ("link", "."):
        remedy_in(lambda wrong=wrong: site(*without("nothing", f"site.turn={wrong}")), "a file \\(no link\\) that this")
    site(*without("nothing", "site.turn=turn"))
    remedy_in(lambda: site(*without("coordinator.address")), "host:port of the coordinator")
    remedy_in(lambda: site(*without("dataset")), "the folder that holds the images")
    site(*without("nothing"))
    elsewhere = without("coordinator.address", "coordinator.address=10.0.0.1:9")
    [value] = remedy_in(lambda: site(*elsewhere), r"allowed: (false) with a coordinator on another").groups()
    files = [f"coordinator.{name}=file" for name in ("ca", "key", "public_key")]
    site(*[s for s in elsewhere if "insecure" not in s], f"coordinator.insecure={value}", *files)


@tries(
    f"{NETWORK}check_server_start | Anyone",
    f"{NETWORK}check_server_start | names of the sites",
    f"{NETWORK}_need_file",
)
def test_a_trial_without_keys_stays_on_this_machine() -> None:
    def server(*settings: str) -> None:
        check_server_start(compose_server(None, list(settings)))

    [address] = remedy_in(lambda: server(*SAFE, "listen.host=0.0.0.0"), r"allowed: (\S+), localhost").groups()
    server(*SAFE, f"listen.host={address}")
    remedy_in(lambda: server(*[s for s in SAFE if "sites" not in s]), "names of the sites")
    server(*SAFE)
    remedy_in(lambda: server(*SAFE, "model.weights=none"), "Check the path; a relative one starts at the current")
    server(*SAFE, "model.weights=file")


@tries(
    f"{SERVER}check_start | Continue",
    f"{SERVER}check_start | Leave --resume",
    "server/status.py::show_status",
)
def test_a_coordinator_continues_its_run_or_starts_one() -> None:
    again = compose_server(None, [*SAFE, "run.dir=old"])
    [resume] = remedy_in(lambda: check_coordinator(again, resume=False), r"`flower-server (--resume) .*old`").groups()
    check_coordinator(again, resume=resume == "--resume")
    new = compose_server(None, [*SAFE, "run.dir=data"])
    remedy_in(lambda: check_coordinator(new, resume=True), "Leave --resume out")
    check_coordinator(new, resume=False)
    remedy_in(lambda: show_status(Path("data")), "Give run.dir of the run")


@tries(
    "fed_diffmic/config/compose.py::_from_text",
    "fed_diffmic/config/compose.py::config_from_run_config",
    "fed_diffmic/config/compose.py::_from_json",
    "fed_diffmic/config/compose.py::_read | Save it",
    "fed_diffmic/config/compose.py::_own_options | {UnknownKeyError}",
    "fed_diffmic/config/compose.py::_put | {UnknownKeyError}",
    "fed_diffmic/config/compose.py::_put | a mapping",
    "fed_diffmic/config/text.py::parse_text | Correct",
    "fed_diffmic/config/text.py::parse_text | Groups",
)
def test_texts_of_a_configuration() -> None:
    [example] = remedy_in(lambda: compose_text("- a", []), r"Write for example `([^`]+)`").groups()
    assert compose_text(example, []).model.name == "compact"
    [example] = remedy_in(lambda: config_from_run_config({"overrides": "'"}), r'for a shell: "([^"]+)"').groups()
    assert config_from_run_config({"overrides": example}).run.dir.endswith("a b")
    remedy_in(lambda: config_from_run_config({"config-json": "no"}), "a JSON object")
    Path("latin.yaml").write_bytes("# \xe9\nseed: 3\n".encode("latin-1"))
    [encoding] = remedy_in(lambda: compose(Path("latin.yaml"), []), r"encoding (\S+)\.").groups()
    Path("latin.yaml").write_text("# \xe9\nseed: 3\n", encoding=encoding)
    assert compose(Path("latin.yaml"), []).seed == 3
    typo = ["strategy=clipped_mean", "strategy.options.update_nrm=1"]
    [name] = remedy_in(lambda: compose(None, typo), r"has (\w+)").groups()
    compose(None, [typo[0], f"strategy.options.{name}=1"])
    [key] = remedy_in(lambda: compose(None, ["seed.x=1"]), r"Did you mean (\w+)").groups()
    compose(None, [f"{key}=1"])
    remedy_in(lambda: compose_text("stages: {guidance: 3}", ["stages.guidance.rounds=1"]), "allowed: a mapping")
    compose_text("stages: {guidance: {epochs: 3}}", ["stages.guidance.rounds=1"])
    [example] = remedy_in(lambda: compose_text("model: [", []), r"`(key: value)`").groups()
    compose_text(example.replace("key", "seed").replace("value", "3"), [])
    remedy_in(lambda: compose_text("[" * 1500, []), "Groups and their keys")
    compose_text("model: {crop: 8}", [])


@tries(
    "fed_diffmic/config/owners.py::Own.of | {allowed}",
    "fed_diffmic/config/owners.py::Own.of | {error.remedy}",
    "fed_diffmic/config/plugins.py::check_trusted",
    "fed_diffmic/algorithms/base.py::build_algorithm",
)
def test_options_of_an_algorithm_and_packages_that_a_site_trusts(monkeypatch) -> None:
    from fed_diffmic.algorithms.base import build_algorithm
    from fed_diffmic.config import plugins
    from fed_diffmic.config.plugins import check_trusted, find

    options = find(ALGORITHMS, "clipped_mean").options
    wrong = StrategyConfig(name="clipped_mean", options={"norm": 1.0})
    [name] = remedy_in(lambda: options.of(wrong), r"one of (\w+)").groups()
    options.of(StrategyConfig(name="clipped_mean", options={name: 1.0}))
    [least] = remedy_in(
        lambda: options.of(StrategyConfig(name="clipped_mean", options={name: -1.0})), r">=? (\d+)"
    ).groups()
    options.of(StrategyConfig(name="clipped_mean", options={name: float(least) + 1}))
    with monkeypatch.context() as installed:
        installed.setattr(plugins, "foreign", lambda kind, name: "fed-halfway")
        [package] = remedy_in(lambda: check_trusted(ALGORITHMS, "halfway", []), r"`plugins: \[([\w-]+)\]`").groups()
        check_trusted(ALGORITHMS, "halfway", [package])
    [name] = remedy_in(lambda: build_algorithm(StrategyConfig(name="flower")), r"allowed: (\w+),").groups()
    build_algorithm(StrategyConfig(name=name, options={"update_norm": 1.0}))


@tries(
    f"{EXPERIMENT}load_experiment | Leave some",
    f"{EXPERIMENT}load_experiment | {{error.remedy}}",
    f"{EXPERIMENT}load_experiment | nothing in",
    f"{EXPERIMENT}load_experiment | Give the axes",
    f"{EXPERIMENT}_read | {{WRITE}}",
    f"{EXPERIMENT}_read | Allowed",
    f"{EXPERIMENT}_texts",
    f"{EXPERIMENT}_axes",
    f"{EXPERIMENT}_folds",
)
def test_files_of_an_experiment(monkeypatch) -> None:
    path = Path("study.yaml")

    def load(text: str, *overrides: str) -> None:
        path.write_text(text)
        load_experiment(str(path), list(overrides))

    with monkeypatch.context() as small:
        small.setattr(definition, "MOST_CELLS", 2)
        remedy_in(lambda: load("axes: {seed: [1, 2, 3]}"), "Leave some values out")
        load("axes: {seed: [1, 2]}")
    [known] = remedy_in(lambda: load("axes: {seed: [1]}", "sead=2"), r"Did you mean (\w+)").groups()
    load("axes: {seed: [1]}", f"{known}=2")
    remedy_in(lambda: load("axes: {seed: [1]}", "run.dir=here"), "nothing in an experiment")
    load("axes: {seed: [1]}")
    same = "axes: {{seed: [1], m: {{a: [seed=1], {}: [seed=1]}}, n: {{b_n-c: [seed=1], c: [seed=1]}}}}"
    remedy_in(lambda: load(same.format("a_n-b")), "values names that differ")
    load(same.format("b"))
    for broken in ("axes: [", "axes: {method: {a: [x]}}", "axes: {seed: [1], method: {a: [x]}}", "axes: {seed: 1}"):
        [example] = remedy_in(lambda text=broken: load(text), r"for example `([^`]+)`").groups()
        load(example)
    [key] = remedy_in(lambda: load("axis: {seed: [1]}"), r"Allowed: .*(axes)").groups()
    load(f"{key}: {{seed: [1]}}")
    [example] = remedy_in(lambda: load("axes: {seed: [1], fold: 1}"), r"For example `([^`]+)`").groups()
    load(f"axes: {{seed: [1], {example}}}")
