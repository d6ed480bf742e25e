"""The parts of `myllm_adapters.dspy`: parameters, requests, responses, errors and the engines."""
