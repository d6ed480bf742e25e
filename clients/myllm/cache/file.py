"""The SQLite file under a cache: opened by several processes, bounded, and never in the way of a call."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger("myllm.cache")

_SCHEMA = 1
_APPLICATION_ID = 0x6D796C6D  # "mylm", in the header of the file
_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's transaction
_TABLES = (
    "CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB, size INTEGER, created REAL, used REAL)",
    "CREATE INDEX entries_by_use ON entries (used, size)",
    # Kept by triggers: a sum over all entries with every answer would be slow.
    "CREATE TABLE total (entries INTEGER, bytes INTEGER)",
    "INSERT INTO total VALUES (0, 0)",
    "CREATE TRIGGER added AFTER INSERT ON entries BEGIN "
    "UPDATE total SET entries = entries + 1, bytes = bytes + NEW.size; END",
    "CREATE TRIGGER removed AFTER DELETE ON entries BEGIN "
    "UPDATE total SET entries = entries - 1, bytes = bytes - OLD.size; END",
    "CREATE TRIGGER replaced AFTER UPDATE OF size ON entries BEGIN "
    "UPDATE total SET bytes = bytes + NEW.size - OLD.size; END",
)


class CacheFile:
    """The SQLite file of a cache. Every method survives a failing disk with a warning."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self._warned: set[str] = set()

    def get(self, key: str) -> tuple[float, bytes] | None:
        """Return an entry's time of birth and value."""
        query = "SELECT created, value FROM entries WHERE key = ?"
        row: tuple[float, bytes] | None = self._try(lambda db: db.execute(query, (key,)).fetchone())
        return row

    def put(self, key: str, value: bytes, now: float, touched: Mapping[str, float]) -> None:
        """Store an entry, note which others were used, and make room."""

        def work(db: sqlite3.Connection) -> None:
            with _transaction(db):
                _write_touched(db, touched)
                db.execute(
                    "INSERT INTO entries (key, value, size, created, used) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, size = excluded.size, "
                    "created = excluded.created, used = excluded.used",
                    (key, value, len(key) + len(value), now, now),
                )
                _evict(db, self._max_bytes)

        self._try(work)

    def delete(self, key: str) -> None:
        """Delete an entry."""
        self._try(lambda db: db.execute("DELETE FROM entries WHERE key = ?", (key,)))

    def clear(self) -> None:
        """Delete all entries and shrink the file."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM entries")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        self._try(work)

    def size(self) -> tuple[int, int]:
        """Return the number of entries and their bytes."""
        row: tuple[int, int] | None = self._try(
            lambda db: db.execute("SELECT entries, bytes FROM total").fetchone()
        )
        return row or (0, 0)

    def close(self, touched: Mapping[str, float]) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            if self.connection is None:
                return
        if touched:
            self._try(lambda db: _write_touched(db, touched))
        with self._lock:
            self._disconnect()

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        with self._lock:
            try:
                try:
                    return work(self._connected())
                except sqlite3.DatabaseError as exc:
                    if not _is_damage(exc):
                        raise
                    self._disconnect()
                    _move_aside(self._path)
                    return work(self._connected())
            except (sqlite3.Error, OSError) as exc:
                self._disconnect()  # the next use opens whatever lies there by then
                self._warn(exc)
                return None

    def _connected(self) -> sqlite3.Connection:
        if self.connection is None:
            self.connection = _open(self._path)
        return self.connection

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _warn(self, exc: Exception) -> None:
        if str(exc) not in self._warned:
            self._warned.add(str(exc))
            logger.warning("The cache file %s cannot be used: %s. Calls go on without it.", self._path, exc)


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    # The low byte is the primary code: SQLITE_CORRUPT_INDEX and its like are damage too.
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _open(path: Path) -> sqlite3.Connection:
    """Open a cache's file, and make it when it is missing."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it will hold prompts
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        if not _is_ours(db):
            with _locked(path):
                if not _is_ours(db):  # nobody else was quicker
                    db.execute("PRAGMA journal_mode = WAL")
                    with _transaction(db):
                        for statement in _TABLES:
                            db.execute(statement)
                        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                        db.execute(f"PRAGMA user_version = {_SCHEMA}")
        db.execute("PRAGMA synchronous = NORMAL")  # in WAL mode a crash may lose the last answers, no more
    except BaseException:
        db.close()
        raise
    return db


def _is_ours(db: sqlite3.Connection) -> bool:
    """Whether the file is a cache; False if it is empty.

    Raises:
        sqlite3.DatabaseError: it belongs to somebody else, or to another version.
    """
    db.execute("BEGIN")  # one snapshot, though another process may be making the file
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    db.execute("COMMIT")
    if (application, version) == (_APPLICATION_ID, _SCHEMA):
        return True
    if application or version or tables:
        raise sqlite3.DatabaseError("it is a database of another program, or of another version of this one")
    return False


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk rolls back by itself
            db.execute("ROLLBACK")
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from making or moving the same file."""
    with path.with_name(path.name + ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _move_aside(path: Path) -> None:
    """Rename a damaged file, unless another process has already done so."""
    with _locked(path):
        try:
            db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
            try:
                (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            finally:
                db.close()
        except sqlite3.DatabaseError as exc:
            verdict = str(exc)
        if verdict == "ok":
            return
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        for suffix in ("-shm", "-wal", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
    logger.warning(
        "The cache file %s is damaged (%s): it was moved to %s, and a new one is begun.", path, verdict, aside
    )


def _write_touched(db: sqlite3.Connection, touched: Mapping[str, float]) -> None:
    rows = [(when, key) for key, when in touched.items()]
    db.executemany("UPDATE entries SET used = ? WHERE key = ?", rows)


def _evict(db: sqlite3.Connection, max_bytes: int) -> None:
    (total,) = db.execute("SELECT bytes FROM total").fetchone()
    excess = total - max_bytes
    doomed = []
    for rowid, size in db.execute("SELECT rowid, size FROM entries ORDER BY used"):
        if excess <= 0:
            break
        doomed.append((rowid,))
        excess -= size
    db.executemany("DELETE FROM entries WHERE rowid = ?", doomed)
