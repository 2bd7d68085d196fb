"""A real SuperNode child on a real SuperLink over TLS, and what becomes of a request when processes are killed."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import make_site_key
from fed_diffmic.provision.roster import Roster, RosterEntry, utc_now
from fed_diffmic.transport.contact import Contact, read_contact
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.processes import Child, free_port
from fed_diffmic.transport.serverapp import run_server_app
from fed_diffmic.transport.spool import Spool
from fed_diffmic.transport.superlink import LinkSettings, RunningLink, start_superlink
from fed_diffmic.transport.supernode import INBOX, NODE, NodeSettings, start_supernode

BEAT_S = 30.0  # nothing here waits for a heartbeat to be missed, and none may be on a busy machine
BOUND_S = 180.0
SECRET = "ab" * 32
TOY = Path(__file__).with_name("toy_worker.py")


def wait(what: Callable[[], Any], bound_s: float = BOUND_S) -> Any:
    until = time.monotonic() + bound_s
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {bound_s} s")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("credentials")
    make_authority(root / "ca").issue_server([], [], root / "server")
    key = make_site_key(root / "key")
    Roster((RosterEntry("one", key, "Klinik", "train", utc_now()),)).save(root / "roster.json")
    return root


@pytest.fixture(scope="module")
def link(credentials: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLink]:
    settings = LinkSettings(
        folder=str(tmp_path_factory.mktemp("link")),
        host="127.0.0.1",
        port=free_port(),
        certificate=str(credentials / "server/server.crt"),
        key=str(credentials / "server/server.key"),
        ca=str(credentials / "ca/ca.crt"),
        roster=str(credentials / "roster.json"),
        heartbeat_s=BEAT_S,
    )
    running = start_superlink(settings, 120.0)
    try:
        Control(running).register([entry.public_key for entry in Roster.load(credentials / "roster.json").sites])
        yield running
    finally:
        os.kill(running.child.pid, signal.SIGCONT)
        running.child.kill()


class Site:
    """A SuperNode and a toy worker that a test starts and kills."""

    def __init__(self, credentials: Path, link: RunningLink, folder: Path) -> None:
        self.folder, self.run, self.toys = folder, folder / "run", folder / "toys"
        for path in (self.run, self.toys):
            path.mkdir(parents=True)
        self._known = credentials / NODE  # the site is the same from test to test, and so is its number
        if self._known.exists():
            shutil.copy(self._known, self.run / NODE)
        self.settings = NodeSettings(
            address=f"127.0.0.1:{link.public_port}",
            folder=str(folder),
            run=str(self.run),
            secret=SECRET,
            ca=str(credentials / "ca/ca.crt"),
            key=str(credentials / "key"),
            heartbeat_s=BEAT_S,
            poll_s=0.1,
            retry_min_s=0.1,
            retry_max_s=0.5,
            give_up_s=60.0,
        )
        self.children: list[Child] = []
        self.workers: list[subprocess.Popen[str]] = []

    @property
    def spool(self) -> Spool:
        return Spool(self.folder / INBOX)

    def start_node(self, *, ready: bool = True) -> Child:
        self.children.append(start_supernode(self.settings, self.folder / "node.log"))
        if ready:  # a node that is not there yet makes the SuperLink answer for it
            wait(self.connected)
        return self.children[-1]

    def connected(self) -> Contact | None:
        contact = read_contact(self.run)
        mine = contact is not None and contact.pid == self.children[-1].pid
        return contact if mine and contact is not None and contact.connected else None

    def start_worker(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(TOY), str(os.getpid())]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        log = (self.folder / "worker.log").open("a")
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=env, stdout=log, stderr=log)
        log.close()
        assert worker.stdin is not None
        with worker.stdin:
            worker.stdin.write(json.dumps({"run": str(self.run), "secret": SECRET, "folder": str(self.toys)}))
        self.workers.append(worker)
        return worker

    def has_task(self, worker: subprocess.Popen[str]) -> bool:
        return (self.toys / f"started-{worker.pid}").exists()

    def go(self) -> None:
        (self.toys / "go").touch()

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait(10)
        for child in self.children:
            child.kill()
        if (self.run / NODE).exists():
            shutil.copy(self.run / NODE, self._known)


@pytest.fixture
def site(credentials: Path, link: RunningLink, tmp_path: Path) -> Iterator[Site]:
    made = Site(credentials, link, tmp_path)
    try:
        yield made
    finally:
        made.end()


class Asked:
    """One request, asked by a real ServerApp in a thread of its own."""

    def __init__(self, link: RunningLink, message_type: str = "train") -> None:
        self.reply: Message | None = None
        self.failure: BaseException | None = None
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            nodes = wait(lambda: list(grid.get_node_ids()))
            content = RecordDict({"question": ConfigRecord({"n": 1})})
            (asked,) = grid.push_messages(
                [Message(content, dst_node_id=nodes[0], message_type=message_type, ttl=BOUND_S)]
            )
            self.reply = wait(lambda: list(grid.pull_messages([asked])))[0]

        def run() -> None:
            try:
                run_server_app(app, link, Control(link).submit(), {})
            except BaseException as error:
                self.failure = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def answer(self) -> dict[str, Any]:
        reply = self.message()
        assert not reply.has_error(), reply.error
        return dict(reply.content["said"])

    def message(self) -> Message:
        self._thread.join(BOUND_S)
        assert self.failure is None, self.failure
        assert self.reply is not None
        return self.reply


def test_the_installed_app_answers_whatever_bundle_came(site: Site, link: RunningLink) -> None:
    site.start_node()
    worker = site.start_worker()
    site.go()
    assert Asked(link).answer() == {"pid": worker.pid, "site": "here", "settings": 0}
    wait(lambda: site.spool.request() is None)
    assert not list((site.folder / INBOX).rglob("*.pb"))
    unknown = Asked(link, "query.raw_images").message()
    assert unknown.has_error()
    assert unknown.error.reason == "the site failed unexpectedly; its own log has the detail"


def test_a_request_survives_its_worker_and_its_supernode(site: Site, link: RunningLink) -> None:
    node = site.start_node()
    first = site.start_worker()
    asked = Asked(link)
    wait(lambda: site.has_task(first))
    first.kill()
    second = site.start_worker()
    wait(lambda: site.has_task(second))
    node.kill()
    site.start_node()
    site.go()  # what the second computes now, it cannot hand in; it is given the request again
    assert asked.answer()["pid"] == second.pid
    assert Spool(site.folder / INBOX).attempts in (0, 3)


def test_a_whole_reply_is_delivered_without_a_worker(site: Site, link: RunningLink) -> None:
    node = site.start_node()
    worker = site.start_worker()
    asked = Asked(link)
    wait(lambda: site.has_task(worker))
    os.kill(link.child.pid, signal.SIGSTOP)
    try:
        site.go()
        wait(site.spool.has_reply)
        worker.kill()
        node.kill()
    finally:
        os.kill(link.child.pid, signal.SIGCONT)
    assert site.spool.reply() is not None
    site.start_node()
    assert asked.answer()["pid"] == worker.pid
    wait(lambda: site.spool.request() is None)


@pytest.mark.slow
def test_a_request_that_ends_every_worker_is_answered_with_a_failure(site: Site, link: RunningLink) -> None:
    site.start_node()
    first = site.start_worker()
    asked = Asked(link)
    wait(lambda: site.has_task(first))
    first.kill()
    for _ in range(4):
        site.spool.attempt()
    site.start_worker()
    reply = asked.message()
    assert reply.has_error()
    assert reply.error.reason == "ClientApp stopped responding."


@pytest.mark.slow
def test_nobody_without_the_secret_gets_a_task(site: Site, link: RunningLink) -> None:
    site.start_node()
    contact = wait(site.connected)
    asked = Asked(link)
    wait(site.spool.request)
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    stranger = RuntimeHttpClient.from_server_address(f"127.0.0.1:{contact.port}", True, None, [version])
    with stranger, pytest.raises(httpx.HTTPStatusError) as refused:
        stranger.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    assert refused.value.response.status_code in (401, 403)
    site.start_worker()
    site.go()
    asked.answer()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "other"}, "does not accept this site"),
        pytest.param({"ca": "other-ca/ca.crt"}, "not signed by the CA", marks=pytest.mark.slow),
        pytest.param({"address": "127.0.0.1:1"}, "cannot be reached", marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_with_the_way_is_said_in_words(
    change: dict[str, str], words: str, credentials: Path, link: RunningLink, tmp_path: Path
) -> None:
    if not (credentials / "other").exists():  # and not the number of the site with the right key
        (credentials / NODE).unlink(missing_ok=True)
        make_site_key(credentials / "other")
        make_authority(credentials / "other-ca")
    site = Site(credentials, link, tmp_path)
    wrong = {name: value if name == "address" else str(credentials / value) for name, value in change.items()}
    site.settings = NodeSettings(**{**vars(site.settings), **wrong})
    node = site.start_node(ready=False)
    try:
        wait(lambda: words in (read_contact(site.run) or Contact()).problem)
        assert read_contact(site.run).connected is False  # type: ignore[union-attr]
        if "address" not in change:
            wait(lambda: node.poll() is not None)
    finally:
        site.end()


def test_flower_still_has_what_is_wrapped_here() -> None:
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    importlib.import_module("flwr.supercore.routers.runtime")
    internal = inspect.getsource(start_client_internal)
    for used in (
        "with http_request_response(\n        address,\n        insecure,\n        root_certificates,\n"
        "        authentication_keys,\n        max_retries,\n        max_wait_time,\n    ) as conn:",
        "            _push_messages(\n                state=state,",
        "run_id = _pull_and_store_message(\n                state=state,",
        "time.sleep(3)",
        "get_fused_config_from_fab(fab.content, run_info)",
        "state.get_messages_legacy(is_reply=True)",
    ):
        assert used in internal
    connection = inspect.getsource(fleet_http_connection.http_request_response)
    order = "receive,\n                send,\n                get_run,\n                get_fab,\n"
    assert (
        order + "                pull_object,\n                push_object,\n                confirm_message"
        in connection
    )
    for name in ("FleetHttpClient", "HeartbeatSender", "make_simple_http_retry_invoker", "flwr_exit"):
        assert name in connection
    assert "handlers.acquire_task(request, state)" in inspect.getsource(
        sys.modules["flwr.supercore.routers.runtime.router"]
    )
    for name in ("_cleanup_expired_task_tokens_locked", "_store_error_replies", "get_task_by_token"):
        assert hasattr(InMemoryNodeState, name)
