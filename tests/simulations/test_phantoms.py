"""The demonstration's own promise: `tiny` learns each modality's phantoms, and nothing from shuffled labels.

Two stages over four virtual sites, through the published layouts' own readers: minutes, so marked slow.
"""

import pytest

from fed_diffmic.config.compose import compose
from fed_diffmic.data.phantoms import LAYOUTS, write_phantoms
from simulations.run import simulate


def auroc(tmp_path, modality, shuffle):
    write_phantoms(tmp_path / "data", modality, 480, seed=0, shuffle_labels=shuffle)
    config = compose(
        None,
        [
            f"dataset={LAYOUTS[modality][0]}",
            f"dataset.root={tmp_path / 'data'}",
            f"dataset.modality={modality}",
            f"dataset.cache_dir={tmp_path / 'cache'}",
            f"run.dir={tmp_path / 'run'}",
            "model=tiny",
            "run.device=cpu",
            "run.bootstrap=0",
        ],
    )
    summary = simulate(config)
    return {
        "diffusion": summary["global"]["test"]["auroc_macro"]["value"],
        "guidance": summary["baselines"]["guidance"]["federated"]["global"]["test"]["auroc_macro"]["value"],
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("modality", sorted(LAYOUTS))
def test_tiny_learns_the_signs_of_each_modality(tmp_path, modality):
    metrics = auroc(tmp_path, modality, shuffle=False)
    assert metrics["diffusion"] >= 0.85, metrics


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("modality", sorted(LAYOUTS))
def test_tiny_learns_nothing_from_shuffled_labels(tmp_path, modality):
    metrics = auroc(tmp_path, modality, shuffle=True)
    assert 0.40 <= metrics["diffusion"] <= 0.60, metrics
