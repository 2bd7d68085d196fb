"""Our SuperLink as it really runs: one child with TLS, node authentication, SuperExec's secret and both listeners."""

import http.client
import importlib
import inspect
import os
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from flwr.serverapp import ServerApp

from fed_diffmic.errors import MachineError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import make_site_key
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport import serverapp
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.guard import VERSIONS_HEADER
from fed_diffmic.transport.processes import free_port
from fed_diffmic.transport.serverapp import run_server_app
from fed_diffmic.transport.superlink import (
    NONCE_HEADER,
    TOKEN_HEADER,
    LinkLostError,
    LinkSettings,
    RunningLink,
    counts,
    healthy,
    start_superlink,
)

# What of Flower's internals our transport calls; a new version that lacks one is noticed here, not in a hospital.
INTERNALS = {
    "flwr.cli.build": ["build_fab_from_files"],
    "flwr.common.constant": [
        "HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_CALL_TIMEOUT", "HEARTBEAT_MIN_INTERVAL", "SYSTEM_TIME_TOLERANCE",
        "TIMESTAMP_HEADER", "TIMESTAMP_TOLERANCE", "SubStatus",
    ],
    "flwr.common.serde": ["context_from_proto", "fab_to_proto", "run_from_proto"],
    "flwr.supercore.auth": ["derive_auth_secret"],
    "flwr.supercore.constant": ["FLEET_HTTP_PUBLIC_KEY_HEADER", "FLEET_HTTP_SIGNATURE_HEADER", "TaskType"],
    "flwr.supercore.control": ["ControlHttpClient"],
    "flwr.supercore.fab": ["Fab"],
    "flwr.supercore.interceptors": [
        "RuntimeTokenHttpInterceptor", "RuntimeVersionHttpInterceptor", "SuperExecAuthHttpInterceptor",
    ],
    "flwr.supercore.primitives.asymmetric": ["bytes_to_public_key", "verify_signature"],
    "flwr.supercore.retry": ["RetryInvoker", "exponential"],
    "flwr.supercore.run": ["RunNotRunningException"],
    "flwr.supercore.runtime": ["RuntimeHttpClient"],
    "flwr.supercore.task_identity": ["TaskIdentity"],
    "flwr.server.superlink.linkstate.sql_linkstate": ["SqlLinkState"],
    "flwr.supercore.object_store.sql_object_store": ["SqlObjectStore"],
    "flwr.supercore.error": ["FlowerError"],
    "flwr.supercore.error.catalog": ["API_ERROR_MAP", "ApiErrorSpec"],
    "flwr.supercore.state.schema.corestate_models": ["ObjectPushSessionRoot"],
    "flwr.supercore.state.schema.linkstate_models": ["MessageIns", "MessageRes"],
    "flwr.supercore.state.schema.objectstore_models": ["ObjectChild", "StoredObject"],
    "flwr.superlink.cli.flower_superlink": ["SuperLinkLifespan", "_parse_superlink_lifespan_config"],
    "flwr.superlink.grid": ["HttpGrid"],
    "flwr.supercore.corestate.sql_corestate": ["SqlCoreState"],
    "flwr.superlink.main": ["create_app"],
    "flwr.supernode.main": ["create_app"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("link")


@pytest.fixture(scope="module")
def settings(folder):
    authority = make_authority(folder / "ca")
    certificate, key = authority.issue_server([], [], folder / "server")
    roster = Roster()
    for name in ("alpha", "beta"):
        roster = roster.enrol(name, make_site_key(folder / name), "Hospital")
    return LinkSettings(
        folder=str(folder / "link"),
        host="127.0.0.1",
        port=free_port(),
        certificate=str(certificate),
        key=str(key),
        ca=str(authority.certificate_path),
        roster=str(roster.save(folder / "roster.json")),
        heartbeat_s=5.0,
    )


@pytest.fixture(scope="module")
def link(settings):
    started = start_superlink(settings)
    yield started
    started.child.kill()


def get(link: RunningLink, port: int, path: str, token: str = "") -> http.client.HTTPResponse:
    tls = ssl.create_default_context(cafile=link.settings.ca)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=tls)
    try:
        connection.request("GET", path, headers={TOKEN_HEADER: token} if token else {})
        return connection.getresponse()
    finally:
        connection.close()


@pytest.mark.parametrize(("module", "names"), INTERNALS.items())
def test_flower_has_what_we_call(module, names):
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


def test_flowers_fleet_router_calls_the_handlers_that_we_rule():
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.superlink.routers.fleet import node_auth, router
    from flwr.superlink.servicer.fleet import fleet_handlers

    from fed_diffmic.transport.fleetrules import RULED

    source = inspect.getsource(router)
    for name in RULED:  # by the module's name at the moment of the call, or ours would not be called
        assert f"fleet_handlers.{name}(" in source and hasattr(fleet_handlers, name)
    for call in ("push_messages(request=request, state=state)", "push_object(request=request, state=state)",
                 "pull_object(request=request, state=state)"):  # fmt: skip
        assert call in source
    assert "request=request, state=state, store=state.object_store" in source
    whole = inspect.getsource(node_auth)  # what `request.node.node_id` says is true when a handler is called
    assert "get_node_id_by_public_key(public_key) != node_id" in whole and "protobuf_request.node.node_id" in whole
    push = inspect.getsource(fleet_handlers.push_messages)
    assert "state.store_message_and_object_tree(" in push and "state.start_session(run_id)" in push
    for name in ("delete_messages", "store_message_ins", "store_message_res", "get_message_res",
                 "_cleanup_push_session", "get_run_status", "store_object", "get_message_ins",
                 "store_traffic"):  # fmt: skip
        assert callable(getattr(SqlLinkState, name))


def test_flowers_grid_has_the_parts_we_replace():
    from flwr.superlink.grid import HttpGrid

    source = inspect.getsource(HttpGrid)
    for part in ("self._client", "self._retry_invoker", "def _connect", "def _runtime_client", "def _disconnect"):
        assert part in source


def test_a_database_that_is_busy_is_waited_for(tmp_path, monkeypatch):
    from flwr.supercore import sql_mixin
    from flwr.supercore.object_store.sql_object_store import SqlObjectStore

    from fed_diffmic.transport.database import JOURNAL_BYTES, LOCK_S, patient_database

    for name in ("SQLITE_PRAGMAS", "create_engine"):
        monkeypatch.setattr(sql_mixin, name, getattr(sql_mixin, name))
    before = dict(sql_mixin.SQLITE_PRAGMAS)
    patient_database()
    assert {**before, "busy_timeout": "60000", "journal_size_limit": str(JOURNAL_BYTES)} == dict(
        sql_mixin.SQLITE_PRAGMAS
    )
    store = SqlObjectStore(f"sqlite:///{tmp_path / 'state.db'}")
    store.initialize()
    assert store.query("PRAGMA busy_timeout")[0]["timeout"] == LOCK_S * 1000
    assert store._engine.pool.timeout() >= 2 * LOCK_S  # 15 of 40 threads have a connection
    assert store.query("PRAGMA journal_size_limit")[0]["journal_size_limit"] == JOURNAL_BYTES


def test_expired_claims_are_looked_for_once_a_second_and_not_with_each_question(tmp_path, monkeypatch):
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    from fed_diffmic.transport.database import expire_seldom

    name, looks, now = "_cleanup_expired_task_tokens", [], [0.0]
    monkeypatch.setattr(SqlCoreState, name, looks.append)
    expire_seldom(every_s=1.0, clock=lambda: now[0])
    ask = getattr(SqlCoreState, name)
    for at in (0.0, 0.2, 0.999, 1.0, 1.5, 2.1):
        now[0] = at
        ask("state")
    assert len(looks) == 3  # at 0, 1 and 2.1


def test_it_listens_where_it_says_and_nowhere_else(link):
    if not Path("/proc").exists():
        pytest.skip("needs /proc")
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{link.child.pid}/fd").iterdir() if fd.is_symlink()}
    heard = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{link.child.pid}/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = line.split()[1], line.split()[3], line.split()[9]
            if state == "0A" and f"socket:[{inode}]" in inodes:
                heard.add((local.split(":")[0], int(local.split(":")[1], 16)))
    assert heard == {("0100007F", link.public_port), ("0100007F", link.loopback_port)}


def test_the_private_listener_knows_only_who_has_the_token(link):
    assert healthy(link)
    good = get(link, link.loopback_port, "/health", link.settings.token())
    assert (good.status, good.headers[NONCE_HEADER]) == (200, link.settings.nonce)
    for path in ("/health", "/docs", "/v1/control/list-nodes", "/v1/fleet/pull-messages", "/fed-diffmic/counts"):
        assert get(link, link.loopback_port, path).status == 404
        assert get(link, link.loopback_port, path, "0" * 64).status == 404


def test_a_superlink_of_someone_else_is_not_taken_for_ours(link):
    assert not healthy(replace(link, settings=replace(link.settings, nonce="other")))


def test_the_public_listener_has_health_and_says_the_time(link):
    answer = get(link, link.public_port, "/health")
    assert answer.status == 200
    assert "flwr=" in answer.headers[VERSIONS_HEADER.decode()]
    assert answer.headers["date"]
    assert NONCE_HEADER not in answer.headers
    assert get(link, link.public_port, "/v1/control/list-nodes", link.settings.token()).status == 404


def test_no_secret_is_on_a_command_line_or_in_the_environment(link):
    process = Path(f"/proc/{link.child.pid}")
    if not process.exists():
        pytest.skip("needs /proc")
    for name in ("cmdline", "environ"):
        assert link.settings.secret.encode() not in (process / name).read_bytes()
    for path in Path(link.settings.folder).rglob("*"):
        assert not path.stat().st_mode & 0o077
        assert not path.is_file() or link.settings.secret.encode() not in path.read_bytes()


def test_nodes_are_registered_once(link, folder):
    control = Control(link)
    key = (folder / "alpha.pub").read_text().strip()
    first = control.register([key])
    assert control.register([key]) == first
    assert list(first.values()) == [node.node for node in control.nodes()]
    control.close()


def submit(link: RunningLink) -> int:
    control = Control(link)
    try:
        return control.submit()
    finally:
        control.close()


def test_a_server_app_runs_here_with_a_configuration_that_stays_here(link):
    app, seen = ServerApp(), {}

    @app.main()
    def main(grid, context):
        seen.update(context.run_config, nodes=list(grid.get_node_ids()), pid=os.getpid())

    run_server_app(app, link, submit(link), {"config-json": "hush-hush"})
    assert seen == {"config-json": "hush-hush", "nodes": [], "pid": os.getpid()}
    database = b"".join(path.read_bytes() for path in Path(link.settings.folder).glob("state.db*"))
    assert b"hush-hush" not in database
    control = Control(link)
    assert control.stop_runs() == 0
    control.close()


def test_what_the_app_raises_is_raised_and_its_text_stays_here(link):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        raise ZeroDivisionError("of patient Erika")

    with pytest.raises(ZeroDivisionError, match="Erika"):
        run_server_app(app, link, submit(link), {})
    database = b"".join(path.read_bytes() for path in Path(link.settings.folder).glob("state.db*"))
    assert b"Erika" not in database  # digits alone stand in digests and times by chance


def test_runs_that_were_left_behind_are_stopped(link, monkeypatch):
    number = submit(link)
    control = Control(link)
    assert control.stop_runs() == 1
    control.close()
    monkeypatch.setattr(serverapp, "ACQUIRE_S", 1.0)
    with pytest.raises(LinkLostError):
        run_server_app(ServerApp(), link, number, {})


def test_a_wrong_secret_takes_no_task(link):
    stranger = replace(link, settings=replace(link.settings, secret="00" * 32))
    with pytest.raises(LinkLostError):
        run_server_app(ServerApp(), stranger, submit(link), {})


def test_the_guards_counts_reach_the_supervisor(link):
    get(link, link.public_port, "/docs")
    told = counts(link)
    assert told is not None
    assert told["refused"]["path"] >= 1


def test_a_taken_port_is_said(link, tmp_path):
    with pytest.raises(MachineError, match="cannot listen on 127.0.0.1"):
        start_superlink(replace(link.settings, folder=str(tmp_path / "other")))


def test_a_superlink_that_is_killed_is_noticed_and_starts_on_its_database(link, settings):
    control = Control(link)
    key = Roster.load(str(settings.roster)).site("beta").public_key
    node = control.register([key])[key]
    control.close()
    app = ServerApp()

    @app.main()
    def main(grid, context):
        os.kill(link.child.pid, signal.SIGKILL)
        while True:
            list(grid.get_node_ids())
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(LinkLostError):
        run_server_app(app, link, submit(link), {})
    assert time.monotonic() - started < 30
    assert not link.alive()
    with pytest.raises(LinkLostError):
        submit(link)
    fresh = LinkSettings(**{**vars(settings), "nonce": "5" * 32})
    again = start_superlink(fresh)
    try:
        control = Control(again)
        assert control.register([key])[key] == node
        control.close()
    finally:
        again.child.kill()


PARENT = """
import json, sys, time
from fed_diffmic.transport.superlink import LinkSettings, start_superlink
link = start_superlink(LinkSettings(sys.argv[1], "127.0.0.1", int(sys.argv[2])))
print(link.child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux only")
def test_sigkill_of_the_supervisor_leaves_no_superlink(tmp_path):
    port = free_port()
    command = [sys.executable, "-c", PARENT, str(tmp_path / "link"), str(port)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = 0
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
        parent.kill()
        parent.wait(10)
        until = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
    finally:
        parent.kill()
        parent.wait(10)
        if pid and Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
