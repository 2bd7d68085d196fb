"""What of the coordinator's part must outlive a kill: how many attempts a round had, and a sum whose set is frozen.

Sites sign one set for a round, so a coordinator that is ended between the set and the unmasking must come back with
that very set and the masked words behind it; there is no other way to the round's sum. Before the set nothing needs to
be kept but the number of the attempt: the next one must be a new one, because sites take the old for what it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.payload import PayloadError
from fed_diffmic.files import load_tensors, private_folder, read_json, save_tensors, tensors_digest, write_json
from fed_diffmic.provision.keys import PublicKey

_FACTS, _WORDS, _FINISHED = "masked.json", "masked.safetensors", "finished.json"
Where = tuple[str, str, str, str, int]


class KeptSum:
    """The one masked sum that a coordinator is at, in a private folder of its run.

    Args:
        folder: made (0700) where it is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def begin(self, where: Where) -> int:
        """The number of the next attempt at a sum: from 1, and never one that was begun before. On disk on return.

        Args:
            where: run, arm, stage, purpose and round.

        Raises:
            ModelFileError: what was kept cannot be read, or the round's set is frozen: it is to be resumed.
            MachineError: it cannot be written.
        """
        before = self._read()
        same = before is not None and before["where"] == list(where)
        if before is not None and same and before["frozen"] is not None:
            raise ModelFileError(
                "the sites may have signed a set for this round: it has no other attempt",
                "Resume it; the set and the masked words are in the run's folder.",
            )
        attempt = 1 + (before["attempt"] if before is not None and same else 0)
        self._write({"where": list(where), "attempt": attempt, "frozen": None})
        return attempt

    def freeze(self, masked: MaskedSum, told: Mapping[str, Any] | None = None) -> str:
        """The set of a sum, to be signed; with the words behind it on disk on return.

        Args:
            told: what the sites said besides their words, which is not said again (JSON values).

        Raises:
            RoundError: too few words came.
            MachineError: it cannot be written.
        """
        text = masked.freeze()
        total = {"total": masked.total.view(f"<i{masked.total.dtype.itemsize}")}
        save_tensors(private_folder(self.folder) / _WORDS, total)  # first: what names them must find them
        facts = {**masked.to_json(), "words": tensors_digest(total), "told": dict(told or {})}
        session = masked.session
        where = [*session.place, session.round]
        self._write({"where": where, "attempt": session.attempt, "frozen": facts})
        return text

    def resume(self, where: Where, roster: Mapping[str, PublicKey]) -> tuple[MaskedSum, dict[str, Any]] | None:
        """The sum of that round as it was frozen, and what the sites had said besides.

        None: its set was not frozen, and a new attempt may begin.

        Raises:
            ModelFileError: what was kept cannot be read or does not belong together.
        """
        value = self._read()
        if value is None or value["where"] != list(where) or value["frozen"] is None:
            return None
        facts, words = value["frozen"], load_tensors(self.folder / _WORDS)
        try:
            if set(words) != {"total"} or tensors_digest(words) != facts["words"]:
                raise ModelFileError("the masked words are not those of the set")
            total: np.ndarray = words["total"]
            return MaskedSum.resume(facts, total.view(f"<u{total.dtype.itemsize}"), roster), dict(facts["told"])
        except (PayloadError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"the masked sum that is kept in {self.folder} cannot be resumed: {error}",
                "Restore the folder from the backup; without it the round cannot be unmasked.",
            ) from error

    def forget(self) -> None:
        """The round's sum is known, and in a checkpoint: its words are not needed any more, its number stays."""
        value = self._read()
        if value is not None:
            self._write({**value, "frozen": None})
        (self.folder / _WORDS).unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / _FACTS
        if not path.exists():
            return None
        value = read_json(path)
        if not isinstance(value, dict) or set(value) != {"where", "attempt", "frozen"}:
            raise ModelFileError(f"{path} is not what a masked sum is kept in", "Restore it from the backup.")
        return value

    def _write(self, value: dict[str, Any]) -> None:
        write_json(private_folder(self.folder) / _FACTS, value, mode=0o600)


class FinishedSums:
    """What sums of finished stages said.

    Each is given once in a run, so a coordinator that is ended behind one, and asks from the first on again, must know.

    Args:
        folder: made (0700) where it is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def get(self, where: Where, task: str) -> tuple[dict[str, float], tuple[str, ...]] | None:
        """What a sum said and the names of the sites in it; none: it is not known, or was of another task.

        Raises:
            ModelFileError: what was kept cannot be read.
        """
        for one in self._read():
            if (one["where"], one["task"]) == (list(where), task):
                return dict(one["said"]), tuple(one["among"])
        return None

    def add(self, where: Where, task: str, said: Mapping[str, float], among: Sequence[str]) -> None:
        """Keep what a sum said. On disk on return.

        Args:
            where: run, arm, stage, purpose and round.
            task: of the sum's session: digest of the weights, the settings and the form of words.

        Raises:
            MachineError: it cannot be written.
        """
        one = {"where": list(where), "task": task, "said": dict(said), "among": list(among)}
        write_json(private_folder(self.folder) / _FINISHED, [*self._read(), one], mode=0o600)

    def _read(self) -> list[dict[str, Any]]:
        path = self.folder / _FINISHED
        value = read_json(path) if path.exists() else []
        names = {"where", "task", "said", "among"}
        if not isinstance(value, list) or not all(isinstance(one, dict) and set(one) == names for one in value):
            raise ModelFileError(f"{path} does not hold sums of finished stages", "Restore it from the backup.")
        return value
