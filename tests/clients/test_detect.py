"""What `detect` makes of the answers of each kind of server, and how few questions it asks."""

from __future__ import annotations

import json

import pytest

import myllm
from myllm.dialects.detect import UndecidedError, detect, parse_version
from myllm.wire import Reply

OPENAI_MODELS = {
    "object": "list",
    "data": [{"id": "gpt-x", "object": "model", "created": 1, "owned_by": "openai"}],
}
OLD_SGLANG = {"version": "0.4.3", "model_path": "m"}


def run(answers, name=None):
    """Answer the questions from a table of path → body or status; return what was found, and the questions."""
    questions, asked = detect(name), []
    try:
        request = next(questions)
        while True:
            assert request.method == "GET"
            asked.append(request.path)
            found = answers.get(request.path, 404)
            if isinstance(found, int):
                reply = Reply(status=found, headers={}, body=b'{"detail": "no"}')
            else:
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                reply = Reply(status=200, headers={}, body=body)
            request = questions.send(reply)
    except StopIteration as stop:
        assert len(asked) <= 4
        return stop.value, asked


@pytest.mark.parametrize(
    ("answers", "dialect", "product", "version", "limit", "questions"),
    [
        ({"/v1/models": "vllm/models.json", "/version": "vllm/version.json"},
         "vllm", "vLLM 0.32.0", (0, 32, 0), 2048, 2),
        ({"/v1/models": "sglang/models.json", "/server_info": "sglang/server_info.json"},
         "sglang", "SGLang 0.5.4.post1", (0, 5, 4), 131072, 2),
        ({"/v1/models": "llama-server/models.json", "/props": "llama-server/props.json"},
         "llamacpp", "llama-server b1-0c1e570", (1,), 512, 2),
        ({"/v1/models": "llama-cpp-python/models.json", "/openapi.json": "llama-cpp-python/openapi.json"},
         "llamacpp", "llama-cpp-python 0.3.36", (0, 3, 36), None, 2),
        ({"/v1/models": "ollama/models.json", "/api/version": "ollama/version.json"},
         "ollama", "Ollama 0.12.11", (0, 12, 11), None, 2),
        ({"/v1/models": "tgi/models.json", "/info": "tgi/info.json"},
         "tgi", "Text Generation Inference 3.3.6", (3, 3, 6), 2048, 2),
        ({"/info": "tgi/info.json"},
         "tgi", "Text Generation Inference 3.3.6", (3, 3, 6), 2048, 2),
    ],
)  # fmt: skip
def test_each_kind_is_known_by_two_answers(recorded, answers, dialect, product, version, limit, questions):
    info, asked = run({path: recorded(name) for path, name in answers.items()})
    assert (info.dialect, info.product, info.version) == (dialect, product, version)
    assert info.limits.get("max_model_len") == limit
    assert len(asked) == questions
    assert info.models[0].id
    assert set(info.facts) == set(answers)


def test_limits_and_features_are_what_the_server_tells(recorded):
    info, _ = run({"/info": recorded("tgi/info.json")})
    assert info.limits == {
        "max_best_of": 2, "max_stop_sequences": 4, "max_input_tokens": 1024, "max_total_tokens": 2048,
        "max_model_len": 2048,
    }  # fmt: skip
    answers = {
        "/v1/models": recorded("llama-server/models.json"),
        "/props": recorded("llama-server/props.json"),
    }
    info, _ = run(answers)
    assert (info.limits["total_slots"], info.features) == (2, {"chat"})
    answers = {
        "/v1/models": recorded("sglang/models.json"),
        "/server_info": recorded("sglang/server_info.json"),
    }
    info, _ = run(answers)
    assert info.features == {"tools", "reasoning"}


def test_no_secret_stays_in_the_facts(recorded):
    """SGLang's `/server_info` tells the server's own keys."""
    body = recorded("sglang/server_info.json")
    assert b"sk-very-secret" in body
    info, _ = run({"/v1/models": recorded("sglang/models.json"), "/server_info": body})
    assert "secret" not in repr(info)
    assert info.facts["/server_info"]["grammar_backend"] == "xgrammar"


def test_an_older_sglang_is_asked_under_the_older_name(recorded):
    info, asked = run({"/v1/models": recorded("sglang/models.json"), "/get_server_info": OLD_SGLANG})
    assert (info.version, asked) == ((0, 4, 3), ["/v1/models", "/server_info", "/get_server_info"])


def test_myllm_serve_speaks_vllm_without_being_one(server):
    with myllm.Client(server.url) as client:
        (info,) = client.server_info().values()
    assert info.dialect == "vllm"
    assert info.product.startswith("myllm serve ")
    assert "best_of" in info.features  # which vLLM has given up
    assert info.version is None, "its own version says nothing about vLLM's"
    assert info.limits["max_model_len"] > 0


