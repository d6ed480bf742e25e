"""An opt-in cache of answers: memory over one SQLite file, shared by clients, threads and processes.

Not a library, because `diskcache` has had no release since 2023 and unpickles whatever lies in its folder
(CVE-2025-69872), and LiteLLM's cache is a part of LiteLLM.

How a call uses it, once its model is named and its messages are final:

    if cache is not None and is_cacheable(call, sampled=cache.sampled):
        key = cache_key(call)
        stored = cache.get(key)         # async: cache.peek(key) or await asyncio.to_thread(cache.get, key)
        if stored is not None:
            return load(call.kind, stored)  # its `.cached` is True
    answer = …
    if is_complete(answer):
        cache.put(key, dump(answer))    # async: in a thread

A failing disk never fails a call: it is a warning of the logger `myllm.cache`, and a miss.
"""

from .answers import cache_key, dump, is_cacheable, is_complete, load
from .store import Cache, CacheStats

__all__ = ["Cache", "CacheStats", "cache_key", "dump", "is_cacheable", "is_complete", "load"]
