"""Speak OpenAI's API, with vLLM's extensions, under `/v1`."""
