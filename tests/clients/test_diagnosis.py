"""From a server's refusal to our error. The words are those of the servers' own sources."""

from __future__ import annotations

import base64
import json

import pytest

import myllm
from myllm.diagnosis import error_from_reply, hint_for, retry_after_seconds
from myllm.dialects import get_dialect
from myllm.endpoints import Endpoint
from myllm.wire import Reply, Send, Timeout, WireRequest


def diagnosed(
    status: int,
    body,
    *,
    headers: dict | None = None,
    sent_headers: dict | None = None,
    url: str = "http://h:1",
    api_key: str | None = "sesame",
    served: tuple = (),
    model: str = "m",
    path: str = "/v1/chat/completions",
    method: str = "POST",
    sent: dict | None = None,
) -> myllm.APIStatusError:
    send = Send(
        request=WireRequest(method=method, path=path, json={"model": model, **(sent or {})}),
        endpoint=Endpoint(url, api_key=api_key),
        headers=sent_headers or {"Authorization": "Bearer sesame"},
        timeout=Timeout(),
    )
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    reply = Reply(status=status, headers=headers or {}, body=raw)
    return error_from_reply(send, reply, get_dialect("vllm"), "ours", served)


def nested(message: str, **fields) -> dict:
    return {"error": {"message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "body", "error", "hint"),
    [
        (400, nested("bad", type="x"), myllm.BadRequestError, None),
        (400, {"object": "error", "message": "flat, as vLLM 0.6 had it"}, myllm.BadRequestError, None),
        (401, {"error": "Unauthorized"}, myllm.AuthenticationError, "MYLLM_API_KEY"),
        (403, {"detail": "no"}, myllm.AuthenticationError, "allowed"),
        (404, nested("The model `x` does not exist."), myllm.NotFoundError, "client.models()"),
        (404, {"detail": "Not Found"}, myllm.NotFoundError, "right kind of server"),
        (405, {"detail": "Method Not Allowed"}, myllm.APIStatusError, "right kind of server"),
        (422, {"error": "`temperature` must be strictly positive", "error_type": "validation"}, myllm.ValidationError, None),
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, myllm.RateLimitError, "in flight"),
        (500, "plain text", myllm.ServerError, None),
        (501, "<!DOCTYPE HTML>\n<html><head><title>Error response</title></head></html>", myllm.ServerError, None),
        (503, "", myllm.OverloadedError, None),
        (418, nested("teapot"), myllm.APIStatusError, None),
        (413, "Payload Too Large", myllm.APIStatusError, "larger than"),
        # vLLM: entrypoints/openai/chat_completion/protocol.py
        (400, nested('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'), myllm.BadRequestError, "--tool-call-parser"),
        (400, nested("The model does not support Chat Completions API"), myllm.BadRequestError, "another task"),
        # vLLM: renderers/hf.py; TGI: router/src/infer/mod.rs
        (400, nested("As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the tokenizer does not define one."), myllm.BadRequestError, "--chat-template"),
        (422, {"error": "Template error: template not found", "error_type": "template_error"}, myllm.ValidationError, 'model_type="text"'),
        # llama-server's, with a model that does no pooling; llama-cpp-python's: llama_cpp/llama.py
        (400, nested("Pooling type 'none' is not OAI compatible. Please use a different pooling type"), myllm.BadRequestError, "--pooling mean"),
        (500, nested("Llama model must be created with embedding=True to call this method"), myllm.ServerError, "--embedding true"),
        # TGI: router/src/validation.rs
        (422, {"error": "Input validation error: grammar is not supported", "error_type": "validation"}, myllm.ValidationError, "--disable-grammar-support"),
        # the models' chat templates, as vLLM, TGI and (with 500) llama.cpp hand them on
        (400, nested("Conversation roles must alternate user/assistant/user/assistant/..."), myllm.BadRequestError, 'message_policy="alternate"'),
        (422, {"error": "Template error: Only user and assistant roles are supported!", "error_type": "template_error"}, myllm.ValidationError, 'message_policy="merge_system"'),
        (500, nested("Jinja Exception: System message must be at the beginning.", type="server_error"), myllm.ServerError, 'message_policy="merge_system"'),
    ],
)  # fmt: skip
def test_status_words_and_what_to_do(status, body, error, hint):
    exc = diagnosed(status, body, headers={"x-request-id": "theirs"})
    assert type(exc) is error
    assert (exc.status, exc.endpoint, exc.request_id) == (status, "http://h:1", "theirs")
    assert exc.hint is None if hint is None else hint in exc.hint
    if isinstance(body, dict):
        assert exc.server_message in str(body)
        assert exc.server_message in str(exc)


