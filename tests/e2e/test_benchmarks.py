"""The benchmarks run and report what they promise; how fast anything is, is for no test to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import client
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
METRICS = {
    "memory": "growth_mb",
    "import": "cpu_seconds",
    "sequential": "ms",
    "in_flight_1": "per_second",
    "in_flight_64": "per_second",
    "stream_sync_separate": "cpu_us",
    "stream_sync_coalesced": "cpu_us",
    "stream_async_separate": "cpu_us",
    "stream_async_coalesced": "cpu_us",
}


def test_the_client_benchmark_measures_all_it_names(tmp_path):
    report_file = tmp_path / "client.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.client",
            "--quick",
            "--only",
            "myllm",
            "httpx",
            "--json",
            report_file,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(report_file.read_text())
    assert {"cores", "python", "httpx", "myllm-suite"} <= set(report["machine"])
    assert set(report["results"]) == {"myllm", "httpx"}
    for name, measured in report["results"].items():
        assert set(measured) == set(METRICS)
        for metric, field in METRICS.items():
            assert metric == "memory" or measured[metric][field] > 0
            if name == "httpx" and metric != "memory":
                assert measured[metric]["vs_httpx"] == 1
    assert measured["import"]["rss_mb"] > 5
    # Without the openai SDK in the run, its target cannot be judged.
    assert len(report["verdicts"]) == 4
    for verdict in report["verdicts"]:
        assert verdict["target"] in done.stdout
        assert isinstance(verdict["met"], bool)


def test_the_gpu_benchmark_runs_whole_on_a_cpu(tmp_path):
    report_file = tmp_path / "gpu.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--no-peer",
        "--save",
        report_file,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(report_file.read_text())
    assert {"cores", "python", "torch", "transformers"} <= set(report["machine"])
    assert report["bandwidth_gb_per_second"] > 0
    assert [row["batch"] for row in report["rows"]] == [1, 4, 0]  # 0: nano-vllm's workload
    for row in report["rows"]:
        assert row["tokens_per_second"] > 0
        if row["batch"]:
            assert row["floor_ms"] > 0
            assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["step_ms"], abs=0.01)


@pytest.mark.parametrize(
    ("name", "billions"), [("SmolLM2-135M", 0.135), ("Qwen3-0.6B", 0.596), ("Llama-3.1-8B", 8.03)]
)
def test_the_gpu_benchmark_knows_what_a_step_must_read(name, billions):
    from benchmarks import _random_model, gpu

    family, shape = _random_model.SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=0.01)
    weights = gpu.bytes_per_step(name, {"device": "cuda", "quantization": "none"}, 1, 0)
    # An embedding that is not the head's is only looked up.
    read = model.num_parameters() - (
        0 if shape["tie_word_embeddings"] else shape["vocab_size"] * shape["hidden_size"]
    )
    assert weights == pytest.approx(2 * read, rel=1e-3)


def test_targets_are_judged_in_the_right_direction():
    metric = {"vs_httpx": 2.0, "vs_openai": 2.0, "cpu_us": 20.0, "cpu_seconds": 0.1}
    names = ["sequential", "in_flight_1", "in_flight_64", "import", *client.STREAMS]
    verdicts = list(
        client.judge({name: dict.fromkeys(names, metric) for name in ("myllm", "httpx", "openai")})
    )
    assert [verdict["met"] for verdict in verdicts] == [False, True, False, True, True]
