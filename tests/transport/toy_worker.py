"""A site's worker with an app that answers when it is told to: a child of the tests, driven by files in a folder.

Started as a script with ``{"run", "secret", "folder"}`` on standard input. In ``folder`` it writes ``started-<pid>``
when it has a task, and answers once ``go`` is there; it ends at once, with the task in hand, if ``die`` is.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fed_diffmic.transport.contact import read_contact
from fed_diffmic.transport.processes import die_with_parent
from fed_diffmic.transport.worker import serve

BOUND_S = 60.0


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    given = json.loads(sys.stdin.read())
    folder, run = Path(given["folder"]), Path(given["run"])
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (folder / f"started-{os.getpid()}").touch()
        until = time.monotonic() + BOUND_S
        while not (folder / "go").exists() and time.monotonic() < until:
            if (folder / "die").exists():
                os._exit(9)
            time.sleep(0.02)
        said = {"pid": os.getpid(), "site": str(context.node_config["site-dir"]), "settings": len(context.run_config)}
        return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)

    def port() -> int:
        contact = read_contact(run)
        return 0 if contact is None else contact.port

    serve(
        app,
        port=port,
        secret=bytes.fromhex(given["secret"]),
        node_config={"site-dir": "here"},
        stop=threading.Event(),
        beat_s=0.5,
    )


if __name__ == "__main__":
    main()
