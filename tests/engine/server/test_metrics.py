"""What `/metrics` says after known requests, read by Prometheus' own parsers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from myllm_engine.config import EngineConfig
from myllm_engine.errors import EngineDeadError, QueueFullError
from myllm_engine.request import CompletionOutput, Request, RequestOutput
from myllm_engine.server.metrics.recorder import Recorder
from myllm_engine.server.settings import ServerSettings

MODEL = "served"


class Samples:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._values[name, frozenset({"model_name": MODEL, **labels}.items())]

    def names(self) -> set[str]:
        return {name for name, _ in self._values}


@pytest.fixture(scope="module")
def url(serve) -> Iterator[str]:
    with serve(ServerSettings(served_model_names=(MODEL, "other"))) as live:
        yield live.url


@pytest.fixture
def difference(url) -> Callable[..., Callable[..., float]]:
    """Return a function that makes requests, and returns what they added to a sample."""

    def measure(requests: Callable[[], None]) -> Callable[..., float]:
        before = Samples(httpx.get(f"{url}/metrics").text)
        requests()
        after = Samples(httpx.get(f"{url}/metrics").text)
        return lambda name, **labels: after(name, **labels) - before(name, **labels)

    return measure


def post(url: str, path: str, **body) -> dict:
    return httpx.post(url + path, json=body, timeout=60).json()


def test_the_sums_are_those_of_the_requests(url, difference):
    usages = []

    def ask(path, **body):
        usages.append(post(url, path, ignore_eos=True, **body)["usage"])

    def requests():
        ask("/v1/completions", prompt="The capital of France is", max_tokens=5, n=2, seed=1)
        ask("/v1/completions", prompt=["One, two", "A much longer prompt than the other"], max_tokens=3)
        ask("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], max_tokens=4)
        body = {"prompt": "Once", "max_tokens": 6, "ignore_eos": True, "stream": True}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json={**body, "stream_options": {"include_usage": True}}
        ) as answer:
            *_, last, _ = [line for line in answer.iter_lines() if line]
        usages.append(json.loads(last.removeprefix("data: "))["usage"])

    gained = difference(requests)
    prompts, completions = 5, 6  # the two completions of the first request share its prompt
    prompt_tokens = sum(usage["prompt_tokens"] for usage in usages)
    tokens = sum(usage["completion_tokens"] for usage in usages)
    assert tokens == 10 + 6 + 4 + 6

    assert gained("vllm:prompt_tokens_total") == prompt_tokens
    assert gained("vllm:generation_tokens_total") == tokens
    assert gained("vllm:request_success_total", finished_reason="length") == completions
    assert gained("vllm:request_success_total", finished_reason="stop") == 0
    assert gained("vllm:request_prompt_tokens_sum") == prompt_tokens
    assert gained("vllm:request_prompt_tokens_count") == prompts
    assert gained("vllm:request_generation_tokens_sum") == tokens
    assert gained("vllm:request_generation_tokens_count") == completions
    assert gained("vllm:request_max_num_generation_tokens_sum") == 5 + 3 + 3 + 4 + 6
    assert gained("vllm:request_params_n_sum") == 2 + 1 + 1 + 1 + 1
    assert gained("vllm:request_params_max_tokens_sum") == 5 + 3 + 3 + 4 + 6
    for name in (
        "time_to_first_token",
        "e2e_request_latency",
        "request_queue_time",
        "request_inference_time",
    ):
        assert gained(f"vllm:{name}_seconds_count") == prompts
    # Each token but a completion's first one came some time after another.
    assert gained("vllm:inter_token_latency_seconds_count") == tokens - completions

    queued, read, written = (
        gained(f"vllm:request_{name}_time_seconds_sum") for name in ("queue", "prefill", "decode")
    )
    assert gained("vllm:request_inference_time_seconds_sum") == pytest.approx(read + written)
    assert 0 <= queued + read + written < gained("vllm:e2e_request_latency_seconds_sum")
    assert queued + read < gained("vllm:time_to_first_token_seconds_sum") < 2 * queued + read + 5
    # What steps compute: the prompts' tokens that no page held, and each token that others follow.
    computed = gained("vllm:prefix_cache_queries_total") - gained("vllm:prefix_cache_hits_total")
    assert gained("vllm:iteration_tokens_total_sum") == computed + tokens - completions

    # Nothing is speculated here.
    assert gained("tgi_request_skipped_tokens_count") == tokens
    assert gained("tgi_request_skipped_tokens_sum") == 0
    assert gained("vllm:request_prefill_kv_computed_tokens_count") == prompts
    # Another test may have left the beginning of one.
    assert 0 < gained("vllm:request_prefill_kv_computed_tokens_sum") <= prompt_tokens

    assert gained("tgi_request_count") == gained("tgi_request_success") == 4
    assert gained("tgi_request_input_length_sum") == prompt_tokens
    assert gained("tgi_request_generated_tokens_sum") == tokens
    assert gained("tgi_request_max_new_tokens_count") == prompts
    assert gained("tgi_request_inference_duration_sum") == pytest.approx(read + written)
    steps = gained("vllm:iteration_tokens_total_count")
    by_method = [gained("tgi_batch_inference_count", method=method) for method in ("prefill", "decode")]
    assert sum(by_method) == steps
    assert all(by_method)
    assert gained("tgi_batch_next_size_count") == by_method[0]
    # Each prompt is short enough for one step, and the second completion of the first reads its end itself.
    assert gained("tgi_batch_next_size_sum") == completions


def test_tokens_that_had_to_come_are_skipped_steps(url, difference):
    def requests():
        text = post(url, "/v1/completions", prompt="x", guided_choice=["one and only answer"], max_tokens=20)
        assert text["choices"][0]["text"] == "one and only answer"

    gained = difference(requests)
    assert gained("tgi_request_skipped_tokens_sum") > 0
    tokens = gained("tgi_request_generated_tokens_sum")
    assert gained("tgi_request_skipped_tokens_count") + gained("tgi_request_skipped_tokens_sum") == tokens


def test_a_prompt_that_was_there_before_is_found(url, difference):
    prompt = "The quick brown fox jumps over the lazy dog, and then it runs back into the dark wood again."
    post(url, "/v1/completions", prompt=prompt, max_tokens=1)
    gained = difference(lambda: post(url, "/v1/completions", prompt=prompt, max_tokens=1))
    found = gained("vllm:prompt_tokens_cached_total")
    assert found == gained("vllm:prefix_cache_hits_total") > 0
    assert gained("vllm:request_prefill_kv_computed_tokens_sum") == gained("vllm:prompt_tokens_total") - found


def test_the_adapters_under_way_are_told(scripted):
    recorder = Recorder(100)
    for name, lora in (("1", "sql"), ("2", "fr"), ("3", None)):
        recorder.accepted(Request(prompt_token_ids=[1], request_id=name, lora=lora))
    assert recorder.adapters() == (set(), {"sql", "fr"})
    recorder.delivered([RequestOutput("1", [1], [CompletionOutput(0, "a", [97])])])
    assert recorder.adapters() == ({"sql"}, {"fr"})
    recorder.lost(["1", "2"])
    assert recorder.adapters() == (set(), set())
    for loras in (0, 3):
        with scripted(config=EngineConfig(max_loras=loras)) as live:
            text = httpx.get(f"{live.url}/metrics").text
        info = 'vllm:lora_requests_info{max_lora="3",running_lora_adapters="",waiting_lora_adapters=""}'
        assert (info in text) is bool(loras)


def test_tgi_s_routes_and_refusals_count_as_tgi_counts_them(url, difference):
    def requests():
        post(url, "/generate", inputs="Once", parameters={"max_new_tokens": 3})
        post(url, "/generate", inputs="Once", parameters={"top_k": 0})
        post(url, "/generate", inputs="")
        post(url, "/v1/completions", prompt="x", temperature=-1)
        post(url, "/v1/completions", prompt="x", model="unknown")
        post(url, "/tokenize")  # makes nothing

    gained = difference(requests)
    assert gained("tgi_request_count") == 5
    assert gained("tgi_request_success") == 1
    assert gained("tgi_request_failure", err="validation") == 3
    assert gained("vllm:request_prompt_tokens_count") == 1


def test_an_aborted_request_is_counted_as_such(url, difference):
    def requests():
        body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        for _ in range(100):
            if Samples(httpx.get(f"{url}/metrics").text)("vllm:num_requests_running") == 0:
                break

    gained = difference(requests)
    assert gained("vllm:request_success_total", finished_reason="abort") == 1
    assert gained("vllm:time_to_first_token_seconds_count") == 1
    assert gained("vllm:e2e_request_latency_seconds_count") == 0
    assert (gained("tgi_request_count"), gained("tgi_request_success")) == (1, 0)
    assert gained("tgi_request_failure", err="dropped") == 1


def test_a_client_that_does_not_wait_for_the_answer_has_dropped_it(url, difference):
    def requests():
        with pytest.raises(httpx.ReadTimeout):
            body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True}
            httpx.post(f"{url}/v1/completions", json=body, timeout=0.5)
        for _ in range(100):
            if httpx.get(f"{url}/load").json() == {"server_load": 0}:
                break

    gained = difference(requests)
    assert gained("tgi_request_failure", err="dropped") == 1
    assert (gained("tgi_request_count"), gained("tgi_request_success")) == (1, 0)


@pytest.mark.parametrize(
    ("error", "label"), [(QueueFullError("full"), "overloaded"), (EngineDeadError("dead"), "generation")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_have_tgi_s_words(scripted, said, error, label, stream):
    # In a stream the failure comes after the status.
    script = [said(("a", b"a", None)), error] if stream else [error]
    with scripted(script, ServerSettings(served_model_names=(MODEL,))) as live:
        httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": stream})
        samples = Samples(httpx.get(f"{live.url}/metrics").text)
        assert samples("tgi_request_failure", err=label) == 1
        assert (samples("tgi_request_count"), samples("tgi_request_success")) == (1, 0)


def test_the_state_of_the_engine(url, serve):
    samples = Samples(httpx.get(f"{url}/metrics").text)
    assert 0 <= samples("vllm:kv_cache_usage_perc") <= 1
    assert samples("tgi_batch_current_size") == samples("vllm:num_requests_running") == 0
    assert samples("tgi_queue_size") == samples("vllm:num_requests_waiting") == 0
    assert {
        "vllm:cache_config_info",
        "vllm:num_preemptions_total",
        "process_resident_memory_bytes",
    } <= samples.names()


def test_names_are_vllm_s_whatever_the_scraper_prefers(url):
    # What Prometheus 2 sends.
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    answer = httpx.get(f"{url}/metrics", headers={"accept": accept})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert Samples(answer.text)("vllm:prompt_tokens_total") >= 0


def test_metrics_are_the_operator_s(scripted):
    with scripted([], ServerSettings(api_keys=("key",))) as live:
        assert httpx.get(f"{live.url}/metrics").status_code == 401
        headers = {"Authorization": "Bearer key"}
        assert httpx.get(f"{live.url}/metrics", headers=headers).status_code == 200
