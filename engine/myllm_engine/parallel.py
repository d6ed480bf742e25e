"""Share each layer among several processes (tensor parallelism), by transformers' own plans.

The engine's process is rank 0 and decides everything; the others run the same forward passes over their parts
of the weights and of the KV cache. Each step rank 0 sends them the batch's small tables; within the step they
exchange what transformers' plan asks for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import pickle
import subprocess
import sys
import time
import weakref
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist

from .batch import Batch
from .config import EngineConfig
from .errors import EngineDeadError, ModelLoadError
from .models.load import LoadedModel, choose_device, load_model
from .models.source import resolve_model
from .runner import ModelRunner

logger = logging.getLogger(__name__)

# Ranks wait for a step as long as nothing is asked of the engine. Within one, a rank that is gone must not
# keep the others for ever where no broken connection tells of it.
_FOREVER, _WITHIN_A_STEP = datetime.timedelta(days=3650), datetime.timedelta(minutes=10)
_HOST = "127.0.0.1"
_START_SECONDS, _LOST_SECONDS, _END_SECONDS = 120.0, 2.0, 10.0


class Workers:
    """Start the other ranks' processes, and be rank 0 of their group.

    Args:
        config: of the engine, `tensor_parallel_size` among it.
        dtype: of the weights.
        max_num_batched_tokens: the most tokens that one batch will have.

    Raises:
        ModelLoadError: there are fewer GPUs than ranks, the model is a GGUF file, a group exists in this
            process already, or a process does not start.
    """

    def __init__(self, config: EngineConfig, *, dtype: torch.dtype, max_num_batched_tokens: int) -> None:
        if dist.is_initialized():
            raise ModelLoadError(
                "`tensor_parallel_size` above 1 makes a process group of its own, and this process has one: "
                "start the engine outside of torchrun, one engine with tensor parallelism a process"
            )
        if resolve_model(config.model, revision=config.revision).gguf_file is not None:
            raise ModelLoadError(
                f"{config.model!r} is a GGUF file, whose layers transformers does not share among devices: "
                "use a model in Hugging Face's format with `tensor_parallel_size` above 1"
            )
        size = config.tensor_parallel_size
        self.device = rank_device(config.device, rank=0, size=size)
        self._store = dist.TCPStore(_HOST, 0, size, is_master=True, wait_for_workers=False)
        theirs = dataclasses.replace(config, speculative=None, lora_adapters={})  # a mapping that pickles
        job = pickle.dumps((theirs, dtype, max_num_batched_tokens, self._store.port))
        self._processes = [_start(rank, job, size) for rank in range(1, size)]
        self._finalizer = weakref.finalize(self, _end, self._processes)
        self._wait("started")
        self.control = _join(self._store, rank=0, size=size, device=self.device)

    def loaded(self) -> None:
        """Wait until all ranks have loaded their parts.

        Raises:
            ModelLoadError: one of them has not.
        """
        self._wait("loaded")

    def runner(
        self, loaded: LoadedModel, config: EngineConfig, *, max_num_batched_tokens: int
    ) -> ParallelRunner:
        """Return what runs the model in all ranks; see `ParallelRunner`."""
        return ParallelRunner(self, loaded, config, max_num_batched_tokens=max_num_batched_tokens)

    def send(self, command: Literal["forward", "copy"], *arguments: Any) -> None:
        """Let all other ranks do something."""
        _broadcast([(command, *arguments)], self.control)

    def lost(self) -> EngineDeadError | None:
        """Return the error that says which rank has ended; None where all are there, after a moment."""
        end = time.monotonic() + _LOST_SECONDS  # a connection breaks before its process is gone
        while time.monotonic() < end and all(process.poll() is None for process in self._processes):
            time.sleep(0.02)
        for rank, process in enumerate(self._processes, start=1):
            if process.poll() is not None:
                return EngineDeadError(
                    f"Rank {rank} of the tensor-parallel group ended (exit code {process.returncode}): see "
                    "its log above, and restart the engine"
                )
        return None

    def close(self) -> None:
        """End the other ranks, and leave the group; may be repeated."""
        if self._finalizer.alive:
            with contextlib.suppress(RuntimeError):  # a rank that has died already
                _broadcast([("stop",)], self.control)
            self._finalizer()
            dist.destroy_process_group()

    def kill(self) -> None:
        """End the other ranks whatever they do, and leave the group."""
        for process in self._processes:
            process.kill()
        self._finalizer()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wait(self, event: str) -> None:
        """Wait until each rank has reported an event."""
        started = time.monotonic()
        waiting = set(range(1, len(self._processes) + 1))
        while waiting:
            for rank in sorted(waiting):
                if self._store.check([f"{event}/{rank}"]):
                    waiting.remove(rank)
                elif self._store.check([f"failed/{rank}"]) or self._processes[rank - 1].poll() is not None:
                    raise self._failed(rank)
            if event == "started" and time.monotonic() - started > _START_SECONDS:
                raise self._failed(min(waiting))
            time.sleep(0.02)

    def _failed(self, rank: int) -> ModelLoadError:
        key = f"failed/{rank}"
        reason = self._store.get(key).decode() if self._store.check([key]) else "its process ended"
        self.kill()
        return ModelLoadError(f"Rank {rank} of the tensor-parallel group did not load its part: {reason}")


class ParallelRunner(ModelRunner):
    """Run the model in all ranks at once; the logits come to rank 0 whole.

    Args:
        workers: the other ranks.
        loaded: this rank's part of the model.
        config: of the engine.
        max_num_batched_tokens: the most tokens that one batch will have.

    Raises:
        ModelLoadError: as `ModelRunner`, in any rank.
    """

    def __init__(
        self, workers: Workers, loaded: LoadedModel, config: EngineConfig, *, max_num_batched_tokens: int
    ) -> None:
        agree = partial(smallest, group=workers.control)
        super().__init__(loaded, config, max_num_batched_tokens=max_num_batched_tokens, agree=agree)
        workers.loaded()
        self._workers = workers

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the batch in all ranks.

        Raises:
            EngineDeadError: one of them has ended.
        """
        try:
            self._workers.send("forward", _tables(batch, torch.device("cpu")))
            return super().forward(batch)
        except RuntimeError as error:  # what torch raises for broken connections, and for much else
            raise self._workers.lost() or error from error

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in all ranks."""
        self._workers.send("copy", source, target)
        super().copy_page(source, target)

    def close(self) -> None:
        """End the other ranks."""
        self._workers.close()


def rank_device(device: str, *, rank: int, size: int) -> torch.device:
    """Return the device of a rank.

    Raises:
        ModelLoadError: there are fewer GPUs than ranks, or one of them was named.
    """
    first = choose_device(device)
    if first.type != "cuda":
        return first
    if device not in ("auto", "cuda"):
        raise ModelLoadError(
            f"`device` {device!r} names one GPU, and `tensor_parallel_size` {size} needs {size}: use 'cuda', "
            "and CUDA_VISIBLE_DEVICES to choose among them"
        )
    if torch.cuda.device_count() < size:
        raise ModelLoadError(
            f"`tensor_parallel_size` is {size}, and there are {torch.cuda.device_count()} GPUs"
        )
    return torch.device("cuda", rank)


def smallest(count: int, *, group: dist.ProcessGroup) -> int:
    """Return the smallest of what the ranks call with."""
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, count, group=group)
    return min(counts)


def _broadcast(message: list[Any], group: dist.ProcessGroup) -> None:
    """Send rank 0's message to the others, or receive it."""
    dist.broadcast_object_list(message, src=0, group=group, device=torch.device("cpu"))


