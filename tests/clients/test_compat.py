"""DSPy's old clients: each test says what the old one did (`dsp/modules/hf_client.py`, 2.4.12 and 2.5.43)."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import myllm
import myllm.hooks
from myllm import HFClientSGLang, HFClientTGI, HFClientVLLM, compat

BOTH = pytest.mark.parametrize("make", [HFClientVLLM, HFClientTGI])
ALL = pytest.mark.parametrize("make", [HFClientVLLM, HFClientTGI, HFClientSGLang])

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


@ALL
def test_the_documented_arguments_in_their_documented_places(make):
    """`HFClientTGI(model, port, url, http_request_kwargs)`; the default URL was its authors' machine."""
    parameters = inspect.signature(make).parameters
    wanted = ["model", "port", "url", "kwargs"]
    if make is HFClientTGI:
        wanted.insert(3, "http_request_kwargs")
    assert list(parameters) == wanted
    assert parameters["url"].default == "http://localhost"


@pytest.mark.parametrize(
    ("make", "defaults"),
    [
        (
            HFClientVLLM,
            {"temperature": 0.0, "max_tokens": 150, "top_p": 1.0, "n": 1, "frequency_penalty": 0.0,
             "presence_penalty": 0.0},
        ),
        (HFClientTGI, {"temperature": 0.01, "max_tokens": 75, "top_p": 0.97, "n": 1, "stop": ["\n", "\n\n"]}),
        (HFClientSGLang, {"temperature": 0.01, "max_tokens": 75, "top_p": 0.97, "n": 1, "stop": ["\n", "\n\n"]}),
    ],
)  # fmt: skip
def test_each_class_has_dspy_s_defaults_and_client_has_none(wire, make, defaults):
    """DSPy's programs read `lm.kwargs`; it also held model, port and url, which are not parameters."""
    assert make("m", wire.port).kwargs == defaults
    wire.answers(TEXT)
    myllm.Client(wire.url, dialect="vllm", model="m").complete("x")
    assert wire.bodies == [{"model": "m", "prompt": "x"}]


def test_sglang_is_asked_for_the_model_that_was_named(wire):
    """The old client asked for "default", whatever its `model`, and knew no chat."""
    wire.answers(TEXT, CHAT)
    client = HFClientSGLang("m", wire.port, "http://127.0.0.1", model_type="text")
    assert client("The capital of France is", min_p=0.1) == [" Paris"]
    assert wire.seen[0].path == "/v1/completions"
    assert wire.bodies[0] == {
        "model": "m", "prompt": "The capital of France is", "temperature": 0.01, "max_tokens": 75, "top_p": 0.97,
        "n": 1, "stop": ["\n", "\n\n"], "min_p": 0.1,
    }  # fmt: skip
    assert client.copy(model_type="chat")("Hi") == ["Paris"]
    assert wire.seen[1].path == "/v1/chat/completions"


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


def test_history_is_bounded(wire, monkeypatch):
    """It grew for ever, with the prompts of every optimizer run."""
    monkeypatch.setattr(compat, "HISTORY_LIMIT", 3)
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    for i in range(5):
        client(f"p{i}")
    assert [entry["prompt"] for entry in client.history] == ["p2", "p3", "p4"]
    assert client.inspect_history(n=9).count(" Paris") == 3


def test_several_choices_and_logprobs(wire):
    """The old answer had the texts alone."""
    choice = TEXT["choices"][0]
    logprobs = {"tokens": [" Rome"], "token_logprobs": [-0.5], "top_logprobs": [{" Rome": -0.5}]}
    wire.answers({**TEXT, "choices": [choice, {**choice, "index": 1, "text": " Rome", "logprobs": logprobs}]})
    client = HFClientVLLM("m", wire.port, model_type="text")
    assert client("p", n=2, logprobs=1, temperature=1.0) == [" Paris", " Rome"]
    second = client.history[0]["response"]["choices"][1]
    assert second["index"] == 1
    assert second["logprobs"]["content"][0]["logprob"] == -0.5
    assert "(and 1 other completions)" in client.inspect_history()


