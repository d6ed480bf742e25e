"""DSPy's old clients: each test says what the old one did."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

import myllm
from myllm import HFClientTGI, HFClientVLLM

TEXT = {"id": "t", "model": "m", "choices": [{"index": 0, "text": " Paris", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}  # fmt: skip
CHAT = {
    "id": "c",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
}


def test_generate_keeps_its_shape_and_its_defaults(wire):
    wire.answers(TEXT)
    response = HFClientVLLM("m", wire.port, model_type="text")._generate("The capital of France is")
    assert response["prompt"] == "The capital of France is"
    assert response["choices"] == [{"text": " Paris", "index": 0, "finish_reason": "stop"}]
    assert (response["model"], response["usage"]["total_tokens"]) == ("m", 6)
    assert wire.bodies[0] == {
        "model": "m", "prompt": "The capital of France is", "temperature": 0.0, "max_tokens": 150, "top_p": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1,
    }  # fmt: skip


def test_constructor_s_parameters_are_defaults_and_a_call_s_go_before_them(wire):
    wire.answers(TEXT)
    client = HFClientVLLM(
        model="m", port=wire.port, url="http://127.0.0.1", model_type="text", max_tokens=9, top_k=4
    )
    client._generate("x", max_new_tokens=3)
    assert client.kwargs["max_tokens"] == 9
    assert client.kwargs["temperature"] == 0.0
    assert (wire.bodies[0]["max_tokens"], wire.bodies[0]["top_k"]) == (3, 4)


def test_an_unknown_parameter_is_refused_where_the_old_client_dropped_it(wire):
    with pytest.raises(myllm.UnknownParameterError, match="Did you mean `temperature`"):
        HFClientVLLM("m", wire.port, temperatur=1)
    with pytest.raises(myllm.UnknownParameterError, match="Did you mean `max_tokens`"):
        HFClientVLLM("m", wire.port, model_type="text")._generate("x", max_tokns=1)
    assert wire.seen == []


def test_call_returns_texts_and_history_remembers(wire, capsys):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    assert client("The capital?", temperature=0.5) == [" Paris"]
    (entry,) = client.history
    assert set(entry) == {"prompt", "response", "kwargs", "raw_kwargs"}
    assert entry["raw_kwargs"] == {"temperature": 0.5}
    assert entry["kwargs"]["temperature"] == 0.5
    text = client.inspect_history(n=1)
    assert "The capital? Paris" in text
    assert capsys.readouterr().out == text
    assert client.inspect_history(n=1, skip=1) == ""


def test_generate_itself_leaves_no_history(wire):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    client._generate("x")
    assert client.history == []


def test_chat_model_type_and_system_prompt(wire):
    wire.answers(CHAT)
    client = HFClientVLLM("m", wire.port, model_type="chat", system_prompt="Be brief.")
    assert client("Hi") == ["Paris"]
    assert wire.seen[0].path == "/v1/chat/completions"
    assert wire.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_third_positional_model_type_still_works_with_a_warning(wire):
    wire.answers(CHAT)
    with pytest.warns(DeprecationWarning, match="model_type='chat'"):
        client = HFClientVLLM("m", wire.port, "chat")
    assert client("Hi") == ["Paris"]


@pytest.mark.parametrize("make", [HFClientVLLM, HFClientTGI])
def test_a_prompt_is_a_chat_message_where_the_old_clients_sent_raw_text(wire, make):
    """An instruct model has nothing to say to a question without its chat template."""
    wire.answers(CHAT)
    assert make("m", wire.port)("The capital of France?") == ["Paris"]
    assert wire.seen[0].path == "/v1/chat/completions"
    assert wire.bodies[0]["messages"] == [{"role": "user", "content": "The capital of France?"}]


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, {"error": {"message": "the model has no chat template"}}), (404, {"detail": "Not Found"})],
)
def test_without_template_or_chat_route_a_prompt_is_text_from_then_on(wire, status, body):
    wire.handler = lambda seen, reply: reply.json(body, status) if "chat" in seen.path else reply.json(TEXT)
    client = HFClientVLLM("m", wire.port)
    assert [client("Hi"), client("Hi")] == [[" Paris"], [" Paris"]]
    assert [seen.path for seen in wire.seen] == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]


def test_other_refusals_are_not_taken_for_a_missing_template(wire):
    wire.handler = lambda seen, reply: reply.json(
        {"error": {"message": "The model `m` does not exist."}}, 404
    )
    with pytest.raises(myllm.NotFoundError):
        HFClientVLLM("m", wire.port)("Hi")
    assert len(wire.seen) == 1


def test_parameters_that_only_tgi_s_generate_knows_take_that_route(wire):
    wire.answers({"generated_text": " Paris"})
    with pytest.warns(UserWarning, match="`top_k=5`.*without the model's chat template"):
        assert HFClientTGI("m", wire.port, top_k=5)("Hi") == [" Paris"]
    assert [seen.path for seen in wire.seen] == ["/generate"]


def test_tgi_chat_makes_n_requests_where_the_server_would_ignore_n(wire):
    wire.answers(CHAT)
    texts = HFClientTGI("m", wire.port, model_type="chat")("Hi", n=3, seed=7, temperature=1)
    assert texts == ["Paris"] * 3
    assert [body["seed"] for body in wire.bodies] == [7, 8, 9]
    assert all("n" not in body for body in wire.bodies)


@pytest.mark.parametrize("make", [HFClientVLLM, HFClientTGI])
def test_ports_and_urls_as_lists(make):
    assert [e.url for e in make("m", [8000, 8001]).client.endpoints] == [
        "http://localhost:8000",
        "http://localhost:8001",
    ]
    assert [e.url for e in make("m", None, url=["http://a:1", "http://b:2/v1"]).client.endpoints] == [
        "http://a:1",
        "http://b:2",
    ]


def test_tgi_generate(wire):
    wire.answers(
        {"generated_text": " Paris\n", "details": {"finish_reason": "stop_sequence", "generated_tokens": 2}}
    )
    response = HFClientTGI("m", wire.port, model_type="text")._generate("The capital of France is")
    assert response["choices"] == [{"text": " Paris", "index": 0, "finish_reason": "stop"}]
    assert wire.seen[0].path == "/generate"
    assert wire.bodies[0]["parameters"] == {
        "details": True, "temperature": 0.01, "max_new_tokens": 75, "top_p": 0.97, "stop": ["\n", "\n\n"],
        "do_sample": True,
    }  # fmt: skip


def test_http_request_kwargs_are_mapped(wire):
    wire.answers({"generated_text": "x"})
    client = HFClientTGI(
        "m",
        wire.port,
        model_type="text",
        http_request_kwargs={
            "headers": {"X-A": "1"},
            "timeout": (1, 20),
            "verify": False,
            "auth": ("u", "p"),
        },
    )
    client._generate("x")
    assert wire.seen[0].headers["x-a"] == "1"
    assert wire.seen[0].headers["authorization"].startswith("Basic ")
    assert (client.client.timeout.connect, client.client.timeout.read) == (1, 20)
    with pytest.raises(myllm.InvalidParameterError, match="`allow_redirects`"):
        HFClientTGI("m", 1, http_request_kwargs={"allow_redirects": True})


def test_copy_has_other_defaults_and_shares_the_connections(wire):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    client("x")
    other = client.copy(temperature=0.9, model="m2")
    other("y")
    assert (client.kwargs["temperature"], other.kwargs["temperature"]) == (0.0, 0.9)
    assert other.client._transport is client.client._transport
    assert (len(client.history), len(other.history)) == (1, 1)
    assert wire.bodies[-1]["model"] == "m2"


def test_pickle_and_deepcopy(wire):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text", api_key="k")
    assert pickle.loads(pickle.dumps(client))("x") == [" Paris"]
    assert wire.seen[-1].headers["authorization"] == "Bearer k"
    assert copy.deepcopy(client)("x") == [" Paris"]


def test_a_key_is_in_no_repr_and_no_history(wire):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text", api_key="sesame")
    client("x")
    assert "sesame" not in f"{client!r} {client.client!r} {client.history!r} {client.kwargs!r}"


def test_32_threads(wire):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    texts = []
    threads = [threading.Thread(target=lambda: texts.extend(client("x"))) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [" Paris"] * 32
    assert len(client.history) == 32


def test_errors_are_typed_where_the_old_client_raised_bare_exceptions(wire, free_port):
    wire.handler = lambda seen, reply: reply.raw(b"<html>nginx</html>")
    with pytest.raises(myllm.InvalidResponseError, match="not JSON"):
        HFClientVLLM("m", wire.port, model_type="text")._generate("x")
    with pytest.raises(myllm.ConnectError, match="myllm serve"):
        HFClientTGI("m", free_port)._generate("x")


@pytest.mark.parametrize(
    ("make", "given", "sent"),
    [
        (HFClientTGI, {"max_new_tokens": 20}, {"max_new_tokens": 20}),
        (HFClientTGI, {"stop_sequences": ["x"]}, {"stop": ["x"]}),
        (HFClientVLLM, {"max_completion_tokens": 20}, {"max_tokens": 20}),
    ],
)
def test_other_names_of_a_parameter_replace_the_old_default(wire, make, given, sent):
    wire.answers({**TEXT, "generated_text": "x"})
    client = make("m", wire.port, model_type="text", **given)
    for one in (client, make("m", wire.port, model_type="text").copy(**given)):
        one._generate("p")
        body = wire.bodies[-1]
        body = body.get("parameters", body)
        assert {name: body[name] for name in sent} == sent


def test_a_bad_value_is_told_by_the_constructor():
    with pytest.raises(myllm.InvalidParameterError, match="temperature"):
        HFClientVLLM("m", 1, temperature=-1)
    with pytest.raises(myllm.InvalidParameterError, match="temperature"):
        HFClientVLLM("m", 1).copy(temperature=-1)
    for make in (lambda **kw: HFClientVLLM("m", 1, **kw), HFClientVLLM("m", 1).copy):
        with pytest.raises(myllm.InvalidParameterError, match="model_type"):
            make(model_type="talk")


def test_a_template_that_refuses_these_messages_is_no_missing_template(wire):
    words = "The chat template cannot render these messages: System role not supported"
    wire.handler = lambda seen, reply: reply.json({"error": {"message": words}}, 400)
    client = HFClientVLLM("m", wire.port, system_prompt="Be brief.")
    for _ in range(2):
        with pytest.raises(myllm.BadRequestError):
            client("Hi")
    assert {seen.path for seen in wire.seen} == {"/v1/chat/completions"}


def test_a_system_prompt_is_never_dropped(wire):
    with pytest.raises(myllm.InvalidParameterError, match="system_prompt"):
        HFClientVLLM("m", wire.port, model_type="text", system_prompt="Be brief.")
    with pytest.raises(myllm.UnsupportedFeatureError):
        HFClientTGI("m", wire.port, system_prompt="Be brief.", top_k=5)("Hi")
    wire.handler = lambda seen, reply: (
        reply.json({"error": {"message": "the model has no chat template"}}, 400)
        if "chat" in seen.path
        else reply.json(TEXT)
    )
    client = HFClientVLLM("m", wire.port)
    assert client("Hi") == [" Paris"]
    with pytest.raises(myllm.InvalidParameterError, match="needs a chat template"):
        client("Hi", system_prompt="Be brief.")


@pytest.mark.parametrize(
    ("proxies", "proxy", "trusts"),
    [
        ({"https": "http://p:1"}, None, True),
        ({"http": "http://p:1"}, "http://p:1", True),
        ({"http": None, "https": None}, None, False),
        ("http://p:2", "http://p:2", True),
        (None, None, True),
    ],
)
def test_proxies_are_chosen_as_requests_does(proxies, proxy, trusts):
    options = HFClientTGI("m", 1, url="http://far", http_request_kwargs={"proxies": proxies}).client._http
    assert (options.proxy, options.trust_env) == (proxy, trusts)
