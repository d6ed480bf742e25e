"""The server against its peers, over HTTP: `python -m benchmarks.server`."""