def test_call_knows_no_other_values_of_its_two_flags(wire):
    """The old one asserted it, which `python -O` removes."""
    client = HFClientVLLM("m", wire.port)
    for flags in ({"only_completed": False}, {"return_sorted": True}):
        with pytest.raises(myllm.InvalidParameterError):
            client("x", **flags)


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
    """It was `url` by the documentation and until 2.4.9, then `model_type`."""
    wire.answers(CHAT)
    with pytest.warns(DeprecationWarning, match="model_type='chat'") as warned:
        client = HFClientVLLM("m", wire.port, "chat")
    assert warned[0].filename == __file__
    assert client("Hi") == ["Paris"]
    with pytest.warns(DeprecationWarning, match="model_type='text'"):
        assert HFClientVLLM("m", wire.port, "text").model_type == "text"


@BOTH
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


@ALL
@pytest.mark.parametrize(
    ("port", "url", "urls"),
    [
        (8000, "http://localhost", ["http://localhost:8000"]),
        ("8000", "localhost", ["http://localhost:8000"]),
        (None, "https://gpu.example.com/llm/v1/", ["https://gpu.example.com/llm"]),
        (8000, "http://localhost:8000/v1", ["http://localhost:8000"]),
        ([8000, 8001], "http://localhost", ["http://localhost:8000", "http://localhost:8001"]),
        (range(8000, 8002), "localhost", ["http://localhost:8000", "http://localhost:8001"]),
        (None, ["http://a:1", "http://b:2/v1"], ["http://a:1", "http://b:2"]),
        (8000, ["a", "http://b:2"], ["http://a:8000", "http://b:2"]),
        ([1, 2], ("a", "b"), ["http://a:1", "http://a:2", "http://b:1", "http://b:2"]),
    ],
)
def test_ports_and_urls_in_every_form(make, port, url, urls):
    """vLLM's client made `http://localhost:[8000, 8001]` of a list, and lost the port with a list of URLs."""
    assert [server.url for server in make("m", port, url).client.endpoints()] == urls


@ALL
def test_several_servers_take_turns_in_all_threads_and_no_argument_changes(wire, other_wire, make):
    """vLLM's client turned its list of URLs round in place, unlocked; TGI's drew a port at random."""
    for one in (wire, other_wire):
        one.answers({**TEXT, "generated_text": " Paris"})
    ports = [wire.port, other_wire.port]
    client = make("m", ports, model_type="text")
    threads = [threading.Thread(target=client, args=("x",)) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(one.seen) for one in (wire, other_wire)] == [16, 16]
    assert ports == [wire.port, other_wire.port]
    ports.clear()
    assert len(client.client.endpoints()) == 2


@ALL
def test_a_dead_server_s_calls_go_to_the_next(wire, free_port, make):
    """The old clients raised `requests.ConnectionError` for every other call."""
    wire.answers({**TEXT, "generated_text": " Paris"})
    client = make("m", [free_port, wire.port], model_type="text")
    assert [client("x") for _ in range(4)] == [[" Paris"]] * 4


def tgi(wire, info: dict[str, Any] | None = None, text: str = "x") -> Callable[..., HFClientTGI]:
    """Let `wire` be a TGI server, and return a maker of clients for its `/generate`."""

    def handler(seen, reply):
        if seen.path == "/info":
            return reply.json({"model_id": "m", "max_total_tokens": 99, **(info or {})})
        best_of = seen.body["parameters"].get("best_of", 1)
        details = {"finish_reason": "length", "generated_tokens": 1,
                   "best_of_sequences": [{"generated_text": text, "finish_reason": "length",
                                          "generated_tokens": 1}] * (best_of - 1)}  # fmt: skip
        return reply.json({"generated_text": text, "details": details})

    wire.handler = handler
    return lambda **kwargs: HFClientTGI("m", wire.port, model_type="text", **kwargs)


@pytest.mark.parametrize(
    ("info", "given", "requests"),
    [
        (None, {"n": 2}, [{"best_of": 2}]),
        ({"max_best_of": 4}, {"n": 3}, [{"best_of": 3}]),
        ({"max_best_of": 2}, {"n": 3}, [{}, {}, {}]),
        (None, {"n": 2, "seed": 7}, [{"seed": 7}, {"seed": 8}]),
        (None, {"n": 2, "temperature": 0}, [{}, {}]),
    ],
)
def test_tgi_n_becomes_best_of_only_within_the_server_s_limit(wire, info, given, requests):
    """The old client always sent `best_of=n`, which TGI refuses above its own limit, and with a seed."""
    client = tgi(wire, info)()
    assert client("p", **given) == ["x"] * given["n"]
    sent = [seen.body["parameters"] for seen in wire.seen if seen.path == "/generate"]
    assert [{k: v for k, v in body.items() if k in ("best_of", "seed")} for body in sent] == requests


