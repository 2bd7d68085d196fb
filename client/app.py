"""The ClientApp: the same object in simulation, under ``flwr run`` and on real sites.

Handlers are thin: decode, open the site, do the task, encode; a real site's rules are applied around
the task (:mod:`client.enforce`). Whatever goes wrong, only a code and its fixed sentence leave; the
traceback goes to the site's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import sureness, tasks
from client.crossing import WeightsMissingError, restored_request
from client.enforce import Enforcement
from client.masking import masking_step
from client.module import BaseMissingError
from client.requests import check_request
from client.site import Site, in_memory, log_failure, open_data, open_site, site_folder, site_rules, store_of
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import MachineError
from fed_diffmic.exchange.failures import BAD_REQUEST, SiteError, failure_code
from fed_diffmic.exchange.payload import NEED_BASE, NEED_WEIGHTS, Limits, Payload, PayloadError, decode, encode
from fed_diffmic.transport.messages import failure_message, reply_message, wire_of
from fed_diffmic.transport.together import KINDS, joined_reply, name_of, parts_of

LIMITS = Limits(tensor_bytes=16 * 1024**3)

app = ClientApp()
logger = logging.getLogger(__name__)

Task = Callable[[Site, RunSpec, Payload], Payload]


@app.query()
def query(message: Message, context: Context) -> Message:
    """Who are you: name, number of images, training images of each class."""
    return answer(message, context, "query", tasks.describe)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local update."""
    return answer(message, context, "train", tasks.train)


@app.train("judged")
def judged(message: Message, context: Context) -> Message:
    """Metrics of the weights that came, then one local update from them: two requests on one way."""
    return answer_both(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Metrics on the site's validation images."""
    return answer(message, context, "evaluate", tasks.evaluate)


@app.evaluate("conform")
def conform(message: Message, context: Context) -> Message:
    """Counts of the site's validation images, for prediction sets."""
    return answer(message, context, "conform", sureness.conform)


@app.evaluate("assess")
def assess(message: Message, context: Context) -> Message:
    """Metrics of a finished model on the site's test images."""
    return answer(message, context, "assess", tasks.assess)


@app.query("mask")
def mask(message: Message, context: Context) -> Message:
    """One step of a masked sum, but that of the words themselves."""
    return answer(message, context, "mask", masking_step)


@app.query("deliver")
def deliver(message: Message, context: Context) -> Message:
    """Here is the finished model: keep it if you want it."""
    return answer(message, context, "deliver", None)


@app.query("labels")
def labels(message: Message, context: Context) -> Message:
    """Which classes and task do your data have."""
    return answer(message, context, "labels", None)


def answer_both(message: Message, context: Context) -> Message:
    """Answer the requests of a message of two, the one after the other; each is admitted, or refused, by itself."""
    try:
        parts = parts_of(message)
    except PayloadError:
        return answer(message, context, "train", tasks.train)  # which refuses what holds no request
    whole = name_of(parts)
    if site_rules() is not None:  # each part holds its own, and lets go of it when it was decoded
        message.content = RecordDict()
    found = {"evaluate": tasks.evaluate, "train": tasks.train}
    return joined_reply({kind: answer(parts[kind], context, kind, found[kind], whole) for kind in KINDS}, message)


def answer(message: Message, context: Context, kind: str, task: Task | None, whole: str = "") -> Message:
    """Do a task and reply; a failure becomes its code and fixed sentence.

    Args:
        whole: name of the message of several that brought the request.
    """
    folder: Path | None = None
    rules = Enforcement(site_rules(), kind, whole)
    try:
        folder = site_folder(context)
        request, digest = read(message, rules)
        return run_task(message, context, request, digest, rules, task)
    except PayloadError as error:
        failed: Exception = SiteError(BAD_REQUEST)
        failed.__cause__ = error
    except Exception as error:
        failed = error
    code = failure_code(failed)
    try:
        if rules.refused(code):
            logger.error("task %s failed with code %d; the site's own log has the detail", kind, code)
            if folder is not None:
                log_failure(folder, kind, code, failed)
    except (MachineError, OSError):
        logger.error("task %s failed with code %d; the site's own logs cannot be written", kind, code)
    return failure_message(code, message)


def read(message: Message, rules: Enforcement) -> tuple[Payload, str]:
    """The request that a message holds and the digest of its header: its seal first, then whether the site works now.

    Raises:
        SiteError: it is not the coordinator's own, or the site takes no tasks now.
        PayloadError: it is not a request.
    """
    wire = rules.unseal(lambda: wire_of(message.content))
    rules.enter()
    return decode(wire, LIMITS), wire.digest


def run_task(
    message: Message, context: Context, request: Payload, digest: str, rules: Enforcement, task: Task | None
) -> Message:
    """Do a task that could be read, under the site's rules; its reply.

    Args:
        digest: of the request's header, as it travelled.

    Raises:
        Exception: whatever makes the task impossible; nothing of it may cross but a code.
    """
    spec, site = check_request(request, rules.kind), None
    rules.admit(spec, request, digest)
    if rules.rules is not None:  # a real site's message is nobody else's: what was decoded need not be held twice
        message.content = RecordDict()
    try:
        if spec is not None and task is None:
            with rules.opening():
                reply = rules.deliver(spec, request)
        elif spec is None or task is None:
            with rules.opening():
                reply = tasks.labels(open_data(context, None, request.header), request)
        else:
            with rules.opening():
                if "weights" in request.header and rules.kind != "mask":  # which names them, and needs none
                    request = restored_request(store_of(site_folder(context), in_memory(context)), spec, request)
                site = rules.settled(open_site(context, spec, request.header), request)
            rules.ready(site, spec, request)
            with rules.bounded():
                reply = task(site, spec, request)
    except BaseMissingError:
        reply = Payload(NEED_BASE)
    except WeightsMissingError:
        reply = Payload(NEED_WEIGHTS)
    reply = rules.release(reply, request, site)
    wire = encode(reply)
    rules.sending(reply, wire, request)
    sealed = rules.seal(wire, request)
    rules.told(reply, site)
    return reply_message(reply, message, sealed)
