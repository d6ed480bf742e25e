"""Serve `/metrics` for Prometheus, under vLLM's names and TGI's.

`recorder` counts what happens to requests, `vllm` and `tgi` name it, `route` serves it.
"""
