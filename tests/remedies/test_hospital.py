"""What a site is told of models that came, of its part of one and of studies: done as the message says, it works."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import compare
from client import studies as site_studies
from client.compare import compare_models, take_over
from client.control import WITHDRAW, decide
from client.kept import model_digest
from client.personal import own_parts
from client.state import SiteStore
from client.studies import FOLDER
from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.data.site import SiteData
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import new_key_files, place_new
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.release.made_at import MadeAt
from fed_diffmic.release.personal import save_part
from simulations.personal import keep_personal
from tests import site_rules, studies
from tests.client.test_compare import CONFIG, Model, model
from tests.remedies.places import remedy_in, tries
from tests.toy import install_toy_networks, toy_site

COMPARE, MODELS = "client/compare.py::", "fed_diffmic/commands/site_models.py::"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, SiteData]:
    """What the site holds, as it may change; small networks."""
    install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)
    held = {"now": toy_site("one", 3, count=48)}
    monkeypatch.setattr(compare, "SiteSource", lambda _: lambda *_: held["now"])
    return held


def finished(folder: str, **changes: object) -> tuple[Path, FinalModel]:
    """A run's folder and its model."""
    made = model(1)
    digests = {stage: tensors_digest(state) for stage, state in made.states.items()}
    final = FinalModel(made.spec, made.states, made.calibration, [], 0, digests)
    Path(folder).mkdir(parents=True)
    write_final(Path(folder), replace(final, **changes))
    return Path(folder), load_final(folder)


@tries(
    f"{COMPARE}score | Compare it a",
    f"{COMPARE}score | Choose --spl",
    f"{COMPARE}score | Give the fold",
    f"{COMPARE}_difference",
)
def test_models_that_are_compared(data) -> None:
    made, whole = model(1), data["now"]
    strange = Model(replace(made.spec, classes=("a", "b", "c")), dict(made.states), dict(made.calibration))
    keys = remedy_in(
        lambda: compare_models(CONFIG, strange, None), r"or set (dataset\.classes) and (dataset\.task)"
    ).groups()
    set_as = [f"{keys[0]}=[{','.join(whole.classes)}]", f"{keys[1]}={whole.task}"]
    asked = compose_site(None, ["dataset=table", *set_as]).dataset
    assert tuple(asked.classes or ()) == made.spec.classes and asked.task == made.spec.task
    unfinished = Model(made.spec, {}, {})
    remedy_in(lambda: compare_models(CONFIG, unfinished, None), "Give the folder of a run that has ended")
    data["now"] = replace(whole, test=whole.test.subset(np.array([], dtype=np.int64)))
    found = remedy_in(lambda: compare_models(CONFIG, made, None), r"Choose --split (\w+), or set (site\.test_fraction)")
    assert compare_models(CONFIG, made, None, split=found[1], bootstrap=2).images
    assert compose_site(None, [f"{found[2]}=0.3"])
    data["now"] = whole

    usual = compare.score

    def edited(source: object, of: object, *rest: object) -> object:
        scored = usual(source, of, *rest)
        return replace(scored, labels=scored.labels[::-1].copy()) if of is other else scored

    other = model(2)
    with pytest.MonkeyPatch.context() as while_edited:
        while_edited.setattr(compare, "score", edited)
        remedy_in(
            lambda: compare_models(CONFIG, made, other, bootstrap=2), "again while nobody changes the site's table"
        )
    assert compare_models(CONFIG, made, other, bootstrap=2).difference is not None


@tries(f"{COMPARE}take_over", "client/kept.py::model_digest", "client/control.py::decide | To take part")
def test_the_model_in_use_and_leaving(data, works) -> None:
    run, _ = finished("run")
    folder = Path("site").absolute()
    folder.mkdir()
    remedy_in(lambda: model_digest(folder), "Give the folder of a finished run")
    assert model_digest(run)
    used = take_over(run, folder, "one")
    remedy_in(lambda: take_over(used, folder, "one"), "Nothing is to be done")
    assert load_final(used).digests
    decide(folder, WITHDRAW)
    [command] = remedy_in(
        lambda: decide(folder, "running"), r"`fed-diffmic (client continue --config FILE --rejoin)`"
    ).groups()
    Path("site.yaml").write_text(f"site:\n  name: one\n  folder: {folder}\n")
    works(*command.replace("FILE", "site.yaml").split())
    assert decide(folder, "running").state == "running"


