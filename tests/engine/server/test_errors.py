"""What clients are told when something goes wrong, in both dialects."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from myllm_engine.config import EngineConfig
from myllm_engine.errors import EngineDeadError, EngineError, InvalidRequestError, QueueFullError

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def events(response: httpx.Response) -> list[str]:
    return [
        line.removeprefix("data:").strip() for line in response.text.splitlines() if line.startswith("data:")
    ]


@pytest.fixture(scope="module")
def healthy(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))]) as live, httpx.Client(base_url=live.url) as client:
        yield client


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temprature", 0.5, "did you mean `temperature`?"),
        ("wholly_unknown", 1, "Unknown field 'wholly_unknown'"),
        ("logits_processors", ["a"], "`logits_processors` is not supported by this server yet"),
        ("temperature", "hot", "`temperature`"),
        ("temperature", -1, "`temperature` must be a number at least 0"),
        ("top_p", 0, "`top_p`"),
        ("n", 0, "`n`"),
        ("n", True, "`n`"),
        ("stop", [""], "`stop`"),
        ("seed", 2**70, "`seed`"),
        ("stream_options", {"include_usage": True}, "`stream_options` is only allowed with `stream`: true"),
        ("logit_bias", {"cat": 1}, "`logit_bias"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_wrong_field_is_named(healthy, path, field, value, says):
    body = {"prompt": "hi"} if path == "/v1/completions" else CHAT
    response = healthy.post(path, json={**body, field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert says in error["message"]
    assert error["param"].split(".")[0].split("[")[0] == field
    assert error["type"] == "BadRequestError"
    assert error["code"] == 400


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "`content` is required"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "Unknown role 'robot'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "'image_url' are not supported",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "needs `logprobs`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "--max-logprobs"),
        ({"continue_final_message": True}, "continue_final_message", "add_generation_prompt"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "differ"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "must not set `messages`"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs", "must not set `documents`"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "must not set `tokenize`"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "must not set `self`"),
        ({"messages": [{"role": "user", "content": "x"}] * 5000}, "messages", "at most 4096"),
        (
            {"stream": True, "stream_options": {"include_usages": 1}},
            "stream_options.include_usages",
            "`include_usage`",
        ),
    ],
)
def test_a_wrong_chat_request_is_explained(healthy, change, param, says):
    response = healthy.post("/v1/chat/completions", json={**CHAT, **change})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 128}, "n"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"best_of": 3, "temperature": 0}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"use_beam_search": True, "temperature": 0, "stream": True}, "use_beam_search"),
        ({"use_beam_search": True, "temperature": 1}, "temperature"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": "\ud800"}, None),
        ({"\ud800": 1}, None),
        ({"logit_bias": {"\ud800": 1}}, None),
        ({"logit_bias": {"1": "high"}}, "logit_bias"),
    ],
)
def test_a_wrong_completion_request_is_refused(healthy, change, param):
    # json.dumps, unlike httpx, writes lone surrogates as escapes.
    response = healthy.post(
        "/v1/completions",
        content=json.dumps({"prompt": "hi", **change}),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400, response.text
    if param:
        assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"response_format": {"type": "text"}, "guided_json": None, "use_beam_search": False, "n": None},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"model": None},
        {"model": "tgi"},
        {"model": "Scripted"},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(healthy, extra):
    assert healthy.post("/v1/chat/completions", json={**CHAT, **extra}).status_code == 200


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"prompt": ', "not valid JSON"),
        (b"", "no body"),
        (b"[1, 2]", "JSON object"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(healthy, content, says):
    response = healthy.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_only_json_is_taken_for_json(healthy, content_type):
    headers = {"content-type": content_type} if content_type else {}
    response = healthy.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_an_unknown_model_lists_the_served_ones(healthy):
    response = healthy.post("/v1/completions", json={"model": "gpt-5", "prompt": "x"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["type"] == "NotFoundError"
    assert error["param"] == "model"
    assert "smollm2" in error["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/completions", 405)])
def test_unknown_routes_answer_json(healthy, method, path, status):
    response = healthy.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == status


def test_a_full_queue_is_a_503_that_says_when_to_retry(scripted):
    with scripted([QueueFullError("5 requests wait already")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": True})
        assert response.status_code == 503
        response = httpx.post(f"{live.url}/generate", json={"inputs": "x"})
        assert response.status_code == 429
        assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}


def test_a_request_that_never_fits_is_not_told_to_come_back(scripted):
    # What the engine itself says of a single request ...
    with scripted([InvalidRequestError("`n` 9 is more than may run and wait", param="n")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "n": 9})
        assert response.status_code == 400
        assert "retry-after" not in response.headers
        assert httpx.post(f"{live.url}/generate", json={"inputs": "x"}).status_code == 422
    # ... and what it cannot know: all requests that one body makes.
    with scripted([], config=EngineConfig(max_num_seqs=2, max_queue=1)) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": ["x", "y"], "n": 2})
        assert response.status_code == 400
        assert "asks for 4 sequences (prompts x n), and no more than 3" in response.json()["error"]["message"]
        assert live.engine.requests == []


def test_a_dead_engine_is_told_by_requests_and_health(scripted):
    dead = EngineDeadError("out of memory")
    with scripted([dead], error=dead) as live:
        assert httpx.get(f"{live.url}/health").status_code == 503
        assert httpx.get(live.url).status_code == 503
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500
        assert "out of memory" in response.json()["error"]["message"]
        response = httpx.post(f"{live.url}/generate", json={"inputs": "x"})
        assert response.status_code == 500
        assert response.json()["error_type"] == "generation"


def test_a_failure_inside_a_stream_is_an_event(scripted, said):
    with scripted([said(("a", b"a", None)), EngineDeadError("gone")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": True})
        *_, error, done = events(response)
        assert json.loads(error)["error"]["code"] == 500
        assert done == "[DONE]"

        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0)
        with pytest.raises(openai.APIError, match="gone"):
            list(client.chat.completions.create(model="default", stream=True, **CHAT))

        response = httpx.post(f"{live.url}/generate_stream", json={"inputs": "x"})
        *_, error = events(response)
        assert json.loads(error)["error_type"] == "generation"


def test_a_request_that_fails_alone_is_told_why(scripted):
    with scripted([EngineError("the logits of this request are no numbers")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "the logits of this request are no numbers"
        response = httpx.post(f"{live.url}/generate", json={"inputs": "x"})
        assert response.status_code == 500
        assert "no numbers" in response.json()["error"]


def test_an_unforeseen_failure_keeps_its_words_in_the_log(scripted, caplog):
    with scripted([RuntimeError("secret /etc/path")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret /etc/path" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        (
            {"max_new_tokens": 99},
            "`inputs` tokens + `max_new_tokens` must be <= 100. "
            "Given: 2 `inputs` tokens and 99 `max_new_tokens`",
        ),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 100. Given: 0"),
        ({"grammar": {"type": "regex", "value": ""}}, "`grammar` must be a non-empty string"),
        ({"watermark": True}, "`watermark` is not supported by this server yet"),
        ({"max_tokens": 5}, "Unknown field 'max_tokens'"),
    ],
)
def test_tgi_validation_has_tgis_words(healthy, parameters, says):
    response = healthy.post("/generate", json={"inputs": "hi", "parameters": parameters})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert response.json()["error"].startswith(f"Input validation error: {says}")


@pytest.mark.parametrize(
    ("body", "says"), [({"inputs": ""}, "`inputs` cannot be empty"), ({}, "`inputs` is required")]
)
def test_tgi_wants_inputs(healthy, body, says):
    response = healthy.post("/generate", json=body)
    assert response.status_code == 422
    assert response.json()["error"] == f"Input validation error: {says}"


def test_tgi_streams_refuse_best_of_before_they_begin(healthy):
    body = {"inputs": "hi", "parameters": {"best_of": 2, "do_sample": True}}
    response = healthy.post("/generate_stream", json=body)
    assert response.status_code == 422
    assert "`best_of` != 1 is not supported when streaming tokens" in response.json()["error"]
