"""What a site keeps on its own disk between rounds: bases, weights it was sent, declared state, the last update.

Everything here derives from patients' data or may come to: the folder is 0700. Files are written
atomically and named by digest; what is torn is noticed and counts as absent, which is safe: a base
is sent again, an update is computed again, equal bit for bit, from the state kept before it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, Wire, body_of, decode, pack, text_digest
from fed_diffmic.files import load_tensors, read_json, save_tensors, tensors_digest, write_json

KEPT_BASES = 4
KEPT_WEIGHTS = 2
"""What is trained from and what is judged; next round's differences are to the first, or it is the second itself."""
EVALUATIONS, ATTEMPTS = 3, 50
AT_END = ("calibrate", "conform", "assess")
"""What is asked about a stage's result, as it is counted."""
PURGED = ("bases", "weights", "states", "updates")
STALE_S = 3600.0
DIGEST = re.compile(r"[0-9a-f]{64}")


class SiteStore:
    """A site's own folder.

    Args:
        folder: created 0700 if it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in (*PURGED, "answers"):
                (self.folder / part).mkdir(exist_ok=True, mode=0o700)
            for torn in self.folder.rglob(".*.part"):
                if time.time() - torn.stat().st_mtime > STALE_S:
                    torn.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(
                f"the site's folder cannot be made: {error.strerror}",
                "Name a folder that you may write to (a site: site.folder; a simulation: run.dir).",
            ) from error

    # ---- frozen part of a stage's base, by digest -------------------------------------------
    def base(self, digest: str) -> Tensors | None:
        """The base of that digest, or none if it is not here (whole)."""
        if digest == tensors_digest({}):
            return {}
        return self._found("bases", digest)

    def keep_base(self, tensors: Tensors) -> None:
        """Keep a base; the ones used longest ago go."""
        self._keep("bases", tensors_digest(tensors), tensors, KEPT_BASES)

    # ---- weights that the coordinator sent, by digest: nothing crosses twice --------------------
    def weights(self, digest: str) -> Tensors | None:
        """The weights of that digest, with what the algorithm sent beside them; none if they are not here (whole)."""
        return self._found("weights", digest)

    def keep_weights(self, digest: str, tensors: Tensors) -> None:
        """Keep weights under their digest; the ones used longest ago go."""
        self._keep("weights", digest, tensors, KEPT_WEIGHTS)

    def are(self, weights: Tensors, named: str) -> bool:
        """Whether these are the weights of that digest."""
        return tensors_digest(weights) == named

    def _found(self, part: str, digest: str) -> Tensors | None:
        path = self.folder / part / f"{digest}.safetensors"
        tensors = _read(path, digest)
        if tensors is not None:
            os.utime(path)
        return tensors

    def _keep(self, part: str, digest: str, tensors: Tensors, most: int) -> None:
        save_tensors(self.folder / part / f"{digest}.safetensors", tensors)
        found = sorted((self.folder / part).glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        for path in found[:-most]:
            path.unlink(missing_ok=True)

    # ---- declared state, by run, arm, stage, round and digest -------------------------------
    def site_state(self, key: tuple[str, str, str], digest: str) -> Tensors | None:
        """The site's state of that digest, or none."""
        for path in self._states(key).glob("*.safetensors"):
            if path.stem.split("-", 1)[1] == digest:
                return _read(path, digest)
        return None

    def keep_site_state(
        self, key: tuple[str, str, str], round_index: int, tensors: Tensors, needed: Collection[str]
    ) -> str:
        """Keep a round's state beside those of the ``needed`` digests, and no other; returns its digest.

        Needed are the state that it was built on (the coordinator may ask again) and that of the best round so far.
        """
        digest = tensors_digest(tensors)
        folder = self._states(key)
        folder.mkdir(exist_ok=True, mode=0o700)
        save_tensors(folder / f"{round_index:06d}-{digest}.safetensors", tensors)
        for path in folder.glob("*.safetensors"):
            if path.stem.split("-", 1)[1] not in {digest, *needed}:
                path.unlink(missing_ok=True)
        return digest

    # ---- the last update, by the request it answers -----------------------------------------
    def update(self, key: tuple[str, str, str], request: str) -> Payload | None:
        """The kept reply to that very request, or none."""
        path = self.folder / "updates" / f"{_name(key)}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as stream:
                facts = stream.metadata() or {}
            if facts.get("request") != request:
                return None
            packed = pack(load_tensors(path))  # whose bytes become the tensors: they are copied once
            size = path.stat().st_size
            return decode(Wire(facts["body"], facts["digest"], packed.arrays), Limits(tensor_bytes=size), own=False)
        except (ModelFileError, PayloadError, SafetensorError, KeyError, OSError):
            return None

    def keep_update(self, key: tuple[str, str, str], request: str, reply: Payload) -> None:
        """Keep the reply so that the same request is never computed twice."""
        body = body_of(reply, tensors_digest(reply.tensors))  # and no copy of the tensors as they travel
        facts = {"request": request, "body": body, "digest": text_digest(body)}
        save_tensors(self.folder / "updates" / f"{_name(key)}.safetensors", reply.tensors, facts)

    # ---- what was answered, so that a replayed round is recognised ----------------------------
    def may_answer(
        self, key: tuple[str, str, str], kind: str, round_index: int, request: str, *, masked: bool = False
    ) -> bool:
        """Whether a request may be answered: the very same again, or one for a later round than any answered.

        A coordinator that was resumed may have lost replies and then ask for metrics of other weights in the same
        round; a few such requests are answered, training never differs. Under masks it may: an attempt that lost its
        sites is made anew, and this site signs the set of one of them at most (:mod:`client.masking`).

        After a question about a stage's result nothing more is trained: whoever asked before the end would else have
        an answer that is given once (counts for prediction sets, test images) of a model that was none.

        Raises:
            MachineError: what was answered before cannot be read.
        """
        answers = self._answers(key)
        last = answers.get(_answered(kind, round_index))
        if last is not None and request in last["requests"]:
            return True
        if kind == "train" and not set(AT_END).isdisjoint(answers):
            return False
        if last is None or round_index > last["round"]:
            return True
        most = ATTEMPTS if masked else EVALUATIONS if kind == "evaluate" else 0
        return round_index == last["round"] and len(last["requests"]) < most

    def record_answer(self, key: tuple[str, str, str], kind: str, round_index: int, request: str) -> None:
        """Write down, before the reply leaves, that a request was answered; never purged.

        Raises:
            MachineError: it cannot be written.
        """
        answers, name = self._answers(key), _answered(kind, round_index)
        last = answers.get(name)
        if last is not None and request in last["requests"]:
            return
        earlier = last["requests"] if last is not None and last["round"] == round_index else []
        answers[name] = {"round": round_index, "requests": [*earlier, request]}
        write_json(self._answers_file(key), answers, mode=0o600)

    def purge(self) -> None:
        """Remove everything kept, but not what was answered."""
        for part in PURGED:
            shutil.rmtree(self.folder / part, ignore_errors=True)

    def _answers_file(self, key: tuple[str, str, str]) -> Path:
        return self.folder / "answers" / f"{_name(key)}.json"

    def _answers(self, key: tuple[str, str, str]) -> dict[str, Any]:
        path = self._answers_file(key)
        try:
            return dict(read_json(path)) if path.exists() else {}
        except (ModelFileError, TypeError, ValueError) as error:
            raise MachineError(
                f"what this site answered before cannot be read: {path}", "Restore the file from the backup."
            ) from error

    def _states(self, key: tuple[str, str, str]) -> Path:
        return self.folder / "states" / _name(key)


def _name(key: tuple[str, str, str]) -> str:
    """A folder name for (run, arm, stage), whatever characters they hold: no path in it can matter."""
    return hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]


def _answered(kind: str, round_index: int) -> str:
    """Rounds of training, of evaluation, and the evaluation for the calibration are counted each for itself."""
    return "calibrate" if kind == "evaluate" and round_index == 0 else kind


def _read(path: Path, digest: str) -> Tensors | None:
    if DIGEST.fullmatch(digest) is None or not path.exists():
        return None
    try:
        tensors = load_tensors(path)
    except ModelFileError:
        return None
    return tensors if tensors_digest(tensors) == digest else None