@tries(f"{MODELS}_in_use", f"{MODELS}_made_by_a_site | Name its", f"{MODELS}_made_by_a_site | Name a run")
def test_a_model_in_use_that_is_not_what_it_should_be(data, says, works) -> None:
    finished("run")
    more = ("--config", "site.yaml")
    Path("site.yaml").write_text(f"site: {{name: one, folder: site, device: cpu}}\ndataset: {{root: {Path.cwd()}}}\n")
    (Path("site") / "model").mkdir(parents=True)
    said = says("client", "model", "compare", "run", *more)
    [command] = re.search(r"`fed-diffmic (client model use DIR --config site\.yaml)`", said).groups()
    assert "is now the one in use" in works(*command.replace("DIR", "run").split())
    works("client", "model", "compare", "run", *more)
    about = MadeAt("one", "finetune", "0" * 64)
    finished("site/own/toy/finetune", made_at=about)
    finished("copy", made_at=about)
    finished("theirs", made_at=replace(about, site="two"))
    _, files = new_key_files(Path("other"))
    place_new(files)  # of the coordinator, who signed none of them
    text = Path("site.yaml").read_text()
    Path("site.yaml").write_text(text + "coordinator: {public_key: other.pub}\n")
    said, whose = (says("client", "model", "use", name, *more) for name in ("copy", "theirs"))
    Path("site.yaml").write_text(text)
    for command in re.findall(r"`fed-diffmic ([^`]*)`", said):
        assert " toy " in command
        works(*command.replace(" toy ", " run ").split())
    assert load_final("site/model").made_at == about
    [command] = re.search(r"`fed-diffmic ([^`]*)`", whose).groups()
    works(*command.split())


@tries("client/personal.py::own_parts", "simulations/personal.py::keep_personal", "client/state.py::SiteStore.__init__")
def test_a_part_that_is_kept_at_the_site(data) -> None:
    part = {"head.bias": np.ones(3, np.float32)}
    run, final = finished("run", personal={"guidance": {"one": tensors_digest(part)}})
    config = SiteConfig(site=SiteGroup(name="one", folder=str(Path("site").absolute()), device=["cpu"]))
    key = (final.spec.run_id, final.spec.arm, "guidance")
    remedy_in(lambda: own_parts(config, final, run), "use a model that was taken over in time, or train again")
    in_time, _ = finished("site/model.before", personal=final.personal)
    save_part(in_time, "guidance", "one", part)
    assert set(own_parts(config, final, in_time)) == {"guidance"}
    remedy_in(lambda: keep_personal(final, Path("kept"), Path("run")), r"Start the run again in another run\.dir")
    SiteStore(Path("another/sites/one")).keep_site_state(key, 1, part, ())
    keep_personal(final, Path("kept"), Path("another"))
    Path("file").touch()
    [named] = remedy_in(lambda: SiteStore("file"), r"a site: (site\.folder)").groups()
    SiteStore(str(compose_site(None, [f"{named}=new"]).site.folder))


@tries(
    "client/studies.py::Studies.approve",
    "client/studies.py::Studies._keep",
    "fed_diffmic/commands/policy.py::_no_study",
)
def test_studies_that_come(data, says, works, monkeypatch) -> None:
    kept = studies.keeping(Path.cwd(), studies.BY_PERSON, "one").studies
    study = studies.study_of()
    Path("site.yaml").write_text("site:\n  name: one\n  folder: one\n")
    explain = ("policy", "explain", "--config", "site.yaml", "--run", study.run)
    [key] = re.search(r"comes with the first request, .* and (policy\.runs) names the run", says(*explain)).groups()
    assert compose_site(None, [f"{key}=[{study.run}]"]).policy.runs == [study.run]
    remedy_in(lambda: kept.approve(study.run, "me"), "It comes with the first request")
    monkeypatch.setattr(site_studies, "MOST_KEPT", 1)
    (Path("one") / FOLDER).mkdir(parents=True, mode=0o700, exist_ok=True)
    for name in ("x", "y"):
        (Path("one") / FOLDER / f"{name}.json").touch()

    def comes() -> None:
        with pytest.raises(Exception, match="approve|agreed|nobody"):  # and waits for a person
            kept.check("query", studies.query(study))

    [folder] = remedy_in(
        lambda: kept.check("query", studies.query(study)), r"Move old ones from `(\w+)` into an archive"
    ).groups()
    (Path("one") / folder).rename("archive")
    comes()
    assert kept.approve(study.run, "me").by == "me"
    monkeypatch.setattr("client.start.site_signer", lambda _: site_rules.KEY)
    works(*explain)
