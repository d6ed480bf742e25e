"""`Cache`: bytes by key, in memory and in a file."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidParameterError
from .file import CacheFile

logger = logging.getLogger("myllm.cache")

_MAX_TOUCHED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache holds, and how often this process found what it looked for.

    `entries` and `bytes` (of keys and values) count the file where there is one, else the memory.
    """

    hits: int
    misses: int
    entries: int
    bytes: int


class Cache:
    """Bytes by key in memory over one SQLite file, both bounded: the least recently used leave first.

        with Client(cache=Cache("answers.sqlite3")) as client: ...

    One instance serves any number of clients and threads, one file any number of processes of one machine
    (not of several: SQLite's write-ahead log needs shared memory). A copy is the cache itself; a pickle holds
    the settings, so that the other process opens the same file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = 1 << 30,
        memory_items: int = 1024,
        ttl: float | None = None,
        sampled: bool = False,
    ) -> None:
        """Make a cache; nothing is opened before its first use.

        Args:
            path: the SQLite file, made when it is missing, for its owner's eyes only; None, or SQLite's
                name ":memory:", keeps everything in memory.
            max_bytes: limit for keys and values, in the file and in memory each.
            memory_items: how many entries are kept in memory; 0 for none.
            ttl: seconds after which an entry is stale; None for never.
            sampled: also keep answers that were sampled without a seed.

        Raises:
            InvalidParameterError: a number out of range.
        """
        for name, value, least in (("max_bytes", max_bytes, 1), ("memory_items", memory_items, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidParameterError(
                    f"`{name}={value!r}` must be a whole number, {least} or more.", param=name
                )
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl > 0):
            raise InvalidParameterError(
                f"`ttl={ttl!r}` must be a positive number of seconds, or None.", param="ttl"
            )
        self.path = None if path is None or path == ":memory:" else Path(path)
        self.max_bytes = max_bytes
        self.memory_items = memory_items
        self.ttl = ttl
        self.sampled = sampled
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._memory_bytes = 0
        self._touched: dict[str, float] = {}
        self._hits = self._misses = 0
        self._file = None if self.path is None else CacheFile(self.path, self.max_bytes)
        _started.add(self)

    @classmethod
    def default(cls) -> Cache:
        """Return this process's cache in the user's cache folder.

        The folder is `MYLLM_CACHE_DIR`, else `myllm` in `XDG_CACHE_HOME`, else `~/.cache/myllm`.
        """
        folder = os.environ.get("MYLLM_CACHE_DIR")
        if not folder:
            folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "myllm")  # noqa: PTH118
        path = Path(folder).expanduser() / "answers.sqlite3"
        with _defaults_lock:
            return _defaults.setdefault(path, cls(path))

    @classmethod
    def of(cls, value: Cache | bool | str | os.PathLike[str] | None) -> Cache | None:
        """Read what a user may give as `cache=`: a cache, True for the default one, a file, or nothing."""
        if value is None or value is False:
            return None
        if isinstance(value, Cache):
            return value
        if value is True:
            return cls.default()
        if isinstance(value, str | os.PathLike):
            return cls(value)
        raise InvalidParameterError(
            f"`cache={value!r}` is neither a `Cache`, nor True or False, nor a path.",
            param="cache",
        )

    def peek(self, key: str) -> bytes | None:
        """Return the value if it is in memory, else None; never waits, so an event loop may call it."""
        with self._lock:
            found = self._memory.get(key)
            if found is None or found[0] <= self._stale_before():
                return None
            self._memory.move_to_end(key)
            self._touch(key)
            self._hits += 1
            return found[1]

    def get(self, key: str) -> bytes | None:
        """Return the value, or None when there is none or it is stale."""
        if (value := self.peek(key)) is not None:
            return value
        found = None if self._file is None else self._file.get(key)
        with self._lock:
            if found is None or found[0] <= self._stale_before():
                self._misses += 1
                return None
            self._hits += 1
            self._touch(key)
            self._remember(key, *found)
            return found[1]

    def put(self, key: str, value: bytes) -> None:
        """Store a value, in place of an older one; one that is larger than `max_bytes` is left out."""
        if len(key) + len(value) > self.max_bytes:
            logger.info("An answer of %d bytes is larger than the whole cache, and not kept.", len(value))
            return
        now = time.time()
        with self._lock:
            self._remember(key, now, value)
            touched, self._touched = self._touched, {}
        if self._file is not None:
            self._file.put(key, value, now, touched)

    def delete(self, key: str) -> None:
        """Forget an entry, if there is one."""
        with self._lock:
            self._forget(key)
        if self._file is not None:
            self._file.delete(key)

    def clear(self) -> None:
        """Forget everything, and give the disk space back."""
        with self._lock:
            self._memory.clear()
            self._touched.clear()
            self._memory_bytes = 0
        if self._file is not None:
            self._file.clear()

    def stats(self) -> CacheStats:
        """Return how full the cache is and how often it helped."""
        with self._lock:
            size = len(self._memory), self._memory_bytes
        if self._file is not None:
            size = self._file.size()
        return CacheStats(hits=self._hits, misses=self._misses, entries=size[0], bytes=size[1])

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        if self._file is not None:
            with self._lock:
                touched, self._touched = self._touched, {}
            self._file.close(touched)

    def __len__(self) -> int:
        return self.stats().entries

    def __bool__(self) -> bool:
        return True  # an empty cache is a cache

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Cache({None if self.path is None else str(self.path)!r}, max_bytes={self.max_bytes})"

    def __copy__(self) -> Cache:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return self

    def __getstate__(self) -> dict[str, Any]:
        names = ("path", "max_bytes", "memory_items", "ttl", "sampled")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    # With the lock held.

    def _stale_before(self) -> float:
        return float("-inf") if self.ttl is None else time.time() - self.ttl

    def _touch(self, key: str) -> None:
        # Noted here and written with the next `put`: a hit must not cost a transaction.
        if self._file is not None and len(self._touched) < _MAX_TOUCHED:
            self._touched[key] = time.time()

    def _remember(self, key: str, created: float, value: bytes) -> None:
        self._forget(key)
        self._memory[key] = (created, value)
        self._memory_bytes += len(key) + len(value)
        while self._memory and (len(self._memory) > self.memory_items or self._memory_bytes > self.max_bytes):
            self._forget(next(iter(self._memory)))

    def _forget(self, key: str) -> None:
        if (old := self._memory.pop(key, None)) is not None:
            self._memory_bytes -= len(key) + len(old[1])


_started: weakref.WeakSet[Cache] = weakref.WeakSet()
_defaults: dict[Path, Cache] = {}
_defaults_lock = threading.Lock()
_inherited: list[sqlite3.Connection] = []


def _after_fork() -> None:
    """Begin anew in a forked child: SQLite forbids its connections there, and a lock may be held for ever."""
    global _defaults_lock
    _defaults_lock = threading.Lock()
    for cache in list(_started):
        if cache._file is not None and (db := cache._file.connection) is not None:
            _inherited.append(db)  # closing it would drop the parent's file locks
        cache._start()


os.register_at_fork(after_in_child=_after_fork)
