"""What stands behind the guidance network is told: a diffusion head, or a classifier, which samples nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fed_diffmic.release.dossier.write import build
from fed_diffmic.release.final import write_final
from fed_diffmic.reporting.view import arm_name
from tests.inference.tiny import tiny_model, tiny_spec
from tests.release.dossier.made import write_simulation
from tests.reporting.conftest import CLASSES


def card(folder: Path) -> dict[str, str]:
    section = next(one for one in build(folder)["sections"] if one["id"] == "model-card")
    table = next(block for block in section["blocks"] if block.get("caption") == "What it is")
    return {row[0]: row[1]["value"] for row in table["rows"]}


def test_the_card_names_the_head_that_was_trained(tmp_path: Path) -> None:
    folder = write_simulation(tmp_path / "tiny", {})
    assert card(folder)["head of the second network"] == "noise"
    spec = tiny_spec(classes=CLASSES)
    write_final(folder, tiny_model(replace(spec, model=replace(spec.model, denoiser="classifier"))))
    assert card(folder)["head of the second network"] == "classifier"


def test_a_stages_name_in_words_does_not_say_which_head_it_has() -> None:
    assert "DiffMIC" not in arm_name("diffusion") and "diffusion" not in arm_name("diffusion")
