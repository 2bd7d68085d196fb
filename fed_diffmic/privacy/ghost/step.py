"""The sum of clipped gradients of a chunk of units by one pass forward and one backward.

The same as :func:`fed_diffmic.privacy.per_sample.clipped_sum` of
:func:`fed_diffmic.privacy.per_sample.unit_gradients`, which take each unit through the network by itself. Here all images
of a chunk go through it together, and norms and sums follow from what each layer took in and got back
(:mod:`fed_diffmic.privacy.ghost.uses`). That is right only where no image has an effect on another one's loss, and where
every use of a parameter is followed: the tape finds the second (:meth:`fed_diffmic.privacy.ghost.tape.Tape.missed`),
:mod:`fed_diffmic.privacy.ghost.proof` tries both before a network is trained so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fed_diffmic.privacy.ghost.layout import Layout
from fed_diffmic.privacy.ghost.rules import RULES
from fed_diffmic.privacy.ghost.tape import Tape
from fed_diffmic.privacy.ghost.uses import Rows, Use, by_tokens, squared_norms
from fed_diffmic.privacy.per_sample import MARGIN, Units, losses_of, trained
from fed_diffmic.training.stage import Batch, StageModule


class Ghost:
    """Norms of a chunk's unit gradients, and what their weighted sum is made of.

    Attributes:
        norms: L2 norm over all parameters of each unit's gradient, ``(U,)`` float64.
        layout: whose the images are.
    """

    def __init__(self, module: StageModule, units: Units) -> None:
        """Forward and backward.

        Raises:
            CannotTapeError: the network uses a parameter in a way that is not known.
        """
        filled = units.mask > 0
        counts = tuple(int(count) for count in filled.sum(dim=1).tolist())
        self.layout = Layout(counts, filled.device)
        self._uses: dict[str, list[Use]] = {}
        self._squares = torch.zeros(len(counts), dtype=torch.float64, device=filled.device)
        tape = Tape(trained(module), self.layout, RULES, self._finish)
        with tape:
            losses = losses_of(module, _images(units, filled), tuple(drawn[filled] for drawn in units.draws))
        share = (1 / filled.sum(dim=1)).to(losses.dtype)[self.layout.of]
        tape.backward((losses * share).sum())
        self.norms = self._squares.clamp_min(0).sqrt()

    def _finish(self, name: str, uses: list[Use]) -> None:
        """All uses of one parameter are there: its part of the norms, and what its sum needs."""
        if not uses:
            return
        tokens = by_tokens(uses, self.layout)
        if tokens:
            self._squares += squared_norms(tokens, self.layout)
        else:
            whole = uses[0].product(self.layout)
            for use in uses[1:]:
                whole = whole + use.product(self.layout)
            self._squares += whole.flatten(1).square().sum(dim=1).double()
            uses = [Rows(whole)]
        self._uses[name] = uses

    def sums(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Weighted sums of the units' gradients, one parameter after the other; what each was made of is let go.

        Args:
            factors: of the units, ``(U,)``.
        """
        for name in list(self._uses):
            uses = self._uses.pop(name)
            total = uses[0].weighted(factors, self.layout)
            for use in uses[1:]:
                total += use.weighted(factors, self.layout)
            yield name, total


def clipped_sums(module: StageModule, units: Units, bound: float) -> Iterator[tuple[str, Tensor]]:
    """Sum over the units of their gradients, each scaled to a norm of at most ``bound``, one parameter after the other.

    A unit whose gradient is not finite contributes nothing; where there is one the chunk is computed again without it.
    Parameters that no gradient reaches are left out.

    Raises:
        CannotTapeError: the network uses a parameter in a way that is not known.
    """
    ghost = Ghost(module, units)
    finite = torch.isfinite(ghost.norms)
    if not bool(finite.all()):
        del ghost
        units = some(units, finite)
        if not len(units):
            return
        ghost = Ghost(module, units)
        finite = torch.isfinite(ghost.norms)
    size = torch.where(finite, ghost.norms, torch.inf)
    yield from ghost.sums((bound * (1 - MARGIN) / size.clamp_min(1e-30)).clamp_max(1.0))


def some(units: Units, which: Tensor) -> Units:
    """Some of the units: ``which (U,)`` bool."""
    return replace(
        units,
        inputs=_columns(units.inputs, which),
        labels=units.labels[which],
        draws=tuple(drawn[which] for drawn in units.draws),
        mask=units.mask[which],
    )


def _columns(inputs: Any, which: Tensor) -> Any:
    return inputs[which] if isinstance(inputs, Tensor) else type(inputs)(*(column[which] for column in inputs))


def _images(units: Units, filled: Tensor) -> Batch:
    """All images of all units in a row."""
    return Batch(_columns(units.inputs, filled), units.labels[filled], units.offset)