def test_tgi_best_of_above_the_server_s_limit_is_refused(wire):
    client = tgi(wire, {"max_best_of": 2})()
    with pytest.raises(myllm.UnsupportedFeatureError, match="at most 2"):
        client("p", best_of=5)
    assert {seen.path for seen in wire.seen} == {"/info"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        # The old client sent `repetition_penalty = 1 - frequency_penalty`: a penalty became an incentive.
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5, "repetition_penalty": None}),
        # It made 0 to 0.1 and left the filters in.
        (
            {"temperature": 0, "top_k": 5},
            {"temperature": None, "top_p": None, "top_k": None, "do_sample": False},
        ),
        # TGI wants less than 1.
        ({"top_p": 1.0}, {"top_p": None, "temperature": 0.01, "do_sample": True}),
        # It sent `do_sample` for n > 1 only, and so `temperature` in vain.
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        # It sent model, port, url, n and whatever else as parameters.
        ({}, {"model": None, "port": None, "url": None, "n": None, "max_tokens": None, "best_of": None}),
    ],
)
def test_tgi_is_sent_what_it_means(wire, given, sent):
    tgi(wire)()("p", **given)
    parameters = wire.bodies[0]["parameters"]
    assert {name: parameters.get(name) for name in sent} == sent


def test_tgi_has_no_presence_penalty_and_says_so(wire):
    """The old client sent it, and TGI ignored it."""
    with pytest.raises(myllm.UnsupportedFeatureError, match="presence_penalty"):
        tgi(wire)()("p", presence_penalty=0.5)
    assert wire.seen == []


def test_tgi_looks_itself_for_the_stop_strings_beyond_the_server_s_limit(wire):
    """The old client sent them all, and TGI refused the request."""
    client = tgi(wire, {"max_stop_sequences": 2}, text="one two three")()
    response = client._generate("p", stop=["a1", "a2", "a3", "a4", " three"])
    assert response["choices"] == [{"text": "one two", "index": 0, "finish_reason": "stop"}]
    assert wire.bodies[-1]["parameters"]["stop"] == ["a1", "a2"]


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
    assert client.client.timeout == myllm.Timeout(connect=1, first_byte=20, idle=20)
    with pytest.raises(myllm.InvalidParameterError, match="`allow_redirects`"):
        HFClientTGI("m", 1, http_request_kwargs={"allow_redirects": True})


class HTTPBasicAuth:
    """As in `requests.auth`."""

    username, password = "u", "p"


class HTTPDigestAuth(HTTPBasicAuth):
    """As in `requests.auth`: another scheme."""


def test_requests_own_form_of_basic_authentication(wire):
    wire.answers({"generated_text": "x"})
    options = {"model_type": "text", "http_request_kwargs": {"auth": HTTPBasicAuth()}}
    HFClientTGI("m", wire.port, **options)._generate("x")
    assert wire.seen[0].headers["authorization"] == "Basic dTpw"


@pytest.mark.parametrize("auth", [HTTPDigestAuth(), "u:p", ("u",), ("u", 1), 7])
def test_other_authentication_is_refused(auth):
    with pytest.raises(myllm.InvalidParameterError, match="`auth`"):
        HFClientTGI("m", 1, http_request_kwargs={"auth": auth})
    with pytest.raises(myllm.InvalidParameterError, match="`auth`"):
        myllm.HTTPOptions(auth=auth)


@pytest.mark.parametrize("proxies", [{"http://localhost": "http://p:1"}, {"htp": "http://p:1"}, 7])
def test_proxies_that_would_be_ignored_are_refused(proxies):
    with pytest.raises(myllm.InvalidParameterError, match="`proxies`"):
        HFClientTGI("m", 1, http_request_kwargs={"proxies": proxies})


