"""How long the SuperLink's database is waited for, and how often it looks for what expired."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

LOCK_S = 60.0
JOURNAL_BYTES = 64 * 2**20
EXPIRY_S = 1.0


def patient_database() -> None:
    """Let Flower's database be waited for.

    What travelled is deleted in one transaction: with half a gigabyte of a large model's tensors that lasts longer on
    a slow disk than the five seconds after which Flower answers 500, and a run is lost. Its journal is cut again, too.
    Requests are answered in 40 threads, and 15 of them have a connection to the database: the others wait for one as
    long as the 15 may wait for the disk, and for their own turn there; SQLAlchemy gives up after half a minute.
    """
    sql_mixin: Any = importlib.import_module("flwr.supercore.sql_mixin")  # its constant is declared with its length
    own = {"busy_timeout": str(round(LOCK_S * 1000)), "journal_size_limit": str(JOURNAL_BYTES)}
    make = sql_mixin.create_engine

    def create_engine(url: Any, **named: Any) -> Any:
        if "poolclass" not in named:  # a database in memory has one connection
            named.setdefault("pool_timeout", 2 * LOCK_S)
        return make(url, **named)

    sql_mixin.create_engine = create_engine
    sql_mixin.SQLITE_PRAGMAS = tuple((dict(sql_mixin.SQLITE_PRAGMAS) | own).items())


def expire_seldom(every_s: float = EXPIRY_S, clock: Callable[[], float] = time.monotonic) -> None:
    """Let Flower's database end claims of tasks that expired once in so many seconds; to be called once.

    It does so with every question for a run's status, which each request of a site asks: two updates each time, a fifth
    of what a request cost, and each takes the database's only writer. A claim lasts for a minute, and whoever holds it
    is asked about its time besides, so a second more changes nothing.
    """
    module: Any = importlib.import_module("flwr.supercore.corestate.sql_corestate")
    inner = module.SqlCoreState._cleanup_expired_task_tokens
    last = [-every_s]

    def cleanup(self: Any) -> None:
        now = clock()
        if now - last[0] >= every_s:
            last[0] = now
            inner(self)

    module.SqlCoreState._cleanup_expired_task_tokens = cleanup
