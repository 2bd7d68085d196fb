"""A model behind HTTP: one image in, what the model says of it out; and a page for a reader. Nothing is kept.

No image, no name of one and no answer is written to a disk or a log; the counts of `/metrics` name nobody. An image
is the body of a request, as it is in its file: a page of another origin cannot send one without asking first (its
content type is none of the three that a browser lets pass), and is never told that it may.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from fed_diffmic.data.decode import REASONS, BadImageError, decode
from fed_diffmic.deadline import OutOfTimeError
from fed_diffmic.inference.desk import BusyError, Desk
from fed_diffmic.inference.doors import Headers, Hosts
from fed_diffmic.inference.look import has_look, look
from fed_diffmic.inference.openapi import openapi
from fed_diffmic.inference.predictions import predict_content
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.inference.sure import Wanted, sure

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
ASSETS = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"),
          "/page.js": ("page.js", "text/javascript")}  # fmt: skip
TAKEN = ("application/octet-stream", "application/dicom")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True)
class ServiceSettings:
    """How a model is served.

    Attributes:
        hosts: names by which the service may be asked for; others are refused (a page elsewhere could otherwise have
            its own name resolved to this machine).
        token: that every request but those for health and the page itself must carry; empty: none is asked for.
        most_bytes: of an image.
        body_s: seconds within which an image must have come.
        wait_s: seconds from then on within which the answer must be there.
        queue: how many may wait besides the one that is served.
        wanted: what is said beside probabilities.
    """

    hosts: Sequence[str] = ("127.0.0.1", "localhost")
    token: str = ""
    most_bytes: int = 32 * 2**20
    body_s: float = 20.0
    wait_s: float = 60.0
    queue: int = 8
    wanted: Wanted = field(default_factory=Wanted)


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP's.
        code: a word for programs.
        message: what is wrong and what to do.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Service:
    """The routes, and what they share."""

    def __init__(self, predictor: Predictor, card: dict[str, Any], settings: ServiceSettings) -> None:
        self.predictor, self.card, self.settings = predictor, card, settings
        self.desk = Desk(settings.queue, settings.wait_s)
        self._bodies = 0
        self.registry = registry = CollectorRegistry()
        self.answered = Counter("fed_diffmic_requests", "by path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "fed_diffmic_predict_seconds", "from the whole image to its answer", buckets=SECONDS, registry=registry
        )
        Gauge("fed_diffmic_waiting", "requests served and waiting", registry=registry).set_function(
            lambda: self.desk.waiting
        )

    # ---- what is asked -----------------------------------------------------------------------
    async def predict(self, request: Request) -> Response:
        """``POST /v1/predict``."""
        wanted, name = request.query_params.get("look", ""), request.query_params.get("class", "")
        if wanted not in ("", "0", "1") or (name and name not in self.predictor.spec.classes):
            raise RefusedError(400, "query", "look is 0 or 1; class is the name of one of the model's classes.")
        if self._bodies > self.settings.queue:  # before a byte is kept: bodies that come are memory too
            raise RefusedError(503, "busy", _BUSY)
        self._bodies += 1
        try:
            return await self._answer(request, wanted == "1", name)
        finally:
            self._bodies -= 1

    async def _answer(self, request: Request, wanted: bool, name: str) -> Response:
        data = await self._body(request)
        started = time.monotonic()
        try:
            found = await self.desk.ask(lambda: self._said(data, wanted, name))
        except BadImageError as error:
            raise RefusedError(
                422, error.reason, f"{REASONS[error.reason].capitalize()}. Send a JPEG or PNG file as it is."
            ) from None
        except BusyError:
            raise RefusedError(503, "busy", _BUSY) from None
        except OutOfTimeError:
            raise RefusedError(504, "time", "The answer took longer than it may. Try again later.") from None
        except MemoryError:
            raise RefusedError(503, "memory", "The machine has no memory left for this. Try again later.") from None
        self.seconds.observe(time.monotonic() - started)
        return JSONResponse(found)

    def _said(self, data: bytes, wanted: bool, name: str) -> dict[str, Any]:
        """What the model says of an image; in the desk's thread."""
        predictor = self.predictor
        told = predict_content(predictor, data, "image", self.settings.wanted).to_json()
        (said,) = told.pop("images")
        del said["image"], told["unreadable"]
        # How sure the model is in general, apart from how sure it is of this image.
        tests = {name: told.pop(name) for name in ("prediction_sets", "uncertainty", "referral") if name in told}
        named = {
            "prior": self.card["prior"],
            "class_names": self.card["class_names"],
            "model": {k: self.card[k] for k in _NAMED},
        }
        result: dict[str, Any] = {**told, **said, "tests": tests, **named}
        if wanted:
            pixels = decode(data, predictor.spec.model.image_side)
            shown = name or max(said["probabilities"], key=said["probabilities"].__getitem__)
            result["look"] = {"class": shown, **self._look(pixels, shown)}
        return result

    def _look(self, pixels: np.ndarray, name: str) -> dict[str, Any]:
        """The picture that the network saw and, where it has a guidance network, where that responds."""
        found: dict[str, Any] = {
            "side": int(pixels.shape[-1]),
            "pixels": b64encode(pixels.transpose(1, 2, 0).tobytes()).decode(),
        }
        if has_look(self.predictor):
            seen = look(self.predictor, pixels, self.predictor.spec.classes.index(name))
            found["saliency"] = [[round(float(v), 4) for v in row] for row in seen.saliency]
            found["regions"] = [
                {"top": float(top), "left": float(left), "side": float(side), "weight": float(weight)}
                for (top, left, side), weight in zip(seen.boxes, seen.attention, strict=True)
            ]
        return found

    async def model(self, request: Request) -> Response:
        """``GET /v1/model``."""
        return JSONResponse(self.card)

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def health(self, request: Request) -> Response:
        """``GET /health``: whether one more would be taken."""
        free = self.desk.waiting <= self.settings.queue
        return JSONResponse({"status": "ok" if free else "busy"}, 200 if free else 503)

    async def about(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return JSONResponse(openapi(self.predictor.spec.classes, self.settings.most_bytes, bool(self.settings.token)))

    async def asset(self, request: Request) -> Response:
        """The page and its parts."""
        name, kind = ASSETS[request.url.path]
        return FileResponse(PAGE / name, media_type=kind)

    # ---- what every request goes through -----------------------------------------------------
    def guarded(self, path: str, run: Callable[[Request], Awaitable[Response]], *, open_to_all: bool = False) -> Any:
        """An endpoint: the token first, refusals as JSON, a defect as a bare 500, and a count of all."""

        async def endpoint(request: Request) -> Response:
            try:
                if not open_to_all:
                    self._check_token(request)
                answer = await run(request)
            except RefusedError as error:
                answer = JSONResponse({"error": error.code, "message": error.message}, error.status)
                if error.status == 503:
                    answer.headers["retry-after"] = "2"
                if error.status == 401:
                    answer.headers["www-authenticate"] = "Bearer"
            except ClientDisconnect:
                answer = Response(status_code=499)  # nobody reads it
            except Exception as error:
                logger.error("a defect in %s: %s", path, type(error).__name__)  # its text may hold what was sent
                answer = JSONResponse({"error": "defect", "message": "The service has a defect; its log says of what "
                                       "kind."}, 500)  # fmt: skip
            self.answered.labels(path, answer.status_code).inc()
            return answer

        return endpoint

    def _check_token(self, request: Request) -> None:
        token = self.settings.token
        said = request.headers.get("authorization", "")
        kind, _, value = said.partition(" ")
        if token and not (kind.lower() == "bearer" and hmac.compare_digest(value.strip().encode(), token.encode())):
            raise RefusedError(401, "token", "Send the header `Authorization: Bearer TOKEN`.")

    async def _body(self, request: Request) -> bytes:
        """The image, bounded in size and in the time that it takes to come."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in TAKEN and not (kind.startswith("image/") and len(kind) > len("image/")):
            raise RefusedError(
                415, "type", "Send the image as the body, with content type image/png, image/jpeg or "
                "application/octet-stream.",
            )  # fmt: skip
        most, parts, size = self.settings.most_bytes, [], 0
        declared = request.headers.get("content-length", "")
        if (
            declared.isascii() and declared.isdigit() and int(declared[:20]) > most
        ):  # before waiting for what must not come
            raise RefusedError(413, "size", f"An image may have {most} bytes (--most-mib).")
        try:
            async with asyncio.timeout(self.settings.body_s):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RefusedError(413, "size", f"An image may have {most} bytes (--most-mib).")
                    parts.append(part)
        except TimeoutError:
            raise RefusedError(408, "slow", f"The image did not come within {self.settings.body_s:g} s.") from None
        if not size:
            raise RefusedError(400, "empty", "The body is empty: send the image as it is in its file.")
        return b"".join(parts)


_BUSY = "As many are waiting as may. Try again in a moment."
_NAMED = ("run", "stage", "digest", "signed_by")


def check_wanted(predictor: Predictor, wanted: Wanted) -> None:
    """Say before anything listens that a model cannot say what is wanted.

    Raises:
        UsageError: it cannot.
    """
    none = np.zeros((0, predictor.spec.num_classes))
    sure(none, {}, predictor.spec.classes, predictor.spec.task, predictor.sureness, wanted)


def make_service(predictor: Predictor, card: dict[str, Any], settings: ServiceSettings) -> Starlette:
    """The application, for an ASGI server.

    Args:
        predictor: the model; one thread at a time uses it.
        card: :func:`fed_diffmic.inference.card.model_card` of the same model.
        settings: how it is served.
    """
    # With a site's own part, or a second model beside it, what answers is not what the run's file says.
    service = _Service(predictor, {**card, "digest": predictor.digest}, settings)
    routes = [
        Route("/v1/predict", service.guarded("/v1/predict", service.predict), methods=["POST"]),
        Route("/v1/model", service.guarded("/v1/model", service.model), methods=["GET"]),
        Route("/metrics", service.guarded("/metrics", service.metrics), methods=["GET"]),
        Route("/openapi.json", service.guarded("/openapi.json", service.about, open_to_all=True), methods=["GET"]),
        Route("/health", service.guarded("/health", service.health, open_to_all=True), methods=["GET"]),
    ]
    routes += [Route(path, service.guarded(path, service.asset, open_to_all=True), methods=["GET"]) for path in ASSETS]
    trusted = Middleware(Hosts, hosts=settings.hosts)
    app = Starlette(routes=routes, middleware=[Middleware(Headers), trusted])
    app.state.service = service
    return app