@ALL
def test_the_arguments_of_a_client_are_taken_by_the_old_ones_too(wire, make):
    """They dropped whatever they did not know, `timeout` and `api_key` included."""
    seen = []

    class Watch(myllm.hooks.Hook):
        def ended(self, record):
            seen.append(record.request_id)

    wire.answers({**TEXT, "generated_text": " Paris"})
    given: dict[str, Any] = {
        "timeout": 9, "max_retries": 0, "policy": "least_in_flight", "breaker": None, "health_interval": 60.0,
        "hedge_after": 5.0, "max_concurrency": 2, "requests_per_second": 100.0, "coalesce": True,
        "message_policy": "auto", "hooks": [Watch()], "headers": {"X-A": "1"}, "cache": myllm.Cache(),
    }  # fmt: skip
    assert set(given) == compat.CLIENT_OPTIONS
    client = make("m", wire.port, model_type="text", api_key="k", **given)
    assert client("x") == [" Paris"]
    assert len(seen) == 1
    assert (wire.seen[0].headers["x-a"], wire.seen[0].headers["authorization"]) == ("1", "Bearer k")
    state = client.client.__getstate__()
    state["hooks"] = list(state["hooks"])
    assert {name: state[name] for name in given} == {**given, "timeout": myllm.Timeout.of(9)}


def test_the_options_of_a_call_are_taken_by_generate_and_leave_no_secret(wire):
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    client(
        "x", model="m2", extra_body={"own": 1}, extra_headers={"X-Token": "sesame"}, timeout=9, session="s"
    )
    assert (wire.bodies[0]["model"], wire.bodies[0]["own"]) == ("m2", 1)
    assert wire.seen[0].headers["x-token"] == "sesame"
    assert "sesame" not in repr(client.history)


def test_constraints_are_parameters(wire):
    """The old allow-list had none."""
    wire.handler = lambda seen, reply: reply.json(
        {"version": "0.12.0"}
        if seen.path == "/version"
        else {"data": [{"id": "m", "owned_by": "vllm"}]}
        if seen.path == "/v1/models"
        else CHAT
    )
    client = HFClientVLLM("m", wire.port, choice=["Paris", "Rome"])
    assert client("The capital of France?") == ["Paris"]
    assert wire.bodies[-1]["structured_outputs"] == {"choice": ["Paris", "Rome"]}
    with pytest.raises(myllm.ConstraintNotEnforced):  # another constraint takes the default one's place
        client("The capital of France?", regex="R.*")
    assert wire.bodies[-1]["structured_outputs"] == {"regex": "R.*"}
    with pytest.raises(myllm.ConstraintNotEnforced):
        client.copy(json_schema={"type": "object"})("The capital of France?")


def test_nothing_is_cached_unless_asked_for_and_never_a_failure(wire, tmp_path):
    """The old clients kept every reply on disk, 429 and 500 too."""
    answers = iter([(TEXT, 200), (TEXT, 200), ({}, 500), (TEXT, 200)])
    wire.handler = lambda seen, reply: reply.json(*next(answers))
    plain = HFClientVLLM("m", wire.port, model_type="text", max_retries=0)
    assert [plain("x"), plain("x")] == [[" Paris"]] * 2
    assert len(wire.seen) == 2
    cached = HFClientVLLM(
        "m", wire.port, model_type="text", max_retries=0, cache=tmp_path / "answers.sqlite3"
    )
    with pytest.raises(myllm.ServerError):
        cached("x")
    assert [cached("x"), cached("x")] == [[" Paris"]] * 2
    assert len(wire.seen) == 4
    with pytest.raises(StopIteration):
        next(answers)


def test_copy_has_other_defaults_and_shares_the_connections(wire):
    """The old vLLM client's `copy` raised, for its keywords held the model twice."""
    wire.answers(TEXT)
    client = HFClientVLLM("m", wire.port, model_type="text")
    client("x")
    other = client.copy(temperature=0.9, model="m2")
    other("y")
    assert (client.kwargs["temperature"], other.kwargs["temperature"]) == (0.0, 0.9)
    assert other.client._transport is client.client._transport
    assert (len(client.history), len(other.history)) == (1, 1)
    assert wire.bodies[-1]["model"] == "m2"
    assert other.copy(temperature=None).kwargs.get("temperature") is None
    assert other.copy(timeout=3).client.timeout == myllm.Timeout.of(3)
    for name in ("port", "url", "api_key", "policy", "http_request_kwargs"):
        with pytest.raises(myllm.InvalidParameterError, match=f"`{name}` belongs to the connections"):
            client.copy(**{name: None})


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
