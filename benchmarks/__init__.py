"""Benchmarks: one file a subject, `python -m benchmarks.NAME`; each prints ratios against named peers."""
