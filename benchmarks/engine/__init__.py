"""The engine on CPU against its peers: `python -m benchmarks.engine`."""