def _tables(batch: Batch, device: torch.device) -> Batch:
    """Return what another rank needs of a batch: its tensors, on `device`, and no sequences."""
    moved = {
        field.name: getattr(batch, field.name).to(device)
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(
        batch, rows=[], prompt_rows=[], pooled=[], read=[], images=[], scheduled=[], **moved
    )


def _start(rank: int, job: bytes, size: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // size))}
    # Not multiprocessing: that would run the user's main module again.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(rank)], stdin=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(job)
    process.stdin.close()
    return process


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        try:
            process.wait(timeout=_END_SECONDS if process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _join(store: dist.TCPStore, *, rank: int, size: int, device: torch.device) -> dist.ProcessGroup:
    """Join the group that exchanges the layers' tensors; return the one that carries what is to be done."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WITHIN_A_STEP)
    return dist.new_group(backend="gloo", timeout=_FOREVER)


def _serve(rank: int) -> None:
    """Be one of the other ranks, until rank 0 says stop or is gone."""
    config, dtype, budget, port = pickle.load(sys.stdin.buffer)
    size = config.tensor_parallel_size
    store = dist.TCPStore(_HOST, port, size, is_master=False)
    try:
        device = rank_device(config.device, rank=rank, size=size)
        store.set(f"started/{rank}", b"")
        control = _join(store, rank=rank, size=size, device=device)
        loaded = load_model(
            config, resolve_model(config.model, revision=config.revision), device=device, dtype=dtype
        )
        runner = ModelRunner(
            loaded, config, max_num_batched_tokens=budget, agree=partial(smallest, group=control)
        )
    except Exception as error:  # noqa: BLE001 - told to rank 0, who raises it
        store.set(f"failed/{rank}", str(error) or type(error).__name__)
        return
    store.set(f"loaded/{rank}", b"")
    while True:
        message: list[Any] = [None]
        try:
            _broadcast(message, control)
        except RuntimeError:  # rank 0 is gone
            return
        match message[0]:
            case ("forward", batch):
                runner.forward(_tables(batch, device))
            case ("copy", source, target):
                runner.copy_page(source, target)
            case _:
                return


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
