"""Stages behind a frozen guidance network: where encoders start, what is trained, whose word of an image is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.special import log_softmax

from fed_diffmic.algorithms.fedavg import FedAvg
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.config.stages import check_crossfit
from fed_diffmic.errors import ConfigError
from fed_diffmic.training.calibration import prior_taken
from fed_diffmic.training.ensemble import EnsembleStage
from fed_diffmic.training.evaluation import predict_doubts, start_draws
from fed_diffmic.training.guided import GuidanceTable, fold_of, guidance_table, joined
from fed_diffmic.training.local import local_update
from fed_diffmic.training.size import stage_size
from fed_diffmic.training.stage import Batch
from fed_diffmic.training.stages import build_module, full_state, initial_state, load_state
from fed_diffmic.training.update import LocalRound
from tests.training.test_local import TINY, start, tiny_site, tiny_spec


def spec_of(*, blend=False, encoders="train", **model):
    base = tiny_spec()
    diffusion = replace(base.stages.diffusion, encoders=encoders, blend=blend)
    return replace(base, model=replace(TINY, **model), stages=replace(base.stages, diffusion=diffusion))


@pytest.fixture(scope="module")
def guidance():
    return full_state(start(tiny_spec(), "guidance"))


@pytest.mark.parametrize("denoiser", ["noise", "residual", "classifier"])
def test_own_encoders_start_from_exactly_the_published_weights(tmp_path, guidance, denoiser):
    spec = spec_of(denoiser=denoiser, prior_init="own", encoder_norm="frozen")
    whole = build_module(spec, "guidance").network.local_encoder.net.state_dict()
    published = {k: torch.rand(v.shape) for k, v in whole.items() if v.is_floating_point()}
    save_file(published, tmp_path / "w.safetensors")
    base = full_state(start(spec, "guidance"))
    spec = replace(spec, model=replace(spec.model, weights=str(tmp_path / "w.safetensors")))
    state = initial_state(spec, "diffusion", base)
    for encoder in ("global_encoder", "region_encoder"):
        own = {n: v for n, v in state.items() if n.startswith(f"prior.{encoder}.net.") and v.dtype == np.float32}
        assert own
        for name, value in own.items():
            assert np.array_equal(value, published[name.removeprefix(f"prior.{encoder}.net.")].numpy())
    assert all(np.array_equal(state[f"guidance.{name}"], value) for name, value in base.items())
    again = initial_state(replace(spec, model=replace(spec.model, prior_init="guidance")), "diffusion", base)
    assert np.array_equal(
        again["prior.global_encoder.net.conv_stem.weight"], base["global_encoder.net.conv_stem.weight"]
    )


@pytest.mark.parametrize("denoiser", ["noise", "residual", "classifier"])
@pytest.mark.parametrize("encoders", ["train", "frozen"])
def test_what_is_said_to_be_trained_is_trained(guidance, denoiser, encoders):
    spec = spec_of(denoiser=denoiser, encoders=encoders)
    module = start(spec, "diffusion", guidance)
    before = full_state(module)
    local_update(module, tiny_site().train, FedAvg(StrategyConfig()), LocalRound("a", 1))
    after = full_state(module)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not any(name.startswith("guidance.") for name in moved)
    assert any("encoder" in name for name in moved) == (encoders == "train")
    assert any(name.startswith("denoiser.") for name in moved)


def test_the_ensembles_loss_and_scores(guidance):
    spec = spec_of(denoiser="classifier", blend=True)
    module = start(spec, "diffusion", guidance).eval()
    assert isinstance(module, EnsembleStage)
    site = tiny_site().train
    inputs = module.inputs(torch.randn(4, 3, 32, 32))
    logits = module.network.classify(inputs)
    labels = torch.from_numpy(site.labels[:4])
    offset = torch.tensor([0.3, -0.2, 0.1])
    by_hand = -log_softmax((logits + offset).detach().numpy(), axis=1)[np.arange(4), labels.numpy()]
    losses = module.losses(Batch(inputs, labels, offset), ()).detach().numpy()
    assert np.allclose(losses, by_hand, atol=1e-6)
    scores, own, other = module.opinions(inputs, torch.from_numpy(start_draws(site.keys[:4], spec)))
    assert torch.equal(scores[:, 0], logits) and torch.equal(scores[:, 1], inputs.fused)
    assert torch.equal(other, inputs.fused)
    assert torch.allclose(own[:, 0], logits.softmax(dim=1))
    _, doubts = predict_doubts(module, site)
    assert set(doubts) == {"disagreement"}  # nothing is sampled: no spread


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_ensembles_loss_takes_out_the_prior_that_the_calibration_gives_back(guidance, balance):
    spec = spec_of(denoiser="classifier")
    cfg = replace(spec.stages.diffusion, loss="balanced", balance=balance)
    module = start(replace(spec, stages=replace(spec.stages, diffusion=cfg)), "diffusion", guidance).eval()
    inputs, labels = module.inputs(torch.randn(3, 3, 32, 32)), torch.tensor([0, 1, 2])
    offset = torch.tensor([0.7, 0.2, 0.1]).log()
    shifted = module.network.classify(inputs) + prior_taken(cfg, "diffusion") * offset
    found = module.losses(Batch(inputs, labels, offset), ())
    assert torch.allclose(found, torch.nn.functional.cross_entropy(shifted, labels, reduction="none"), atol=1e-6)


def test_a_chainless_head_has_one_start_and_no_spread(guidance):
    spec = spec_of(denoiser="residual", sampling_starts=4)
    site = tiny_site().train
    chain, mean = (
        predict_doubts(start(replace(spec, model=replace(spec.model, sampling=s)), "diffusion", guidance), site)[1]
        for s in ("chain", "mean")
    )
    assert set(chain) == {"disagreement", "spread"} and set(mean) == {"disagreement"}


def test_the_ensembles_size_is_that_of_what_is_built():
    """What a site's limits are asked of must be the network that it would train."""
    spec = spec_of(denoiser="classifier", encoders="train")
    module = build_module(spec, "diffusion")
    size = stage_size(spec, "diffusion")
    assert size.parameters == sum(p.numel() for p in module.network.parameters())
    assert size.trained == sum(p.numel() for p in module.network.parameters() if p.requires_grad)


