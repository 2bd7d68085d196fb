"""The sum of clipped gradients of a chunk of units by one pass forward and one backward.

The same as :func:`fed_diffmic.privacy.per_sample.clipped_sum` of
:func:`fed_diffmic.privacy.per_sample.unit_gradients`, which take each unit through the network by itself. Here all
images of a chunk go through it together, and norms and sums follow from what each layer took in and got back
(:mod:`fed_diffmic.privacy.ghost.uses`). That is right only where no image has an effect on another one's loss, and
where every use of a parameter is followed: the tape finds the second
(:meth:`fed_diffmic.privacy.ghost.tape.Tape.missed`), and :mod:`fed_diffmic.privacy.ghost.proof` tries both before a
network is trained so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fed_diffmic.privacy import per_sample
from fed_diffmic.privacy.ghost.layout import Layout
from fed_diffmic.privacy.ghost.rules import RULES
from fed_diffmic.privacy.ghost.tape import Tape
from fed_diffmic.privacy.ghost.uses import Rows, Use, by_tokens, squared_norms
from fed_diffmic.privacy.per_sample import Units, losses_of, trained
from fed_diffmic.training.stage import Batch, StageModule


class Ghost:
    """Norms of units' gradients, and what their weighted sum is made of.

    Attributes:
        norms: L2 norm over all parameters of each unit's gradient, ``(U,)`` float64.
        squares: squared norm of each parameter's part, by name, ``(U,)`` float64; of those that a gradient reaches.
        layout: whose the images are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], layout: Layout, losses: Callable[[], Tensor]) -> None:
        """Forward and backward.

        Args:
            parameters: trained ones, by name.
            layout: whose the images are.
            losses: computes each image's loss, ``(N,)``; a unit's is the mean over its images.

        Raises:
            CannotTapeError: a parameter is used in a way that is not known.
        """
        self.layout = layout
        self.squares: dict[str, Tensor] = {}
        self._uses: dict[str, list[Use]] = {}
        tape = Tape(parameters, layout, RULES, self._finish)
        with tape:
            found = losses()
        counts = torch.tensor(layout.counts, dtype=torch.float64, device=layout.device)
        tape.backward((found * (1 / counts).to(found.dtype)[layout.of]).sum())
        self.norms = sum(self.squares.values(), start=torch.zeros_like(counts)).clamp_min(0).sqrt()

    def _finish(self, name: str, uses: list[Use]) -> None:
        """All uses of one parameter are there: its part of the norms, and what its sum needs."""
        if not uses:
            return
        tokens = by_tokens(uses, self.layout)
        if tokens:
            self.squares[name] = squared_norms(tokens, self.layout)
        else:
            whole = uses[0].product(self.layout)
            for use in uses[1:]:
                whole = whole + use.product(self.layout)
            self.squares[name] = per_sample.squares(whole)
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


def ghost_of(module: StageModule, units: Units) -> Ghost:
    """Norms of the units' gradients, and what their sum is made of.

    Raises:
        CannotTapeError: the network uses a parameter in a way that is not known.
    """
    filled = units.mask > 0
    layout = Layout(tuple(int(count) for count in filled.sum(dim=1).tolist()), filled.device)
    batch = Batch(_columns(units.inputs, filled), units.labels[filled], units.offset)
    draws = tuple(drawn[filled] for drawn in units.draws)
    return Ghost(trained(module), layout, lambda: losses_of(module, batch, draws))


def clipped_sums(module: StageModule, units: Units, bound: float) -> Iterator[tuple[str, Tensor]]:
    """Sum over the units of their gradients, each scaled to a norm of at most ``bound``, one parameter after the other.

    A unit whose gradient is not finite contributes nothing; where there is one the chunk is computed again without it,
    until all are: rounding changes with the chunk, and may take a unit that was finite past the largest number.
    Parameters that no gradient reaches are left out.

    Raises:
        CannotTapeError: the network uses a parameter in a way that is not known.
    """
    which = (units.mask > 0).any(dim=1)
    while len(units := some(units, which)):
        ghost = ghost_of(module, units)
        which = torch.isfinite(ghost.norms)
        if bool(which.all()):
            return ghost.sums(per_sample.clip_factors(ghost.norms, bound))
        del ghost
    return iter(())


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
