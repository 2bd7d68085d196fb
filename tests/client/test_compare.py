"""A model that came against the one in use, on the site's own images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client import compare
from client.compare import (
    BEFORE,
    IN_USE,
    NEW,
    REFUSED,
    Final,
    compare_models,
    is_in_use,
    take_over,
    which_to_take,
)
from client.compared import CAME, KEPT, Comparison, comparison_text
from fed_diffmic.cli import main
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import DataError, ModelFileError, UsageError
from fed_diffmic.files import tensors_digest
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.release.personal import personal_file
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.stages import initial_state
from tests.toy import install_toy_networks, toy_site, toy_spec

CONFIG = SiteConfig(site=SiteGroup(name="one", folder="nowhere", device=["cpu"]))


@dataclass(frozen=True)
class Model:
    spec: RunSpec
    states: dict[str, Any]
    calibration: dict[str, Calibration]


def model(seed: int) -> Final:
    spec = replace(toy_spec(), seed=seed)
    fitted = Calibration("multiclass", 1.0, 0.0, (1 / 3, 1 / 3, 1 / 3))
    return Model(spec, {"guidance": initial_state(spec, "guidance")}, {"guidance": fitted})


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    install_toy_networks(monkeypatch.setattr)
    data = toy_site("one", 3, count=48)
    monkeypatch.setattr(compare, "SiteSource", lambda _: lambda *_: data)


def test_one_model_has_metrics_and_two_a_paired_difference() -> None:
    alone = compare_models(CONFIG, model(1), None, bootstrap=20)
    assert (alone.site, alone.split, alone.images, alone.difference) == ("one", "test", 12, None)
    both = compare_models(CONFIG, model(1), model(2), bootstrap=20)
    assert both.metrics == alone.metrics
    assert both.other is not None
    assert both.difference is not None
    for metric, cell in both.difference.items():
        if cell["value"] is not None:
            ours, theirs = both.metrics[metric]["value"], both.other[metric]["value"]
            assert cell["value"] == pytest.approx(ours - theirs)
    same = compare_models(CONFIG, model(1), model(1), bootstrap=20)
    assert same.difference is not None
    assert {cell["value"] for cell in same.difference.values()} <= {0.0, None}
    assert "difference" in comparison_text(both)
    assert "difference" not in comparison_text(alone)


def test_a_model_of_other_classes_is_refused() -> None:
    other = model(1)
    strange = Model(replace(other.spec, classes=("a", "b", "c")), dict(other.states), dict(other.calibration))
    with pytest.raises(DataError, match="classes"):
        compare_models(CONFIG, strange, None)


def site_and_models(tmp_path: Path, *names: str) -> Path:
    """Folders of models beside an empty one of a site, which is returned."""
    for name in names:
        (tmp_path / name / "final").mkdir(parents=True)
        (tmp_path / name / "final" / "model.json").write_text(name)
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_a_model_taken_over_leaves_the_one_before_beside_it(tmp_path: Path) -> None:
    folder = site_and_models(tmp_path, "first", "second")
    take_over(tmp_path / "first", folder, "one")
    take_over(tmp_path / "second", folder, "one")
    assert (folder / IN_USE / "final" / "model.json").read_text() == "second"
    assert (folder / BEFORE / "final" / "model.json").read_text() == "first"
    with pytest.raises(UsageError, match="in use already"):
        take_over(folder / IN_USE, folder, "one")


def test_a_copy_that_is_refused_leaves_the_model_in_use(tmp_path: Path) -> None:
    """What is verified is what was copied: the folder that it came from may change at any time."""
    folder = site_and_models(tmp_path, "first", "second")
    take_over(tmp_path / "first", folder, "one")
    seen = []

    def refuse(copy: Path) -> None:
        seen.append((copy / "final" / "model.json").read_text())
        raise ModelFileError("another")

    with pytest.raises(ModelFileError, match="another"):
        take_over(tmp_path / "second", folder, "one", before=refuse)
    assert seen == ["second"]
    assert (folder / IN_USE / "final" / "model.json").read_text() == "first"
    assert [path.name for path in folder.iterdir()] == [IN_USE], "and nothing lies about"


def named(folder: Path) -> dict[str, str]:
    """Which models a site's folder holds, by their names there."""
    return {path.name: (path / "final" / "model.json").read_text() for path in sorted(folder.iterdir())}


def test_a_model_that_is_refused_does_not_push_out_the_one_before(tmp_path: Path) -> None:
    folder = site_and_models(tmp_path, "first", "second", "third")
    take_over(tmp_path / "first", folder, "one")
    take_over(tmp_path / "second", folder, "one")
    (folder / IN_USE / "final" / "model.json").write_text("changed")
    take_over(tmp_path / "third", folder, "one", refused=True)
    assert named(folder) == {IN_USE: "third", BEFORE: "first", REFUSED: "changed"}
    (folder / IN_USE).rename(folder / NEW)  # a power cut: the old one has its new name, the new one has not
    take_over(tmp_path / "second", folder, "one")
    assert named(folder) == {IN_USE: "second", BEFORE: "first", REFUSED: "changed"}


