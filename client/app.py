"""The ClientApp: the same object in simulation, under ``flwr run`` and on real sites.

Handlers are thin: decode, open the site, do the task, encode. Whatever goes wrong, only a code and
its fixed sentence leave; the traceback goes to the site's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import tasks
from client.site import Site, log_failure, open_data, open_site, site_folder
from fed_diffmic.exchange.failures import BAD_REQUEST, SiteError, failure_code
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError
from fed_diffmic.spec import RunSpec
from fed_diffmic.transport.messages import failure_message, from_record, reply_message

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


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Figures on the site's validation images."""
    return answer(message, context, "evaluate", tasks.evaluate)


@app.query("labels")
def labels(message: Message, context: Context) -> Message:
    """Which classes and task do your data have."""
    return answer(message, context, "labels", None)


def answer(message: Message, context: Context, kind: str, task: Task | None) -> Message:
    """Do a task and reply; a failure becomes its code and fixed sentence."""
    folder: Path | None = None
    try:
        folder = site_folder(context)
        request = from_record(message.content, LIMITS)
        spec = tasks.check_request(request, kind)
        if spec is None or task is None:
            return reply_message(tasks.labels(open_data(context, None, request.header), request), message)
        return reply_message(task(open_site(context, spec, request.header), spec, request), message)
    except tasks.BaseMissingError:
        return reply_message(Payload(tasks.NEED_BASE), message)
    except PayloadError as error:
        failed: Exception = SiteError(BAD_REQUEST)
        failed.__cause__ = error
    except Exception as error:
        failed = error
    code = failure_code(failed)
    logger.error("task %s failed with code %d; the site's own log has the detail", kind, code)
    if folder is not None:
        try:
            log_failure(folder, kind, code, failed)
        except OSError:
            logger.error("the site's own log cannot be written")
    return failure_message(code, message)
