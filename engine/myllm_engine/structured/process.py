"""Start and end the processes in which grammars are tried; see `trial` for what runs there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import EngineError


class TrialProcess:
    """Try grammars in a process of their own. For one thread at a time, but for `kill`.

    Args:
        setup: see `trial`.

    Raises:
        EngineError: from the constructor; no process can be started.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        # -P: the script's folder is no place to import from.
        command = [sys.executable, "-P", str(Path(__file__).with_name("trial.py"))]
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for this process to handle
            )
        except OSError as error:
            raise EngineError(f"The process that tries constraints cannot be started: {error}") from error
        self._send(setup)

    @property
    def alive(self) -> bool:
        """Tell whether it takes another grammar."""
        return self._process.poll() is None

    def fault(self, grammar: str) -> str | None:
        """Return what is wrong with a grammar; None: nothing.

        Raises:
            TrialEndedError: the grammar, or `kill`, ended the process.
        """
        self._send(grammar)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            late = hasattr(signal, "SIGPROF") and code == -signal.SIGPROF
            raise TrialEndedError(
                "takes too long" if late else "needs too much memory or is nested too deeply"
            )
        fault: str | None = json.loads(line)
        return fault

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _send(self, document: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, which the answer will show
            pass


class TrialEndedError(Exception):
    """A grammar ended the process that tried it; the message says how."""
