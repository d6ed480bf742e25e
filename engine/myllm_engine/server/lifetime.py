"""End the process: with its parent, and in spite of threads that hang."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

logger = logging.getLogger(__name__)

# After the server's own grace: what has not ended by then hangs.
_EXTRA_SECONDS = 5.0


def exit_with_parent(grace: float, *, fd: int = 0) -> threading.Thread:
    """Watch `fd`, whose other end the parent holds, and end this process when it is closed.

    The kernel closes a pipe's end with the process that holds it, however that dies: unlike an exit handler
    this also works after SIGKILL, and unlike PR_SET_PDEATHSIG on every POSIX system. The process gets
    SIGTERM; if it is still there `grace` seconds and a few later, it is ended without ceremony. What the
    parent writes is ignored.

    Start it before a long import or load: it works in a thread of its own.
    """

    def watch() -> None:
        try:
            while os.read(fd, 4096):
                pass
        except OSError as error:
            # A parent that gives no stdin at all cannot be watched; it is as good as gone.
            logger.warning("cannot read stdin", extra={"error": error})
        logger.warning("the parent process is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace + _EXTRA_SECONDS)
        os._exit(1)

    thread = threading.Thread(target=watch, name="exit-with-parent", daemon=True)
    thread.start()
    return thread


def exit_despite_threads(seconds: float, code: int = 0) -> None:
    """Give the threads that the interpreter would wait for `seconds` to end; else exit with `code`.

    Nothing stops a thread inside a compiler or a kernel, and at its exit Python waits for ever.
    """
    deadline = time.monotonic() + seconds
    waited_for = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.current_thread()
    ]
    for thread in waited_for:
        thread.join(max(0.0, deadline - time.monotonic()))
    hanging = [thread.name for thread in waited_for if thread.is_alive()]
    if hanging:
        logger.warning("stopping in spite of threads that still work", extra={"threads": ",".join(hanging)})
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
