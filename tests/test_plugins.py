"""The package of docs/plugins.md, installed and used: found, listed, set, checked, run; and what it may not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.algorithms.base import SiteUpdate
from fed_diffmic.config import owners, plugins
from fed_diffmic.config.compose import compose, compose_server, compose_site, config_from_run_config, to_json, to_yaml
from fed_diffmic.config.owners import ALGORITHMS, DATASETS, KINDS
from fed_diffmic.config.reference import configuration_markdown, options_text, plugin_notes
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.errors import ConfigError
from tests import plugin_package

ROOT = Path(__file__).parents[1]
NAMES = {"strategy": "halfway", "dataset": "class_folders", "partition": "one_large"}
FEW = [
    "model=tiny", "model.image_side=32", "model.regions=2", "partition.sites=2", "partition.min_images=4",
    "stages.guidance.rounds=1", "stages.guidance.epochs=1", "stages.diffusion.rounds=0", "run.bootstrap=0",
    "run.device=cpu",
]  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package, findable in this process; forgotten afterwards."""
    folder = plugin_package.install(tmp_path / "packages")
    monkeypatch.syspath_prepend(folder)
    yield folder
    forget()


def forget() -> None:
    for group, kind in KINDS.items():
        owners.forget(kind, NAMES[group])
    for name in [name for name in sys.modules if name.startswith("fed_example")]:
        del sys.modules[name]


def imported() -> bool:
    return any(name.startswith("fed_example.") for name in sys.modules)


