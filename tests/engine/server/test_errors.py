"""What OpenAI's clients are told when something goes wrong; `tgi/test_errors.py` has TGI's."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from myllm_engine.config import EngineConfig
from myllm_engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    InvalidRequestError,
    QueueFullError,
)
from myllm_engine.server.settings import ServerSettings

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
        ("logits_processors", ["a"], "`logits_processors` are not taken"),
        ("kv_transfer_params", {"a": 1}, "`kv_transfer_params` are not taken"),
        ("vllm_xargs", {"a": 1}, "`vllm_xargs` are not taken"),
        ("truncate_prompt_tokens", 0, "`truncate_prompt_tokens` must be 1 or more, or -1"),
        ("truncate_prompt_tokens", 101, "must not be above 100, this model's maximum context length"),
        ("truncation_side", "middle", "`truncation_side`"),
        ("logprob_token_ids", [5], "`logprob_token_ids` needs `logprobs`"),
        ("repetition_detection", {"max_pattern_size": 3, "min_count": 1}, "`min_count`"),
        ("repetition_detection", {"max_size": 3}, "did you mean `max_pattern_size`?"),
        ("request_id", "", "`request_id`"),
        ("stream_interval", 0, "`stream_interval`"),
        ("max_tokens", 0, "`max_tokens` 0 makes no text"),
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
            "reads text alone",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "needs `logprobs`"),
        ({"thinking_token_budget": 5}, "thinking_token_budget", "needs a server with --reasoning-parser"),
        ({"thinking_token_budget": -2}, "thinking_token_budget", "greater than or equal to -1"),
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
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 128}, "n"),
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
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
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
        {"logits_processors": [], "vllm_xargs": {}, "kv_transfer_params": None},
        {"watermarking": False, "thinking_token_budget": -1, "guided_decoding_backend": "outlines"},
        {"spaces_between_special_tokens": False, "cache_control": {"type": "ephemeral"}},
        {"repetition_detection": {"max_pattern_size": 0}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(healthy, extra):
    assert healthy.post("/v1/chat/completions", json={**CHAT, **extra}).status_code == 200


@pytest.mark.parametrize(
    ("content", "says", "param"),
    [
        (b'{"prompt": ', "not valid JSON", None),
        (b'{"prompt": "caf\xe9"}', "not valid JSON: 'utf-8' codec can't decode byte 0xe9", None),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit", None),
        (b"[" * 100_000, "not valid JSON: maximum recursion depth", None),
        (b"", "no body", None),
        (b"[1, 2]", "JSON object", None),
        (b'{"prompt": "x", "temperature": NaN}', "temperature", "temperature"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(healthy, content, says, param):
    response = healthy.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == param


def said_by_user(content):
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("chat/completions", said_by_user(5), "messages[0].content", "`messages[0].content`: input should be a valid string, or input should be a valid list"),
        ("chat/completions", said_by_user([{"text": "x"}]), "messages[0].content", "parts of the type 'None' are not read"),
        ("chat/completions", said_by_user([{"type": "text", "text": 5}]), "messages[0].content[0].text", "`messages[0].content[0].text`: input should be a valid string"),
        ("chat/completions", said_by_user([{"type": "text", "txt": 5}]), "messages[0].content[0].txt", "did you mean `text`?"),
        ("chat/completions", said_by_user([{"type": "image_url", "image_url": {"url": 5}}]), "messages[0].content[0].image_url.url", "a valid string"),
        ("chat/completions", {**CHAT, "stop": [None]}, "stop[0]", "`stop[0]`: input should be a valid string"),
        ("chat/completions", {**CHAT, "guided_json": [1]}, "guided_json", "a valid dictionary, or input should be a valid string"),
        ("chat/completions", {**CHAT, "tools": [{"function": {"name": "f"}}], "tool_choice": {"type": "function"}}, "tool_choice.function", "`tool_choice.function` is required"),
        ("chat/completions", {**CHAT, "tools": [{"type": "function", "name": "f"}]}, "tools[0]", "is written for /v1/responses"),
        ("completions", {"prompt": [1.5]}, "prompt[0]", "`prompt[0]`: input should be a valid string, or input should be a valid list"),
        ("embeddings", {"input": [CHAT["messages"][0]]}, "input[0]", "`input[0]`: input should be a valid string"),
        ("embeddings", {"input": ["a", ""]}, "input", "The prompt is empty"),
        ("responses", {"input": 5}, "input", "`input`: input should be a valid list"),
    ],
)  # fmt: skip
def test_a_value_that_fits_no_member_of_a_union_is_told_by_its_own_path(healthy, path, body, param, says):
    response = healthy.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
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


FULL = QueueFullError("5 requests wait already")
LONG = ContextLengthError.for_model(prompt_tokens=9000, max_tokens=16, limit=8192)


@pytest.mark.parametrize(
    ("request_", "raised", "status", "kind", "says"),
    [
        (("POST", "completions", {"prompt": "x", "top_p": 7}), None, 400, "BadRequestError", "`top_p`"),
        (("POST", "completions", {"prompt": "x", "n": "y"}), None, 400, "BadRequestError", "`n`: input should be a valid integer"),
        (("POST", "completions", b"{"), None, 400, "BadRequestError", "not valid JSON"),
        (("POST", "completions", {"prompt": "x"}), LONG, 400, "BadRequestError", "This model's maximum context length is 8192 tokens. However, you requested 9016"),
        (("POST", "completions", {"prompt": "x"}), None, 401, "AuthenticationError", "Unauthorized"),
        (("GET", "models/x", None), None, 404, "NotFoundError", "'x' does not exist here"),
        (("POST", "completions", {"prompt": "x", "model": "x"}), None, 404, "NotFoundError", "'x' does not exist here"),
        (("GET", "nowhere", None), None, 404, "NotFoundError", "Not Found: GET /v1/nowhere"),
        (("GET", "completions", None), None, 405, "MethodNotAllowedError", "Method Not Allowed: GET /v1/completions"),
        (("POST", "completions", {"prompt": "x" * 2000}), None, 413, "RequestEntityTooLargeError", "1000 bytes"),
        (("POST", "completions", {"prompt": "x"}), EngineError("no numbers"), 500, "InternalServerError", "no numbers"),
        (("POST", "completions", {"prompt": "x"}), EngineDeadError("gone"), 500, "InternalServerError", "The engine has stopped"),
        (("POST", "completions", {"prompt": "x"}), KeyError("secret"), 500, "InternalServerError", "its log has the details"),
        (("POST", "completions", {"prompt": "x"}), FULL, 503, "ServiceUnavailableError", "5 requests wait already"),
    ],
)  # fmt: skip
def test_each_failure_has_its_status_shape_and_words(scripted, request_, raised, status, kind, says):
    method, path, body = request_
    key = "wrong" if status == 401 else "right"
    settings = ServerSettings(api_keys=("right",), max_body_size=1000)
    with scripted([] if raised is None else [raised], settings) as live:
        response = httpx.request(
            method,
            f"{live.url}/v1/{path}",
            content=body if isinstance(body, bytes) else None if body is None else json.dumps(body),
            headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
        )
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert ("retry-after" in response.headers) == (status == 503)
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, status)
    assert says in error["message"]


def test_a_full_queue_is_a_503_that_says_when_to_retry(scripted):
    with scripted([QueueFullError("5 requests wait already")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": True})
        assert response.status_code == 503


def test_a_request_that_never_fits_is_not_told_to_come_back(scripted):
    # What the engine itself says of a single request ...
    with scripted([InvalidRequestError("`n` 9 is more than may run and wait", param="n")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "n": 9})
        assert response.status_code == 400
        assert "retry-after" not in response.headers
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
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500
        assert "out of memory" in response.json()["error"]["message"]


def test_a_failure_inside_a_stream_is_an_event(scripted, said):
    with scripted([said(("a", b"a", None)), EngineDeadError("gone")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": True})
        *_, error, done = events(response)
        assert json.loads(error)["error"]["code"] == 500
        assert done == "[DONE]"

        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0)
        with pytest.raises(openai.APIError, match="gone"):
            list(client.chat.completions.create(model="default", stream=True, **CHAT))


def test_a_request_that_fails_alone_is_told_why(scripted):
    with scripted([EngineError("the logits of this request are no numbers")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "the logits of this request are no numbers"


def test_an_unforeseen_failure_keeps_its_words_in_the_log(scripted, caplog):
    with scripted([RuntimeError("secret /etc/path")]) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret /etc/path" in caplog.text
