"""The coordinator's durable state: a pointer that names files by digest, and the final model.

``checkpoints/state.json`` is renamed into place last, after every file that it names: a kill at any
moment leaves either the old round or the new one. Tensor files are named by their own digest, so
what did not change is not written again, and what is torn is noticed. The round before stays
readable through ``previous.json``, which is the pointer of before under another name. The rounds' metrics are lines of
``history.jsonl`` (:mod:`server.kept_history`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.exchange.audit import Head
from fed_diffmic.files import load_tensors, map_tensors, read_json, save_tensors, tensors_digest, write_json
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.sureness import Sureness
from server.hooks import Hooks
from server.kept_history import KeptHistory
from server.provenance import provenance_facts
from server.run_state import RunState, StageProgress

FORMAT = 2
OLD = 1
"""The pointer holds the history itself; read, never written."""

GROUPS = ("frozen", "current", "residual", "average", "best", "algorithm", "candidate")
LAID_DOWN = ("frozen", "residual", "average", "best", "algorithm", "candidate")
"""What is read from its file while the sites train; the round's weights are sent and measured against."""


class CheckpointStore:
    """Checkpoints and final model of one run in one folder.

    Args:
        folder: created if it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self._pointer = self.checkpoints / "state.json"
        self._previous = self.checkpoints / "previous.json"
        self._history = KeptHistory(self.checkpoints / "history.jsonl")
        self._last: dict[str, Any] | None = None
        self._known: dict[str, Tensors] = {}
        self._whole = False

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._pointer.exists() or self._previous.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            MachineError: another process works here, or the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.checkpoints / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise MachineError(
                f"another process is working in {self.folder}", "Wait until it ends, or choose another run.dir."
            ) from error
        except OSError as error:
            raise MachineError(
                f"{self.folder} cannot be used: {error.strerror}", "Choose a run.dir you may write to."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def load(self) -> RunState | None:
        """The newest readable state, or none if no run was started here.

        Raises:
            ModelFileError: neither the last round nor the one before can be read whole.
        """
        first: ModelFileError | None = None
        for pointer in (self._pointer, self._previous):
            if not pointer.exists():
                continue
            try:
                found = self._read(pointer)
                self._whole = pointer == self._pointer
                return found
            except ModelFileError as error:
                first = first or error
        if first is not None:
            raise ModelFileError(
                f"no checkpoint in {self.checkpoints} is whole: {first.cause}",
                "Start the run again in another run.dir.",
            ) from first
        return None

    def save(self, run_state: RunState) -> None:
        """Make ``run_state`` the one that a resumed run continues from; keeps the one before.

        Raises:
            MachineError: no space, no permission.
        """
        value: dict[str, Any] = {
            "format": FORMAT,
            **{k: v for k, v in vars(run_state).items() if k not in ("results", "progress", "history")},
        }
        value["history"] = self._history.keep(run_state.history)
        value["results"] = {stage: self._put(tensors) for stage, tensors in run_state.results.items()}
        value["progress"] = None
        if run_state.progress is not None:
            facts = {k: v for k, v in vars(run_state.progress).items() if k not in GROUPS}
            value["progress"] = {**facts, **{g: self._put(getattr(run_state.progress, g)) for g in GROUPS}}
        if self._whole:  # one that was found damaged does not become the second chance
            self._set_aside()
        write_json(self._pointer, value, indent=None)
        self._whole = True
        self._collect([value, self._last or value])
        self._last = value
        if run_state.progress is not None:
            self._lay_down(run_state.progress, value["progress"])

    def _set_aside(self) -> None:
        """The pointer becomes the one of the round before; until the next one is there, a resumed run goes on from it.

        Raises:
            MachineError: no permission.
        """
        try:
            self._pointer.replace(self._previous)
        except OSError as error:
            raise MachineError(
                f"cannot rename {self._pointer.name} in {self.checkpoints}: {error.strerror}",
                "Choose a run.dir you may write to.",
            ) from error

    def finish(
        self,
        run_state: RunState,
        spec: RunSpec,
        calibration: dict[str, Calibration],
        hooks: Hooks | None = None,
        matrix: Mapping[str, Mapping[str, Any]] | None = None,
        heads: Mapping[str, Head] | None = None,
        sureness: Mapping[str, Sureness] | None = None,
        together: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> FinalModel:
        """Write ``final/``, signed where the coordinator has a key, and read it back.

        Args:
            matrix: metrics on the sites' test images.
            heads: of the sites' chains, as each last said.
            sureness: of the stages whose prediction sets and uncertainty are known.
            together: figures over test images of several sites together.
        """
        hooks = hooks or Hooks()
        digests = {stage: tensors_digest(tensors) for stage, tensors in run_state.results.items()}
        model = FinalModel(
            spec,
            run_state.results,
            calibration,
            run_state.history,
            run_state.bytes_sent,
            digests,
            personal=run_state.personal,
            matrix={stage: dict(row) for stage, row in (matrix or {}).items()},
            sureness=dict(sureness or {}),
            together={stage: dict(figures) for stage, figures in (together or {}).items()},
        )
        facts = None if hooks.signer is None else provenance_facts(run_state, spec, hooks.head(), heads or {})
        write_final(self.folder, model, signer=hooks.signer, facts=facts)
        return load_final(self.folder, public_key=hooks.public_key)

    def _lay_down(self, progress: StageProgress, digests: Mapping[str, Any]) -> None:
        """Leave to the files what the next round's training does not need: their digests are known from here on."""
        for group in LAID_DOWN:
            tensors, digest = getattr(progress, group), digests[group]
            if digest and tensors is not self._known.get(digest):
                self._known[digest] = map_tensors(self._file(digest))
                setattr(progress, group, self._known[digest])
        named = {digests[group] for group in LAID_DOWN}
        self._known = {digest: tensors for digest, tensors in self._known.items() if digest in named}

    def _put(self, tensors: Tensors) -> str:
        if not tensors:
            return ""
        for digest, known in self._known.items():
            if tensors is known and self._file(digest).exists():
                return digest
        digest = tensors_digest(tensors)
        path = self._file(digest)
        if not path.exists():
            save_tensors(path, tensors)
        return digest

    def _get(self, digest: str) -> Tensors:
        if not digest:
            return {}
        path = self._file(digest)
        try:
            tensors = load_tensors(path)
            if tensors_digest(tensors) != digest:
                raise ModelFileError(f"{path} does not hold what its name says")
        except ModelFileError:
            if path.exists():  # set aside, or the same weights would never be written again
                path.replace(path.with_suffix(".damaged"))
            raise
        return tensors

    def _file(self, digest: str) -> Path:
        return self.checkpoints / f"{digest}.safetensors"

    def _read(self, pointer: Path) -> RunState:
        value = read_json(pointer)
        try:
            if value["format"] not in (OLD, FORMAT):
                raise ModelFileError(f"{pointer} was written by another version")
            history = value["history"] if value["format"] == OLD else self._history.read(value["history"])
            results = {stage: self._get(digest) for stage, digest in value["results"].items()}
            progress = value["progress"]
            if progress is not None:
                filled: dict[str, Any] = {k: self._get(v) if k in GROUPS else v for k, v in progress.items()}
                progress = StageProgress(**filled)
            plain = {k: v for k, v in value.items() if k not in ("format", "results", "progress", "history")}
            run_state = RunState(**plain, results=results, progress=progress, history=history)
        except (AttributeError, KeyError, TypeError) as error:
            raise ModelFileError(f"{pointer} lacks fields or has others") from error
        self._last = value
        return run_state

    def _collect(self, pointers: list[dict[str, Any]]) -> None:
        """Remove tensor files that no pointer names, and what a kill left half-written."""
        named = {digest for value in pointers for digest in value["results"].values()}
        named |= {(value["progress"] or {}).get(group) for value in pointers for group in GROUPS}
        for path in self.checkpoints.glob("*.safetensors"):
            if path.stem not in named:
                path.unlink(missing_ok=True)
        for path in self.checkpoints.glob(".*.part"):
            path.unlink(missing_ok=True)