@pytest.mark.parametrize(
    ("status", "words", "prompt", "max_tokens", "limit"),
    [
        # vLLM 0.6 to 0.10 (vllm#20409)
        (400, "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in the messages, 10000 in the completion). Please reduce the length of the messages or completion.", 112946, 10000, 16384),
        # vLLM 0.9 to 0.15, entrypoints/openai/serving_engine.py
        (400, "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens. Please reduce the length of the input messages.", 5000, None, 4096),
        (400, "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 32768 tokens and your request has 25125 input tokens (8192 > 32768 - 25125).", 25125, 8192, 32768),
        # vLLM 0.16 and later
        (400, "You passed 147421 input tokens and requested 16384 output tokens. However, the model's context length is only 163804 tokens, resulting in a maximum input length of 147420 tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=147421)", 147421, 16384, 163804),
        # vLLM 0.32, renderers/params.py and entrypoints/serve/utils/api_utils.py
        (400, "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=2049)", 2049, None, 2048),
        (400, "max_tokens=9999 cannot be greater than max_model_len=4096. Please request fewer output tokens.", None, 9999, 4096),
        (400, "Input length (37184) exceeds model's maximum context length (32768).", 37184, None, 32768),
        # TGI 3.3, router/src/validation.rs
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 9 `inputs` tokens and 4000 `max_new_tokens`", 9, 4000, 2048),
        (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500", 1500, None, 1024),
        (422, "Input validation error: `max_new_tokens` must be <= 512. Given: 513", None, 513, 512),
        # SGLang, managers/tokenizer_manager.py
        (400, "The input (41000 tokens) is longer than the model's context length (32768 tokens).", 41000, None, 32768),
        (400, "Requested token count exceeds the model's maximum context length of 65536 tokens. You requested a total of 67298 tokens: 50914 tokens from the input messages and 16384 tokens for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit.", 50914, 16384, 65536),
        # llama.cpp, tools/server/server-context.cpp, now and before
        (400, "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it", 9000, None, 4096),
        (400, "the request exceeds the available context size. try increasing the context size or enable context shift", None, None, None),
        # llama-cpp-python, llama_cpp/server/errors.py
        (400, "This model's maximum context length is 512 tokens. However, you requested 616 tokens (600 in the messages, 16 in the completion). Please reduce the length of the messages or completion.", 600, 16, 512),
        (400, "This model's maximum context length is 512 tokens, however you requested 616 tokens (600 in your prompt; 16 for the completion). Please reduce your prompt; or completion length.", 600, 16, 512),
        (500, "Requested tokens (600) exceed context window of 512", 600, None, 512),
        # Ollama, /api/embed with `truncate: false`
        (400, "the input length exceeds the context length", None, None, None),
        # OpenAI
        (400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 10000 tokens. Please reduce the length of the messages.", 10000, None, 8192),
        (400, "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 509178 tokens. Please reduce the length of the messages.", 509178, None, 272000),
        # `myllm serve`
        (400, "This model's maximum context length is 2048 tokens. However, you requested 2060 tokens (60 in the prompt, 2000 for the completion). Please shorten the prompt or lower `max_tokens`.", 60, 2000, 2048),
    ],
)  # fmt: skip
def test_the_numbers_of_a_context_overflow(status, words, prompt, max_tokens, limit):
    exc = diagnosed(status, nested(words))
    assert type(exc) is myllm.ContextLengthError
    assert (exc.prompt_tokens, exc.max_tokens, exc.limit) == (prompt, max_tokens, limit)
    assert "horten the prompt" in str(exc)
    assert str(exc).count("horten the prompt") == 1


def test_llama_cpp_s_fields_and_openai_s_code_say_it_too():
    """llama.cpp sends `n_prompt_tokens` and `n_ctx` beside its words; OpenAI has a code."""
    fields = {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}
    exc = diagnosed(400, nested("too long", code=400, **fields))
    assert isinstance(exc, myllm.ContextLengthError)
    assert (exc.prompt_tokens, exc.limit) == (9000, 4096)
    assert isinstance(diagnosed(400, nested("no", code="context_length_exceeded")), myllm.ContextLengthError)


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 16000. This model supports at most 4096 completion tokens, whereas you provided 16000.",
        "Requested sample logprobs of 30, which is greater than max allowed: 20",
    ],
)
def test_other_limits_are_no_context_overflow(words):
    assert type(diagnosed(400, nested(words))) is myllm.BadRequestError


def test_a_prompt_that_fills_the_context_is_too_long_only_where_nothing_else_was_asked():
    words = "max_tokens must be at least 1, got {}. (parameter=max_tokens, value={})"
    for got in (0, -186):
        assert isinstance(diagnosed(400, nested(words.format(got, got))), myllm.ContextLengthError)
        said = diagnosed(400, nested(words.format(got, got)), sent={"max_tokens": got})
        assert type(said) is myllm.BadRequestError


