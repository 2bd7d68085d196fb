"""Rounds at a stage's end that nobody judged though earlier ones were: a site of the run's sums of figures is gone.

The best judged round stays the stage's result, for which of the later ones is better nobody knows. What they came to
is not lost: the last weights lie beside the model, and another run can begin from them (``stages.*.init``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.files import save_tensors
from server.history import Row
from server.stage import StageWork

FOLDER = "last"


def rounds_unjudged(history: Sequence[Row], stage: str) -> int:
    """How many rounds of a stage came after its last judged one; 0 where none of its rounds was judged."""
    said = [bool(row["mean"]) for row in history if row["stage"] == stage]
    return said[::-1].index(True) if any(said) else 0


def keep_last(folder: Path, work: StageWork, history: Sequence[Row]) -> dict[str, Any]:
    """Write the last round's weights where rounds after the best one were not judged.

    Args:
        folder: of the run.
        work: the stage, which is over.
        history: of the run, the stage's last round in it.

    Returns:
        facts of the stage's end: ``unjudged``, how many rounds, and ``last``, the file below the folder; empty where
        the last round was judged, or is the stage's result all the same.
    """
    progress = work.progress
    count = rounds_unjudged(history, progress.name)
    if not count or progress.best_round == progress.round:
        return {}
    name = f"{FOLDER}/{progress.name}.safetensors"
    (folder / FOLDER).mkdir(exist_ok=True)
    # As it would have been judged: the moving average where there is one.
    save_tensors(folder / name, {**progress.frozen, **(progress.average or progress.current)})
    return {"unjudged": count, "last": name}