def photos(folder: Path) -> Path:
    """Two classes of 16 patients, one image each, told apart by their brightness."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for patient in range(16):
            pixels = rng.integers(0, 96, (40, 40, 3)) + 128 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}{patient:02d}_x.png")
    return folder


def test_the_page_shows_the_whole_package() -> None:
    files = plugin_package.files_of_the_page()
    assert set(files) == {"pyproject.toml", *(f"fed_example/{name}.py" for name in NAMES.values())}


def test_a_run_with_all_three(tmp_path: Path) -> None:
    """The command of the page, in a process that knows the package from its metadata alone."""
    folder, root, run = plugin_package.install(tmp_path / "packages"), photos(tmp_path / "photos"), tmp_path / "run"
    own = [f"{group}={name}" for group, name in NAMES.items()]
    own += ["strategy.share=0.7", "partition.share=0.6", f"dataset.root={root}", f"dataset.cache_dir={tmp_path / 'c'}"]
    done = subprocess.run(
        [sys.executable, "-m", "fed_diffmic.cli", "simulate", *own, *FEW, f"run.dir={run}"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["strategy"] == "halfway"
    saved = (run / "config.yaml").read_text()
    assert "share: 0.7" in saved and "share: 0.6" in saved and "ending: .png" in saved
    lines = (run / "partition.csv").read_text().splitlines()[2:]
    counts = sorted(sum(f",{site}," in line for line in lines) for site in ("site-1", "site-2"))
    assert counts == [13, 19], "0.6 of 32 patients are at the first site"


def test_its_options_are_settings_like_any_other(installed: Path) -> None:
    given = [f"{group}={name}" for group, name in NAMES.items()]
    config = compose(None, [*given, "strategy.share=0.25", "dataset.root=/x"])
    assert config.strategy.options == {"share": 0.25} and config.partition.options == {"share": 0.5}
    assert config.dataset.options == {"ending": ".png"}
    assert compose(None, ["strategy=halfway", "strategy.options.share=0.25"]).strategy == config.strategy
    assert config_from_run_config({"config-json": to_json(config)}) == config
    assert compose_server(None, ["strategy=halfway"]).strategy.options == {"share": 0.5}
    for wrong, said in (
        ("strategy.share=0", "strategy.share=0.0 is not allowed; allowed: a number > 0 and <= 1"),
        ("strategy.share=much", "strategy.share=much is not allowed"),
        ("strategy.shre=1", "there is no key strategy.shre"),
        ("strategy.options.shre=1", "there is no key strategy.options.shre"),
        ("dataset.ending=.gif", "allowed: .png, .jpg, .tif"),
    ):
        with pytest.raises(ConfigError) as caught:
            compose(None, [*given, wrong])
        assert said in str(caught.value)


def test_a_saved_configuration_starts_the_same_run(installed: Path, tmp_path: Path) -> None:
    config = compose(None, ["strategy=halfway", "strategy.share=0.25", "partition=one_large"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert compose(tmp_path / "config.yaml", []) == config


def test_what_crosses_is_in_the_mapping_and_nobody_elses_specification_changes(installed: Path) -> None:
    def spec(*settings: str) -> RunSpec:
        about = {"classes": ["a", "b"], "task": "multiclass", "run_id": "r", "arm": "federated", "device": "cpu"}
        return make_spec(compose(None, list(settings)), **about)

    other = json.loads(spec().to_json())
    mine = json.loads(spec("strategy=halfway").to_json())
    assert mine["strategy"]["options"] == {"share": 0.5} and other["strategy"]["options"] == {}
    assert mine["strategy"].keys() == other["strategy"].keys()
    assert RunSpec.from_json(spec("strategy=halfway").to_json()) == spec("strategy=halfway")
    mine["strategy"]["options"] = {"share": 7}
    sent = RunSpec.from_json(json.dumps(mine))  # nothing of the package need be imported to read it
    with pytest.raises(ConfigError, match=r"strategy\.options\.share=7"):
        build_algorithm(sent.strategy)


def test_it_does_what_it_says(installed: Path) -> None:
    config = compose(None, ["strategy=halfway", "strategy.share=0.25"]).strategy
    update = SiteUpdate("a", {"w": np.full(2, 8.0, np.float32)}, 3)
    result, _ = build_algorithm(config).aggregate(
        {"w": np.full(2, 4.0, np.float32)}, {"w": "parameter"}, [update], {}, 1
    )
    assert result["w"].tolist() == [5.0, 5.0] and result["w"].dtype == np.float32


def test_lists_say_the_package_and_the_pages_of_this_program_do_not(installed: Path) -> None:
    for group, name in NAMES.items():
        assert name in options_text(group) and "(package fed-example)" in options_text(group)
    assert "strategy.share=0.5\n      part of the way that a round goes\n" in options_text("strategy")
    assert "fed-example" not in configuration_markdown()


def test_nothing_is_imported_before_its_name_is_chosen(installed: Path) -> None:
    compose(None, ["strategy=fedprox"])
    assert "halfway" in plugins.names(ALGORITHMS) and plugins.foreign(ALGORITHMS, "halfway") == "fed-example"
    with pytest.raises(ConfigError, match="Did you mean halfway"):
        compose(None, ["strategy=halfwy"])
    assert not imported()
    compose(None, ["strategy=halfway"])
    assert imported()


@pytest.mark.parametrize("text", ["import nothing_of_that_name\n", "raise SystemExit(3)\n", "x = 1\n"])
def test_a_package_that_is_broken_is_named_and_breaks_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    folder = plugin_package.install(tmp_path, {"fed_example/halfway.py": text})
    monkeypatch.syspath_prepend(folder)
    try:
        with pytest.raises(ConfigError, match="fed-example 1.0"):
            compose(None, ["strategy=halfway"])
        _, faults = plugin_notes("strategy")
        assert len(faults) == 1 and "strategy=halfway cannot be used" in faults[0] and "fed-example" in faults[0]
        assert "cannot be used" in options_text("strategy") and "fedprox" in options_text("strategy")
        assert compose(None, ["partition=one_large"]).partition.options == {"share": 0.5}
    finally:
        forget()


def test_a_built_in_name_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"entry-points": {"fed_diffmic.algorithms": {"fedavg": "fed_example.halfway", "halfway": "fed_example.h"}}}
    taken = plugin_package.files_of_the_page()["fed_example/halfway.py"].replace('"halfway"', '"fedavg"')
    monkeypatch.syspath_prepend(plugin_package.install(tmp_path, {"fed_example/halfway.py": taken}, points))
    try:
        built = build_algorithm(compose(None, ["strategy=fedavg"]).strategy)
        assert type(built).__module__ == "fed_diffmic.algorithms.fedavg"
        _, faults = plugin_notes("strategy")
        assert "strategy=fedavg of fed-example is not used: that name is built in" in faults
        with pytest.raises(ValueError, match="'fedavg' is built in"):
            __import__("fed_example.halfway")
    finally:
        forget()


def test_two_packages_of_one_name_are_refused(installed: Path, tmp_path: Path) -> None:
    plugin_package.install(installed, None, {"name": "fed-other"})
    with pytest.raises(ConfigError, match="fed-example and fed-other do"):
        compose(None, ["strategy=halfway"])


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("weighting: str = option('examples', 'mine')", "strategy.weighting is a setting already"),
        ("mu: float = option(1.0, 'mine', ge=0, le=1)", "strategy.mu is a setting already"),
        ("client_noise_multiplier: float = option(0.0, 'mine', ge=0)", "is a setting already"),
    ],
)
def test_an_option_cannot_pass_for_a_setting_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, said: str
) -> None:
    text = plugin_package.files_of_the_page()["fed_example/halfway.py"]
    text = text.replace('share: float = option(0.5, "part of the way that a round goes", gt=0, le=1)', field)
    monkeypatch.syspath_prepend(plugin_package.install(tmp_path, {"fed_example/halfway.py": text}))
    try:
        with pytest.raises(ConfigError, match=said):
            compose(None, ["strategy=halfway"])
    finally:
        forget()


def test_what_an_algorithm_from_outside_does_not_say_is_taken_carefully(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = plugin_package.files_of_the_page()["fed_example/halfway.py"]
    silent = text.replace("    private = True  # a site does nothing beside its local update\n", "")
    monkeypatch.syspath_prepend(plugin_package.install(tmp_path, {"fed_example/halfway.py": silent}))
    private = ["privacy=dp_sgd", "model.norm=group", "model.encoder_norm=group"]
    noised = ["strategy.client_noise_multiplier=1", "strategy.weighting=equal", *private[1:]]
    try:
        assert not build_algorithm(compose(None, ["strategy=halfway"]).strategy).private
        for settings in (private, noised):
            with pytest.raises(ConfigError, match=r"strategy\.name=halfway"):
                compose(None, ["strategy=halfway", *settings])
    finally:
        forget()


def test_a_data_set_from_outside_counts_as_patients(installed: Path) -> None:
    for setting in ("run.examples=1", "dataset.split=published"):
        with pytest.raises(ConfigError, match=setting):
            compose(None, ["dataset=class_folders", "dataset.root=/x", setting])


def test_a_site_reads_by_a_package_only_if_its_policy_names_it(installed: Path) -> None:
    with pytest.raises(ConfigError, match="named in policy.plugins: class_folders comes from fed-example") as caught:
        compose_site(None, ["dataset=class_folders"])
    assert "`plugins: [fed-example]` under `policy`" in caught.value.remedy
    assert not imported()
    for named in ("fed-example", "Fed_Example", "class_folders"):
        config = compose_site(None, ["dataset=class_folders", f"policy.plugins={named}", "dataset.ending=.jpg"])
        assert config.dataset.options == {"ending": ".jpg"}


def test_a_trusted_name_is_one_of_that_package(installed: Path) -> None:
    assert plugins.trusted(ALGORITHMS, "fedavg", [])
    for named, good in (
        ([], False),
        (["fed-other"], False),
        (["*"], False),
        (["halfway"], True),
        (["fed.example"], True),
    ):
        assert plugins.trusted(ALGORITHMS, "halfway", named) is good
    assert not plugins.trusted(ALGORITHMS, "nobodys", ["fed-example"]) and not plugins.trusted(DATASETS, "os.path", [])
    assert not imported()