@pytest.mark.parametrize(
    ("status", "words", "numbers"),
    [
        (400, "max_completion_tokens is too large: 9999.This model supports at most 4096 completion tokens.", (None, 9999, 4096)),
        (400, "the prompt is longer than the context length currently available to the model; shorten the prompt", (None, None, None)),
        (500, "input (3001 tokens) is too large to process. increase the physical batch size (current batch size: 512)", (3001, None, 512)),
        (400, "This model's maximum context length is 8,192 tokens. However, your messages resulted in 9,000 tokens.", (9000, None, 8192)),
    ],
)  # fmt: skip
def test_rarer_words_for_a_prompt_that_is_too_long(status, words, numbers):
    exc = diagnosed(status, nested(words))
    assert isinstance(exc, myllm.ContextLengthError)
    assert (exc.prompt_tokens, exc.max_tokens, exc.limit) == numbers


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (nested("no", param="temperature"), "temperature"),
        ({"object": "error", "message": "no", "param": "n"}, "n"),
        (nested("top_p must be in (0, 1]. (parameter=top_p, value=2)", param=None), "top_p"),
        (
            nested(
                "1 validation error:\n  {'type': 'dict_type', 'loc': 'body.logit_bias', 'msg': 'Input should be …'}"
            ),
            "logit_bias",
        ),
        (
            nested(
                "1 validation error:\n  {'type': 'float_parsing', 'loc': ('body', 'temperature'), 'msg': '…'}"
            ),
            "temperature",
        ),
        (
            nested("Field 'n_predict': Value must be between -1 <= value <= 2147483647, but got -2"),
            "n_predict",
        ),
        ({"detail": [{"loc": ["body", "stop", 0], "msg": "Input should be a valid string"}]}, "stop"),
        (nested("no"), None),
        ("no", None),
    ],
)
def test_the_field_that_the_server_complains_of(body, param):
    assert diagnosed(400, body).param == param


def test_fastapi_s_list_of_complaints_is_readable():
    exc = diagnosed(422, {"detail": [{"loc": ["body", "n"], "msg": "too small"}, {"msg": "odd"}]})
    assert exc.server_message == "n: too small; odd"


def test_a_404_on_the_model_lists_what_is_served():
    body = nested("The model `lama` does not exist.", code=404)
    exc = diagnosed(404, body, served=("llama", "qwen"), model="lama")
    assert exc.hint == "The server serves 'llama', 'qwen'. Did you mean 'llama'?"
    assert diagnosed(404, body, served=("qwen",), model="lama").hint == "The server serves 'qwen'."
    assert "right kind" in diagnosed(404, {"detail": "Not Found"}, served=("qwen",)).hint
    told = nested("No model `lama`. This server serves: llama")
    assert diagnosed(404, told, served=("llama",), model="lama").hint == "Did you mean 'llama'?"
    assert diagnosed(404, told, served=("llama",), model="x").hint is None
    other = nested("The model `llama-2` does not exist.")
    assert diagnosed(404, other, served=("llama",), model="x").hint == "The server serves 'llama'."


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("GET", "/v1/models", "root of an LLM server"),
        ("POST", "/v1/embeddings", "--pooling mean"),
        ("POST", "/extras/tokenize", "no route that tokenizes"),
        ("POST", "/detokenize", "no route that tokenizes"),
    ],
)
def test_a_404_on_a_route_says_what_is_missing(method, path, hint):
    words = f"Not Found: {method} {path}"  # which holds the word "models" where that is the route
    assert hint in diagnosed(404, nested(words), method=method, path=path).hint
    model = nested("The model `m` does not exist.")
    assert "serves 'a'" in diagnosed(404, model, method="POST", path=path, served=("a",)).hint


def test_a_redirect_says_where_to():
    exc = diagnosed(308, "", headers={"location": "https://u:pw12@h/v1"})
    assert "https://…@h/v1" in exc.hint


# --- secrets -----------------------------------------------------------------------------------------------


BASIC = base64.b64encode(b"ann:opensesame").decode()


@pytest.mark.parametrize(
    ("sent_headers", "secret"),
    [
        ({"Authorization": "Bearer sesame"}, "sesame"),
        ({"Authorization": "Bearer another-token"}, "another-token"),
        ({"Authorization": f"Basic {BASIC}"}, BASIC),
        ({"Authorization": f"Basic {BASIC}"}, "opensesame"),
        ({"X-Api-Key": "k-123456"}, "k-123456"),
        ({"api-key": "azure-key"}, "azure-key"),
        ({"Cookie": "session=0123456789"}, "session=0123456789"),
        ({"X-Auth-Token": "tok"}, "tok"),
        ({}, "sk-proj-0123456789abcdef"),
        ({}, "hf_0123456789abcdefgh"),
    ],
)
@pytest.mark.parametrize(
    "body", ["got {}", '{{"error": {{"message": "bad key {}", "param": "{}"}}}}', '{{"seen": ["x {}"]}}']
)
def test_no_secret_stays_in_an_error(sent_headers, secret, body):
    exc = diagnosed(401, body.format(secret, secret), sent_headers=sent_headers)
    assert secret not in f"{exc} {exc!r} {exc.__dict__}"


@pytest.mark.parametrize("key", ["1", "null", "0", "message", "error", "length", "2048"])
def test_a_key_that_is_a_word_of_the_answer_hides_nothing_from_us(key):
    exc = diagnosed(
        400,
        {"error": {"message": "maximum context length is 2048 tokens", "code": 1, "param": None}},
        api_key=key,
        sent_headers={},
    )
    assert isinstance(exc, myllm.ContextLengthError)
    assert (exc.limit, exc.body["error"]["code"]) == (2048, 1)


def test_no_hint_is_better_than_a_wrong_one():
    assert hint_for(400, "whatever") is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_seconds(headers, now=60.0) == seconds
