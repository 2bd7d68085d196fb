"""Denoiser (latent diffusion head): predicts the noise in every cell of the label map.

Everything in it acts on one cell at a time (once normalisation uses fixed statistics, or group norm
inside the cell), so it works on rows of cells: ``N = K * K`` in training, the ``K`` distinct ones
when sampling. A 1x1 convolution over the grid is a linear layer over those rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_diffmic.models.diffusion import alphas_cumprod, residual_base
from fed_diffmic.models.normalisation import row_norm
from fed_diffmic.models.packed import Product, packed


class DenoiserBlock(nn.Module):
    """``softplus(norm(linear(x) * table[t]))`` for each cell.

    Args:
        channels_in: channels that come in.
        latent: ``D``.
        timesteps: ``T``; the table has ``T + 1`` rows, as in the paper's code.
        norm: ``batch`` or ``group``.
    """

    def __init__(self, channels_in: int, latent: int, timesteps: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Linear(channels_in, latent)
        self.timestep_table = nn.Embedding(timesteps + 1, latent)
        self.norm = row_norm(norm, latent)
        # Ones: at first all timesteps share one network. Torch's normal draw makes each of the T rows a
        # network of its own, which a few thousand steps cannot teach (benchmarks/timestep_table.py).
        nn.init.ones_(self.timestep_table.weight)

    def forward(self, x: Tensor, t: Tensor, product: Product | None = None) -> Tensor:
        """Cells ``(B, N, channels_in)`` at timesteps ``(B, N)`` to ``(B, N, D)``.

        Args:
            product: what ``conv`` computes, in another way; none: itself.
        """
        scaled = (product or self.conv)(x) * self.timestep_table(t)
        return F.softplus(self.norm(scaled.flatten(0, 1)).unflatten(0, t.shape))


class Denoiser(nn.Module):
    """Three blocks, the image prior multiplied in after the first, and a linear head.

    Args:
        num_classes: ``C``.
        latent: ``D`` (paper 6144).
        timesteps: ``T`` (paper 1000).
        norm: ``batch`` or ``group``.
    """

    def __init__(self, num_classes: int, latent: int, timesteps: int, norm: str) -> None:
        super().__init__()
        self.block1 = DenoiserBlock(2 * num_classes, latent, timesteps, norm)
        self.block2 = DenoiserBlock(latent, latent, timesteps, norm)
        self.block3 = DenoiserBlock(latent, latent, timesteps, norm)
        self.head = nn.Linear(latent, num_classes)

    def products(self, uses: int) -> tuple[Product, Product]:
        """The two large products, for so many calls of :meth:`cells` with the same weights."""
        return packed(self.block2.conv, uses), packed(self.block3.conv, uses)

    def cells(
        self,
        guidance: Tensor,
        y_t: Tensor,
        t: Tensor,
        prior: Tensor,
        products: tuple[Product | None, Product | None] = (None, None),
    ) -> Tensor:
        """Predicted noise of ``N`` cells.

        Args:
            guidance: ``(B, N, C)``.
            y_t: noisy labels, ``(B, N, C)``.
            t: timesteps, ``(B, N)`` int64.
            prior: ``F (B, D)``.
            products: of :meth:`products`.

        Returns:
            ``(B, N, C)``.
        """
        x = self.block1(torch.cat([guidance, y_t], dim=2), t)
        x = self.block2(x * prior.unsqueeze(1), t, products[0])
        noise: Tensor = self.head(self.block3(x, t, products[1]))
        return noise

    def forward(self, guidance_map: Tensor, y_t: Tensor, t: Tensor, prior: Tensor) -> Tensor:
        """Predicted noise ``(B, C, K, K)`` from ``M`` and ``y_t (B, C, K, K)``, ``t (B, K, K)`` and ``F (B, D)``."""
        grid = t.shape[1:]
        noise = self.cells(rows(guidance_map), rows(y_t), t.flatten(1), prior)
        return noise.transpose(1, 2).unflatten(2, grid)


class ResidualDenoiser(Denoiser):
    """A denoiser about the guidance network's probabilities: its layers predict what those leave of the noise.

    Fresh, it predicts the best linear estimate that the probabilities allow
    (:func:`fed_diffmic.models.diffusion.residual_base`), for its last layer is 0.

    Args:
        num_classes, latent, timesteps, norm: as for :class:`Denoiser`.
        multilabel: labels are independent of each other: probabilities are sigmoids, not a softmax.
    """

    alphas_cumprod: Tensor

    def __init__(self, num_classes: int, latent: int, timesteps: int, norm: str, *, multilabel: bool) -> None:
        super().__init__(num_classes, latent, timesteps, norm)
        self.multilabel = multilabel
        self.register_buffer("alphas_cumprod", alphas_cumprod(timesteps), persistent=False)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def cells(
        self,
        guidance: Tensor,
        y_t: Tensor,
        t: Tensor,
        prior: Tensor,
        products: tuple[Product | None, Product | None] = (None, None),
    ) -> Tensor:
        """As :meth:`Denoiser.cells`; the guidance are logits."""
        base, deviation = self._about(guidance, y_t, t)
        return base + deviation * super().cells(guidance, y_t, t, prior, products)

    def deviation(self, guidance_map: Tensor, t: Tensor) -> Tensor:
        """Standard deviation of what the guidance leaves of the noise, ``(B, C, K, K)``: the unit of the loss.

        Args:
            guidance_map: ``M (B, C, K, K)``.
            t: ``(B, K, K)`` int64.
        """
        guidance = rows(guidance_map)
        _, found = self._about(guidance, torch.zeros_like(guidance), t.flatten(1))
        return found.transpose(1, 2).unflatten(2, t.shape[1:])

    def _about(self, guidance: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits = guidance.float() if guidance.dtype in (torch.float16, torch.bfloat16) else guidance
        guess = torch.sigmoid(logits) if self.multilabel else torch.softmax(logits, dim=2)
        return residual_base(y_t, guess, self.alphas_cumprod[t].unsqueeze(2).to(guess.dtype))


class PriorClassifier(nn.Module):
    """In a denoiser's place, no diffusion: a linear classifier on the image prior alone.

    What a head is to be held against: the same encoders, trained as long, without a sampler.

    Args:
        num_classes: ``C``.
        latent: ``D``.
    """

    def __init__(self, num_classes: int, latent: int) -> None:
        super().__init__()
        self.head = nn.Linear(latent, num_classes)

    def forward(self, prior: Tensor) -> Tensor:
        """Logits ``(B, C)`` from ``F (B, D)``."""
        logits: Tensor = self.head(prior)
        return logits


def rows(grid: Tensor) -> Tensor:
    """A map ``(B, C, K, K)`` as rows of cells ``(B, K * K, C)``."""
    return grid.flatten(2).transpose(1, 2)
