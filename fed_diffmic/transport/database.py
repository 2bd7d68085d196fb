"""How long the SuperLink's database is waited for."""

from __future__ import annotations

import importlib
from typing import Any

LOCK_S = 60.0
JOURNAL_BYTES = 64 * 2**20


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