def test_the_model_in_use_is_known_by_its_own_part_too(tmp_path: Path) -> None:
    """``model.json`` names the part that was there after the run; what is kept and given here is the part itself."""
    (tmp_path / "came" / "final").mkdir(parents=True)
    (tmp_path / "came" / "final" / "model.json").write_text("{}")
    folder = tmp_path / "site"
    folder.mkdir()
    part, other = ({"guidance": {"bias": np.full(2, value, np.float32)}} for value in (1, 2))
    take_over(tmp_path / "came", folder, "one", part)
    assert is_in_use(tmp_path / "came", folder, "one", part)
    assert not is_in_use(tmp_path / "came", folder, "one", other)
    personal_file(folder / IN_USE, "guidance", "one").unlink()
    assert not is_in_use(tmp_path / "came", folder, "one", part)
    (tmp_path / "came" / "final" / "model.json").write_text("[]")
    assert not is_in_use(tmp_path / "came", folder, "one", {})


@pytest.mark.parametrize("change", ["another model", "torn weights", "not signed as before", "read in between"])
def test_a_model_that_changed_while_it_was_compared_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    spec = toy_spec()
    states = {"guidance": initial_state(spec, "guidance")}
    fitted = {"guidance": Calibration("multiclass", 1.0, 0.0, (1 / 3, 1 / 3, 1 / 3))}
    digests = {"guidance": tensors_digest(states["guidance"])}
    first, second = (FinalModel(spec, states, fitted, [], n, digests) for n in (1, 2))
    zeros = {"guidance": {name: value * 0 for name, value in first.states["guidance"].items()}}
    third = replace(second, states=zeros, digests={"guidance": tensors_digest(zeros["guidance"])})
    came = tmp_path / "came"
    came.mkdir()
    write_final(came, first)

    def swap(*_: Any, **__: Any) -> Any:
        if change == "another model":
            write_final(came, second)
        elif change == "torn weights":
            (came / "final" / "guidance.safetensors").write_bytes(b"torn")
        elif change == "not signed as before":
            write_final(came, first, signer=key, facts={})
        return Comparison("one", "test", 1, {}, None, None)

    def read(*_: Any, **__: Any) -> Any:
        return third if change == "read in between" else first

    monkeypatch.setattr(compare, "compare_models", swap)
    monkeypatch.setattr("client.models.load_final", read)  # the command's; the copy is read as ever
    (tmp_path / "site.yaml").write_text(
        f"site: {{name: one, folder: {tmp_path / 'site'}, device: cpu}}\ndataset: {{root: {tmp_path}}}\n"
    )
    (tmp_path / "site").mkdir()
    command = ["client", "model", "use", str(came), "--config", str(tmp_path / "site.yaml"), "--json"]
    assert main(command) == 4
    said = capsys.readouterr().err
    assert "the model changed while it was compared" in said and "Compare it again." in said
    assert not (tmp_path / "site" / IN_USE).exists()
    monkeypatch.undo()
    monkeypatch.setattr(compare, "compare_models", lambda *_, **__: Comparison("one", "test", 1, {}, None, None))
    write_final(came, first)
    assert main(command) == 0
    assert load_final(tmp_path / "site" / IN_USE).bytes_sent == 1


@pytest.mark.parametrize(
    ("value", "low", "high", "take", "said"),
    [
        (
            0.05,
            0.01,
            0.09,
            CAME,
            "is shown to be better on this site's own images: macro AUROC +0.050 (+0.010 to +0.090)",
        ),
        (
            -0.05,
            -0.09,
            -0.01,
            KEPT,
            "is shown to be worse on this site's own images: macro AUROC -0.050 (-0.090 to -0.010)",
        ),
        (-0.05, -0.11, 0.01, CAME, "is not shown to be better or worse"),
        (0.05, -0.01, 0.11, CAME, "it is the default, for it has seen other sites' patients too"),
        (0.05, None, None, CAME, "No interval"),
        (None, None, None, CAME, "No interval"),
    ],
)
def test_which_model_to_take_follows_the_interval_and_says_why(
    value: float | None, low: float | None, high: float | None, take: str, said: str
) -> None:
    found, why = which_to_take({"auroc_macro": {"value": value, "low": low, "high": high}})
    assert found == take and said in why


def test_the_comparison_names_the_model_to_take() -> None:
    both = compare_models(CONFIG, model(1), model(2), bootstrap=20)
    assert f"Take {both.take}. {both.why}" in comparison_text(both)
    assert compare_models(CONFIG, model(1), None, bootstrap=0).take == CAME
