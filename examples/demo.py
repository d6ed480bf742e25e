"""The main job, end to end: one real model, served by the bundled engine, through every front door.

    make demo            (or: python examples/demo.py)

Starts `myllm serve` with the bundled SmolLM2-135M-Instruct on a free port, asks it through the old DSPy
clients, DSPy 3, AutoGen and LiteLLM, and stops it again, also on Ctrl-C and when the demo is killed.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from types import FrameType

# Neither a price list nor a model is to be looked up in the network, and no answer in an earlier run's cache.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import myllm

MODEL = "smollm2"
QUESTION = "What is the capital of France?"
console = Console(highlight=False)


def main() -> None:
    """Run the demo."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    speeds: list[tuple[str, int, float, float | None]] = []
    console.print(
        Panel(
            "One model, one server, every framework. The model is small (135M parameters): it is here to be "
            "real, not to be clever.",
            title=f"myllm {myllm.__version__}",
            expand=False,
        )
    )
    with tempfile.TemporaryDirectory(prefix="myllm-demo-") as scratch:
        os.environ["DSPY_CACHEDIR"] = scratch
        started = time.perf_counter()
        console.print("Starting the engine …")
        with myllm.Server(MODEL) as server:
            console.print(f"[green]✓[/] ready at {server.url} after {time.perf_counter() - started:.1f} s")
            old_clients(server, speeds)
            dspy_program(server)
            autogen_agents(server)
            litellm_stream(server, speeds)
        console.print("[green]✓[/] engine stopped")
    table = Table(title="Speed, one request at a time")
    for heading in ("call", "tokens", "tokens/s", "time to first token"):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    for name, tokens, seconds, first in speeds:
        table.add_row(
            name, str(tokens), f"{tokens / seconds:.1f}", "–" if first is None else f"{first:.2f} s"
        )
    console.print(table)


def old_clients(server: myllm.Server, speeds: list[tuple[str, int, float, float | None]]) -> None:
    """DSPy's removed clients, working again, on vLLM's API and on TGI's."""
    for client_class in (myllm.HFClientVLLM, myllm.HFClientTGI):
        name = client_class.__name__
        with step(f'{name}("{MODEL}", port)._generate("{QUESTION}")'):
            start = time.perf_counter()
            response = client_class(MODEL, server.port)._generate(QUESTION)
            speeds.append((name, response["usage"]["completion_tokens"], time.perf_counter() - start, None))
            answer(response["choices"][0]["text"])


def dspy_program(server: myllm.Server) -> None:
    """A DSPy program, with one worked example, as an optimizer would add."""
    with step('dspy.ChainOfThought("question -> answer")'):
        import dspy

        from myllm_adapters.dspy import HFClientVLLM

        dspy.configure(lm=HFClientVLLM(MODEL, server.port, temperature=0.0, max_tokens=100))
        program = dspy.ChainOfThought("question -> answer")
        program.predict.demos = [
            dspy.Example(
                question="What is the capital of Japan?",
                reasoning="The capital of Japan is Tokyo.",
                answer="Tokyo",
            )
        ]
        prediction = program(question=QUESTION)
        answer(prediction.reasoning, label="reasoning")
        answer(prediction.answer)


def autogen_agents(server: myllm.Server) -> None:
    """Two AutoGen agents that talk to each other."""
    with step("two AutoGen agents: initiate_chat(…, max_turns=2)"):
        from autogen import ConversableAgent

        from myllm_adapters.autogen import llm_config

        config = llm_config(MODEL, port=server.port, temperature=0.0, max_tokens=48)
        teacher = ConversableAgent(
            "teacher",
            llm_config=config,
            system_message="You are a teacher. Answer in one short sentence.",
        )
        child = ConversableAgent(
            "child",
            llm_config=config,
            system_message="You are a curious child. Ask one short question.",
        )
        with contextlib.redirect_stdout(io.StringIO()):  # AutoGen's own log of the chat; ours is below
            chat = child.initiate_chat(teacher, message="Hello! Why is the sky blue?", max_turns=2)
        for message in chat.chat_history:
            answer(message["content"], label=message["name"])


def litellm_stream(server: myllm.Server, speeds: list[tuple[str, int, float, float | None]]) -> None:
    """A LiteLLM completion, shown as it comes."""
    with step(f'litellm.completion(model="myllm/{MODEL}", messages=…, stream=True)'):
        import litellm

        import myllm_adapters.litellm  # noqa: F401 - registers the provider

        start = time.perf_counter()
        first: float | None = None
        tokens = 0
        console.print("  [cyan]answer[/] ", end="")
        for chunk in litellm.completion(
            model=f"myllm/{MODEL}",
            api_base=server.url,
            messages=[{"role": "user", "content": "Tell me a short story about a lighthouse."}],
            temperature=0.0,
            max_tokens=80,
            stream=True,
            stream_options={"include_usage": True},
        ):
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                first = first or time.perf_counter() - start
                console.print(text, end="", markup=False, soft_wrap=True)
            if usage := getattr(chunk, "usage", None):
                tokens = usage.completion_tokens
        console.print()
        speeds.append(("litellm, streamed", tokens, time.perf_counter() - start, first))


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Head a part of the demo, and say how long it took."""
    console.print()
    console.rule(f"[bold]{title}", align="left", style="dim")
    start = time.perf_counter()
    yield
    console.print(f"  [dim]{time.perf_counter() - start:.1f} s[/]")


def answer(text: str, label: str = "answer") -> None:
    """Show a text of the model's."""
    console.print(f"  [cyan]{label}[/] ", end="")
    console.print(text.strip(), markup=False)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\n[yellow]Stopped; the engine is gone too.[/]")
        sys.exit(130)
    except myllm.MyLLMError as exc:
        console.print(f"[red]{exc}[/]")
        sys.exit(1)
