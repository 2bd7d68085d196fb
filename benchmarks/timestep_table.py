"""Which start of the denoiser's timestep tables learns: ones, uniform draws, or torch's normal draws.

The head is trained on drawn features (a guidance network that is right about half the time, embeddings
that carry the class) and its prediction is scored on fresh ones, for each start and normalisation.

    python benchmarks/timestep_table.py [--steps 300 1000] [--seeds 2]
"""

from __future__ import annotations

import argparse

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from fed_diffmic.models.denoiser import Denoiser
from fed_diffmic.models.diffusion import alphas_cumprod, ddim_schedule, ddim_step, diffusion_loss, forward_diffusion
from fed_diffmic.models.guidance import cells_to_map, guidance_cells
from fed_diffmic.models.prior import PriorFusion

C, K, D, T, S = 5, 4, 128, 1000, 10
IMAGES, BATCH = 1000, 32
STARTS = {"ones": nn.init.ones_, "uniform": nn.init.uniform_, "normal": nn.init.normal_}


class Head(nn.Module):
    """Fusion and denoiser on given embeddings."""

    def __init__(self, start: str, norm: str) -> None:
        super().__init__()
        self.fusion = PriorFusion(D, K, norm)
        self.denoiser = Denoiser(C, D, T, norm)
        for block in (self.denoiser.block1, self.denoiser.block2, self.denoiser.block3):
            STARTS[start](block.timestep_table.weight)


def draw(seed: int) -> tuple[Tensor, ...]:
    """Labels ``(N,)``, logits ``(N, C)`` twice, embeddings ``(N, D)`` and ``(N, K, D)``."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(C, D, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(C, (IMAGES,), generator=g)
    one_hot = torch.eye(C)[labels]
    y_global = one_hot + torch.randn(IMAGES, C, generator=g)
    y_local = 0.7 * one_hot + torch.randn(IMAGES, C, generator=g)
    whole = 0.2 * one_hot @ directions + torch.randn(IMAGES, D, generator=g)
    regions = (0.15 * one_hot @ directions).unsqueeze(1) + torch.randn(IMAGES, K, D, generator=g)
    return labels, y_global, y_local, whole, regions


def score(head: Head, data: tuple[Tensor, ...]) -> float:
    """Macro AUROC of the sampled prediction."""
    labels, y_global, y_local, whole, regions = data
    g = torch.Generator().manual_seed(3)
    head.eval()
    with torch.no_grad():
        prior, guidance = head.fusion(whole, regions), guidance_cells(y_global, y_local, K)
        y = guidance_cells(torch.rand(IMAGES, C, generator=g), torch.rand(IMAGES, C, generator=g), K)
        for step, a, previous in ddim_schedule(T, S):
            y = ddim_step(y, head.denoiser.cells(guidance, y, torch.full((IMAGES, K), step), prior), a, previous)
    head.train()
    return float(roc_auc_score(labels, torch.softmax(y.mean(dim=1), dim=1).numpy(), multi_class="ovr"))


def train(
    start: str, norm: str, steps: list[int], seed: int, data: tuple[Tensor, ...], fresh: tuple[Tensor, ...]
) -> list[float]:
    """AUROC after each number of steps."""
    torch.manual_seed(seed)
    head, abar, scores = Head(start, norm), alphas_cumprod(T), []
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
    for number in range(1, max(steps) + 1):
        index = torch.randint(IMAGES, (BATCH,))
        labels, y_global, y_local, whole, regions = (part[index] for part in data)
        t, noise = torch.randint(T, (BATCH, K, K)), torch.randn(BATCH, C, K, K)
        y_t = forward_diffusion(torch.eye(C)[labels], t, noise, abar)
        guidance = cells_to_map(guidance_cells(y_global, y_local, K))
        predicted = head.denoiser(guidance, y_t, t, head.fusion(whole, regions))
        fused = (y_global + y_local) / 2
        optimizer.zero_grad()
        diffusion_loss(predicted, noise, labels, fused, 10.0, 1.0, "multiclass").backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        if number in steps:
            scores.append(score(head, fresh))
    return scores


def main() -> None:
    """Print AUROC for each start, normalisation and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, fresh = draw(0), draw(1)
    logits = torch.softmax((fresh[1] + fresh[2]) / 2, dim=1)
    print(f"guidance alone: AUROC {roc_auc_score(fresh[0], logits.numpy(), multi_class='ovr'):.3f}")
    for norm in ("batch", "group"):
        for start in STARTS:
            for seed in range(options.seeds):
                scores = train(start, norm, options.steps, seed, data, fresh)
                steps = ", ".join(f"{s} steps {a:.3f}" for s, a in zip(options.steps, scores, strict=True))
                print(f"{norm} norm, {start:7} seed {seed}: AUROC after {steps}", flush=True)


if __name__ == "__main__":
    main()