@pytest.mark.parametrize(
    ("answers", "questions"),
    [
        ({"/v1/models": OPENAI_MODELS}, 1),
        ({"/v1/models": {"data": [{"id": "a", "owned_by": "me"}]}}, 2),  # not llama-cpp-python after all
        ({"/v1/models": {"data": [{"id": "library/x:1", "owned_by": "library"}]}}, 2),  # nor Ollama
        ({"/v1/models": {"object": "list", "data": []}}, 2),
        ({}, 3),
        ({"/info": {"name": "my service"}}, 2),
    ],
)
def test_whatever_else_is_openai(answers, questions):
    info, asked = run(answers)
    assert (info.dialect, info.version, len(asked)) == ("openai", None, questions)


@pytest.mark.parametrize(
    "models",
    [
        {"object": "list", "data": None},  # no model was pulled yet
        {"object": "list", "data": [{"id": "ada/tiny:latest", "object": "model", "owned_by": "ada"}]},
        {"object": "list", "data": [{"id": "hf.co/ada/tiny:Q4", "object": "model", "owned_by": "ada"}]},
    ],
)
def test_ollama_without_a_library_model(models):
    info, _ = run({"/v1/models": models, "/api/version": {"version": "0.9.0"}})
    assert (info.dialect, info.version) == ("ollama", (0, 9, 0))


def test_a_gateway_to_models_of_an_organisation_is_no_ollama():
    models = {"data": [{"id": "meta-llama/Llama-3", "object": "model", "owned_by": "meta-llama"}]}
    info, _ = run({"/v1/models": models, "/api/version": {"version": "0.5.2"}})
    assert info.dialect == "openai"


@pytest.mark.parametrize("version", ["0.1.dev11000+gdeadbeef", "0.1.dev1", "0.0.0.dev7", "dev"])
def test_a_vllm_built_without_tags_has_no_version(version):
    models = {"data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}
    info, _ = run({"/v1/models": models, "/version": {"version": version}})
    assert (info.dialect, info.product, info.version) == ("vllm", f"vLLM {version}", None)
    info, _ = run({"/v1/models": models, "/version": {"version": "0.11.1.dev3+g1"}})
    assert info.version == (0, 11, 1)


def test_an_owner_may_be_null():
    info, _ = run({"/v1/models": {"data": [{"id": "m", "owned_by": None}]}})
    assert info.dialect == "openai"


def test_embeddings_only_server_of_the_same_house():
    info, _ = run({"/info": {"model_id": "bge", "model_type": {"embedding": {}}, "version": "1.8.0"}})
    assert (info.dialect, info.product) == ("openai", "text-embeddings-inference 1.8.0")


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503])
def test_a_failure_says_nothing_about_the_kind(status):
    with pytest.raises(UndecidedError) as caught:
        run({"/v1/models": status})
    assert caught.value.reply.status == status


@pytest.mark.parametrize("status", [429, 500, 503])
def test_nor_does_one_of_the_second_question(recorded, status):
    with pytest.raises(UndecidedError):
        run({"/v1/models": recorded("vllm/models.json"), "/version": status})


@pytest.mark.parametrize("second", [401, 403, 404, b"<html>one page for every path</html>"])
def test_a_proxy_that_hides_the_version_hides_no_more(recorded, second):
    info, _ = run({"/v1/models": recorded("vllm/models.json"), "/version": second})
    assert (info.dialect, info.version) == ("vllm", None)


def test_a_web_page_is_no_server():
    with pytest.raises(myllm.InvalidResponseError, match="not JSON"):
        run({"/v1/models": b"<html>Welcome</html>"})


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "ollama", "openai", "tgi"])
def test_a_named_dialect_stays(name):
    info, asked = run({"/v1/models": OPENAI_MODELS}, name)
    assert info.dialect == name
    assert asked[0] == ("/info" if name == "tgi" else "/v1/models")


def test_a_named_dialect_is_still_told_who_speaks_it(recorded):
    models, routes = recorded("llama-cpp-python/models.json"), recorded("llama-cpp-python/openapi.json")
    info, _ = run({"/v1/models": models, "/openapi.json": routes}, "llamacpp")
    assert info.product == "llama-cpp-python 0.3.36"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.12.0rc1+cpu", (0, 12, 0)), ("v0.6.3", (0, 6, 3)), ("b9931-0c1e570", (9931,)), ("0.5.4.post1", (0, 5, 4)),
     ("2.0", (2, 0)), ("dev", None), ("", None), (None, None), (3, None)],
)  # fmt: skip
def test_versions(text, numbers):
    assert parse_version(text) == numbers


def test_a_refused_key_is_an_authentication_error(wire):
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "Invalid API Key"}}, 401)
    with myllm.Client(wire.url, api_key="k", max_retries=0) as client:
        with pytest.raises(myllm.AuthenticationError, match="Invalid API Key"):
            client.chat("x")


def test_a_loading_server_is_waited_for(wire, recorded):
    """llama-server answers everything with 503 until its model is loaded."""
    answers = {"/v1/models": "llama-server/models.json", "/props": "llama-server/props.json",
               "/v1/chat/completions": "llama-server/chat.json"}  # fmt: skip

    def handler(seen, reply):
        if len(wire.seen) == 1:
            reply.json({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503)
        else:
            reply.raw(recorded(answers[seen.path]), 200, {"Content-Type": "application/json"})

    wire.handler = handler
    with myllm.Client(wire.url) as client:
        assert client.chat("x").usage.prompt_tokens == 37
