"""`Server`: a `myllm serve` process that lives exactly as long as its `with` block."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .client import Client
from .errors import AuthenticationError, MissingExtraError, MyLLMError, ServerStartError

_LOG_TAIL = 4000


class Server:
    """Start the bundled engine's server, wait until it can answer, and end it afterwards.

        with Server("smollm2") as server:
            print(server.client().chat("Hello!").text)

    The server ends with the block, with `stop()`, and with this process, however that ends: it watches a pipe
    whose other end dies with its parent. No other process is ever touched.

    Args:
        model: what `myllm serve` takes: a folder, a GGUF file, a hub id, or "smollm2" for the bundled model.
        port: 0 picks a free one.
        host: the address to listen on.
        api_key: the key that clients must show.
        args: further arguments of `myllm serve`, such as `("--dtype", "float32")`.
        startup_timeout: seconds until the model must be loaded.
        log: file to append the server's log to; by default it is kept for error messages only.
    """

    def __init__(
        self,
        model: str = "smollm2",
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        api_key: str | None = None,
        args: Sequence[str] = (),
        startup_timeout: float = 300.0,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model = model
        self.host = host
        self.port = port
        self.api_key = api_key
        self.args = tuple(args)
        self.startup_timeout = startup_timeout
        self._log_path = log
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's root URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs, else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def client(self, **kwargs: object) -> Client:
        """Return a `Client` of this server; `kwargs` are its arguments."""
        return Client(self.url, **{"api_key": self.api_key, **kwargs})

    def start(self) -> Server:
        """Start the process and wait until it answers.

        Raises:
            MissingExtraError: the engine is not installed.
            ServerStartError: it ended, or did not answer in time; the message ends with its log.
        """
        if self._process is not None:
            raise ServerStartError("This server was started already.")
        _require_engine()
        listener = self._bind()
        try:
            self._spawn(listener)
            self._wait_until_ready()
        except BaseException:  # also Ctrl-C: nothing may stay behind
            self.stop()
            raise
        finally:
            listener.close()
        return self

    def _bind(self) -> socket.socket:
        """Take the port before the process exists: nobody else can take it while the model loads."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
        except OSError as exc:
            listener.close()
            raise ServerStartError(
                f"{self.host}:{self.port} cannot be listened on: {exc.strerror or exc}.",
                hint="Is a server running there already? `port=0` picks a free port.",
            ) from exc
        self.port = listener.getsockname()[1]
        return listener

    def _spawn(self, listener: socket.socket) -> None:
        path = self._log_path
        self._log = tempfile.TemporaryFile("a+b") if path is None else Path(path).open("a+b")  # noqa: SIM115 - until stop()
        environment = dict(os.environ)
        if self.api_key is not None:
            environment["MYLLM_API_KEY"] = (
                self.api_key
            )  # not in the arguments, which every user of the machine sees
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "myllm", "serve", self.model,
                "--host", self.host, "--fd", str(listener.fileno()), "--exit-with-parent", *self.args,
            ],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=(listener.fileno(),),
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the server in order
        )  # fmt: skip

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.startup_timeout
        with Client(self.url, timeout=2.0, max_retries=0, api_key=self.api_key) as client:
            while True:
                try:
                    client.models()
                    return
                except AuthenticationError:
                    return  # it answers; which keys it takes was said in `args`
                except MyLLMError as exc:
                    problem = exc
                if self._process.poll() is not None:
                    raise ServerStartError(
                        f"`myllm serve {self.model}` ended with exit code {self._process.returncode}:\n"
                        f"{self.log_tail()}"
                    )
                if time.monotonic() > deadline:
                    raise ServerStartError(
                        f"`myllm serve {self.model}` did not answer within {self.startup_timeout:g} s "
                        f"({problem}):\n{self.log_tail()}",
                        hint="`startup_timeout=` allows more time.",
                    )
                time.sleep(0.1)

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        if self._log is None:
            return ""
        file = self._log.fileno()
        size = os.fstat(file).st_size
        # pread, for the process shares the file's position.
        return os.pread(file, _LOG_TAIL, max(0, size - _LOG_TAIL)).decode("utf-8", "replace").strip()

    def stop(self, grace: float = 10.0) -> None:
        """End the server: SIGTERM, and SIGKILL after `grace` seconds. Safe to call twice."""
        process = self._process
        if process is not None:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _require_engine() -> None:
    """Refuse early, with the extra to install, instead of showing a child process's log."""
    commands = importlib.metadata.entry_points(group="myllm.commands", name="serve")
    for command in commands:
        try:
            command.load()
            return
        except ImportError as exc:
            raise MissingExtraError(f"{exc}", hint="Install it: pip install 'myllm-suite[engine]'.") from exc
    raise MissingExtraError(
        "`myllm serve` is not installed.", hint="Install it: pip install 'myllm-suite[engine]'."
    )