def told(site, value: float, spec: RunSpec) -> GuidanceTable:
    n, c, k = len(site), spec.num_classes, spec.model.regions
    shape = (n, k, 3, spec.model.crop, spec.model.crop)
    return GuidanceTable(site.keys, torch.full((n, c), value), torch.full((n, c), value), torch.zeros(shape))


@pytest.mark.parametrize("encoders", ["train", "frozen"])
def test_the_tables_word_is_taken_in_training_and_never_in_evaluation(guidance, encoders):
    spec = spec_of(denoiser="residual", encoders=encoders)
    module = start(spec, "diffusion", guidance)
    site = tiny_site().train
    images = torch.randn(3, 3, 32, 32)
    module.eval()
    own = module.inputs(images)
    module.table = told(site, 7.0, spec)
    assert torch.equal(module.inputs_of(images, site.keys[:3]).y_global, own.y_global)
    module.train()
    assert (module.inputs_of(images, site.keys[:3]).y_global == 7).all()
    with pytest.raises(ValueError, match="not among those"):
        module.inputs_of(images, np.array([1, 2, 3], np.uint64))


def test_a_local_update_trains_on_the_tables_word(guidance):
    """The network's own word computed ahead gives the same loss, another word another one."""
    spec = spec_of(denoiser="residual")
    site = tiny_site().train

    def update(table):
        module = start(spec, "diffusion", guidance)
        module.table = table
        return local_update(module, site, FedAvg(StrategyConfig()), LocalRound("a", 1)).metrics["loss"]

    own = start(tiny_spec(), "guidance")
    load_state(own.network, guidance)
    plain, same, other = update(None), update(guidance_table(own, site)), update(told(site, 7.0, spec))
    assert plain == pytest.approx(same, rel=1e-3) and plain != pytest.approx(other, rel=1e-2)


def test_rows_of_a_table_are_found_by_number_whatever_their_order():
    keys = np.array([50, 10, 30], np.uint64)
    table = GuidanceTable(keys, torch.tensor([[5.0], [1.0], [3.0]]), torch.zeros(3, 1), torch.zeros(3, 1, 3, 2, 2))
    assert table.at(np.array([10, 50], np.uint64))[0].flatten().tolist() == [1.0, 5.0]
    with pytest.raises(ValueError, match="same image"):
        joined([table, table])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=12), st.integers(2, 6), st.integers(0, 99))
def test_a_groups_images_are_in_one_fold_whoever_else_is_there(groups, count, seed):
    folds = fold_of(np.array(groups, dtype=object), count, seed)
    assert ((folds >= 0) & (folds < count)).all()
    whole = {group: fold_of(np.array([group], dtype=object), count, seed)[0] for group in groups}
    assert folds.tolist() == [whole[group] for group in groups]


def test_nobody_but_the_experiment_cross_fits():
    spec = spec_of()
    stages = replace(spec.stages, diffusion=replace(spec.stages.diffusion, crossfit=2))
    check_crossfit(spec.stages)
    with pytest.raises(ConfigError, match="crossfit"):
        check_crossfit(stages)
    with pytest.raises(ConfigError, match="crossfit"):
        RunSpec.from_json(replace(spec, stages=stages).to_json())
