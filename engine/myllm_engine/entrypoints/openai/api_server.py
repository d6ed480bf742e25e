"""Run the server, as `python -m vllm.entrypoints.openai.api_server --model NAME` runs vLLM's."""

from __future__ import annotations

from ...server.__main__ import main

if __name__ == "__main__":
    main("python -m myllm_engine.entrypoints.openai.api_server")
