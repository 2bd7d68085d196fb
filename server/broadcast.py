"""How the global weights cross to the sites: nothing twice, coded where the run says so, with what coding leaves out.

All sites hold the same bits, and the coordinator's own notion of them is what they decode: after each aggregation its
difference to what was trained from is coded, and the round's global weights **become what that is decoded to**. What
coding left out is added to the next aggregate (``StageProgress.residual``; both directions so: Tang et al. 2019,
DoubleSqueeze, Algorithm 1). Everything after it (judgement, choice, checkpoint, audit log, final model) is about those.

Weights that a round's evaluation sent are those of the next round's training, which names them by digest only. With a
moving average (``stages.*.ema``) they differ: the average is judged, the weights are trained from, and both cross, each
coded as a difference to what the round was trained from. An algorithm's own tensors go to the sites exactly.
"""

from __future__ import annotations

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.codecs import Codec, Coded, code
from fed_diffmic.files import tensors_digest
from server.exchange import Parcel
from server.stage import StageWork, moving_average


class Broadcast:
    """One stage's global weights on their way out.

    Args:
        codec: the run's.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._moved: Parcel | None = None

    def trained_from(self, work: StageWork) -> Parcel | None:
        """What is first sent of the next round's weights; none: everything."""
        progress, own = work.progress, work.algorithm.broadcast(work.progress.current, work.progress.algorithm)
        if progress.round == 0:
            return None
        if not work.config.ema:
            return Parcel(own, held=tensors_digest(progress.current))
        moved, self._moved = self._moved, None  # a resumed run no longer has it
        return None if moved is None else Parcel({**moved.tensors, **own}, reference=moved.reference)

    def settle(self, work: StageWork, sent: Tensors) -> tuple[Tensors, Parcel]:
        """Turn a round's aggregate into what the sites will hold of it, written into the stage's progress.

        Args:
            work: the stage; its ``round`` still counts the rounds before.
            sent: the tensors that the round was trained from, the algorithm's own included.

        Returns:
            the weights that are judged next, and what is first sent of them.

        Raises:
            RoundError: the aggregate moved further than can be coded.
        """
        progress, ema = work.progress, work.config.ema
        named = tensors_digest(sent) if self._codec.lossy else ""
        made = self._coded(work, progress.current, sent, progress.residual)
        progress.current, progress.residual = made.decoded, made.residual
        progress.average = moving_average(progress.average, progress.current, ema)
        moved = Parcel(made.travels, reference=named)
        if not ema:
            return progress.current, moved
        self._moved = moved
        judged = self._coded(work, progress.average, sent, {})
        return judged.decoded, Parcel(judged.travels, reference=named)

    def _coded(self, work: StageWork, tensors: Tensors, sent: Tensors, residual: Tensors) -> Coded:
        try:
            return code(self._codec, tensors, sent, residual)
        except ValueError as error:
            where = f"stage {work.progress.name}, round {work.progress.round + 1}"
            raise RoundError(f"{where}: {error}", "Lower the learning rates, or use strategy.codec=float32.") from error


def known_already(weights: Tensors) -> Parcel:
    """Weights that the sites may keep from before: only their name is sent first."""
    return Parcel({}, held=tensors_digest(weights))
