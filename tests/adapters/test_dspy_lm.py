"""`LM(client)`: a DSPy LM over a client that exists already, and what DSPy's cache knows of its servers."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import os
import pickle
import re
import subprocess
import sys
from typing import Any, ClassVar, Literal

import dspy
import pydantic
import pytest
from dspy import lm15
from dspy.utils.exceptions import LMServerError, LMUnsupportedFeatureError

import myllm
from myllm_adapters._dspy.chat_adapter import answer_pattern
from myllm_adapters.dspy import LM, ChatAdapter, Client, HFClientTGI, HFClientVLLM

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning")


def chat(*texts: str) -> dict[str, Any]:
    """Return a chat completion with a choice for each text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    dspy.configure_cache(enable_disk_cache=False)


@pytest.fixture
def client(wire):
    wire.answers(chat("a"))
    with myllm.Client(wire.url, model="m", dialect="vllm") as client:
        yield client


def posted(wire) -> list[dict[str, Any]]:
    """Return the bodies; a constraint makes the client ask first what the server is."""
    return [body for body in wire.bodies if body is not None]


class TestClient:
    def test_the_clients_parameters_are_the_lms(self, wire, client):
        client = client.with_options(temperature=0.5, min_p=0.1, do_sample=True)
        LM(client, min_p=0.2)("hello")
        LM(client.with_options(temperature=0.7))("hello")
        LM(client, temperature=None, min_p=None)("hello")
        sent = [(body.get("temperature"), body.get("min_p")) for body in wire.bodies]
        assert sent == [(0.5, 0.2), (0.7, 0.1), (None, None)]
        assert LM(client).kwargs["temperature"] == 0.5
        assert LM(client).client.defaults == {}

    def test_the_model_is_the_clients_or_the_servers_first(self, wire, client):
        assert LM(client).model == "m"
        assert LM(client, "other").model == "other"
        assert wire.seen == []
        wire.answers({"object": "list", "data": [{"id": "served"}, {"id": "second"}]})
        with myllm.Client(wire.url, dialect="vllm") as nameless:
            assert LM(nameless).model == "served"
            assert [seen.path for seen in wire.seen] == ["/v1/models"]
            wire.answers({"object": "list", "data": []})
            with pytest.raises(myllm.InvalidParameterError, match="lists no model"):
                LM(nameless)

    def test_an_asynchronous_client_serves_as_well(self, wire, client):
        asynchronous = myllm.AsyncClient(
            wire.url, model="m", dialect="vllm", headers={"X-Team": "a"}, top_k=4
        )
        lm = LM(asynchronous, cache=False)
        assert lm("hello") == asyncio.run(lm.acall("hello")) == ["a"]
        assert [(seen.headers["x-team"], seen.body["top_k"]) for seen in wire.seen] == [("a", 4)] * 2
        assert isinstance(lm.client, myllm.Client)

    def test_it_can_be_made_on_the_way(self, wire, client):
        lm = Client("m", wire.url, dialect="vllm", headers={"X-Team": "a"}, top_k=4, cache=False)
        assert lm("hello", top_k=5) == lm.copy(min_p=0.1)("hello") == ["a"]
        assert [seen.headers["x-team"] for seen in wire.seen] == ["a", "a"]
        assert [(body["top_k"], body.get("min_p")) for body in wire.bodies] == [(5, None), (4, 0.1)]
        with pytest.raises(myllm.UnknownParameterError, match="Did you mean `temperature`"):
            Client("m", wire.url, temprature=0)

    def test_dspy_alone_retries(self, wire, client):
        wire.handler = lambda seen, reply: reply.json({}, status=503, headers={"Retry-After": "0"})
        lm = LM(client.with_options(max_retries=4), num_retries=2)
        with pytest.raises(LMServerError):
            lm("hello")
        assert len(wire.bodies) == 3
        assert lm.client.max_retries == 4  # for direct calls


class TestConstraints:
    def test_a_calls_answer_has_one_shape(self, wire, client):
        lm = LM(client, choice=["a", "b"], min_p=0.1)
        lm("hello")
        lm("hello", regex="a+")
        wire.answers(chat("{}"))
        lm("hello", response_format={"type": "json_object"})
        wire.answers(chat("a"))
        lm.copy(regex="[a-z]")("hello")
        shapes = [(body.get("structured_outputs"), body.get("response_format")) for body in posted(wire)]
        assert shapes == [
            ({"choice": ["a", "b"]}, None),
            ({"regex": "a+"}, None),
            (None, {"type": "json_object"}),
            ({"regex": "[a-z]"}, None),
        ]
        assert all(body["min_p"] == 0.1 for body in posted(wire))

    def test_a_response_format_of_the_lm_gives_way(self, wire, client):
        wire.answers(chat("a"))
        LM(client, response_format={"type": "json_object"})("hello", choice=["a"])
        assert "response_format" not in posted(wire)[0]

    def test_a_class_is_its_schema(self, wire, client):
        class Answer(pydantic.BaseModel):
            city: str

        wire.answers(chat('{"city": "Ulm"}'))
        lm = LM(client, json_schema=Answer)
        assert lm("hello") == lm("hello") == ['{"city": "Ulm"}']
        (body,) = posted(wire)
        schema = body["response_format"]["json_schema"]["schema"]  # of a server that tells no version
        assert schema["properties"]["city"]["type"] == "string"

    def test_tgi_wants_a_schema(self, wire):
        """An open mapping has none: DSPy asks for any JSON object, which TGI knows no way to enforce."""
        wire.answers(chat('{"counts": {"a": 1}}'))
        program = dspy.Predict("text -> counts: dict[str, int]")
        settings = {"num_retries": 0, "cache": False}
        with dspy.context(adapter=dspy.JSONAdapter()):
            with dspy.context(lm=HFClientTGI("m", wire.port, **settings)):
                with pytest.raises(LMUnsupportedFeatureError, match="TGI wants a schema"):
                    program(text="a")
            with dspy.context(
                lm=HFClientTGI("m", wire.port, supports={"response_schema": False}, **settings)
            ):
                assert program(text="a").counts == {"a": 1}
        assert [body.get("response_format") for body in posted(wire)] == [None]


class TestChatAdapter:
    """The format that the server is asked to enforce, and the calls for which it is not."""

    class Kinds(dspy.Signature):
        """Anything."""

        question: str = dspy.InputField()
        text: str = dspy.OutputField()
        number: int = dspy.OutputField()
        share: float = dspy.OutputField()
        sure: bool = dspy.OutputField()
        kind: Literal["a+b", "c (d)", "[e]"] = dspy.OutputField()
        level: Literal[1, 22] = dspy.OutputField()
        more: dict[str, Any] = dspy.OutputField()

    VALUES: ClassVar = {
        "text": "Ä [list] and [[nested]], [[ # no header\n\nin\ttwo [[[ #[paragraphs]", "number": -17, "share": 0.25,
        "sure": False, "kind": "c (d)", "level": 22, "more": {"a": [{"b": None}]},
    }  # fmt: skip

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"text": "x"},
            {"text": "[a"},
            {"number": 0, "share": 3.0, "sure": True, "kind": "[e]", "level": 1, "more": {}},
        ],
    )
    def test_the_pattern_is_what_dspy_writes_and_reads(self, change):
        values = {**self.VALUES, **change}
        text = dspy.ChatAdapter().format_assistant_message_content(self.Kinds, values).strip()
        assert re.fullmatch(answer_pattern(self.Kinds), text)
        assert dspy.ChatAdapter().parse(self.Kinds, text) == values

    @pytest.mark.parametrize(
        "change",
        [
            {"text": ""}, {"text": "a [[ ## number ## ]] 1"}, {"number": "1.5"}, {"number": "007"}, {"share": "a lot"},
            {"sure": "perhaps"}, {"kind": "aab"}, {"level": 2}, {"more": "{more}"}, {"more": "none"},
        ],
    )  # fmt: skip
    def test_nothing_else_fits_it(self, change):
        text = (
            dspy.ChatAdapter().format_assistant_message_content(self.Kinds, {**self.VALUES, **change}).strip()
        )
        assert not re.fullmatch(answer_pattern(self.Kinds), text)

    def test_what_brings_its_own_constraint_keeps_it(self, wire, client):
        wire.answers(chat("[[ ## answer ## ]]\na"))
        with dspy.context(lm=LM(client), adapter=ChatAdapter()):
            dspy.Predict("question -> answer")(question="q", config={"regex": "[^b]*"})
        with dspy.context(lm=LM(client, regex="[^c]*"), adapter=ChatAdapter()):
            dspy.Predict("question -> answer")(question="q")
        assert [body["structured_outputs"]["regex"] for body in posted(wire)] == ["[^b]*", "[^c]*"]

    async def test_other_lms_are_dspys_affair(self):
        """A hosted teacher knows no such constraint."""
        lm = dspy.utils.DummyLM([{"answer": "a"}] * 2)
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            program = dspy.Predict("question -> answer")
            assert program(question="q").answer == (await program.acall(question="q")).answer == "a"
        assert all("regex" not in entry["kwargs"] for entry in lm.history)

    async def test_tool_calls_are_left_as_they_are(self, wire, client):
        class Use(dspy.Signature):
            question: str = dspy.InputField()
            tools: list[dspy.Tool] = dspy.InputField()
            calls: dspy.ToolCalls = dspy.OutputField()

        wire.answers(chat('[[ ## calls ## ]]\n{"tool_calls": [{"name": "len", "args": {}}]}'))
        with dspy.context(lm=LM(client), adapter=ChatAdapter()):
            use = dspy.Predict(Use)
            tools = [dspy.Tool(len, name="len", desc="Count.")]
            for answer in (use(question="q", tools=tools), await use.acall(question="q", tools=tools)):
                assert [call.name for call in answer.calls.tool_calls] == ["len"]
        assert all("structured_outputs" not in body for body in posted(wire))


class TestCacheScope:
    """Two servers may serve different models under one name."""

    @pytest.fixture
    def other(self, other_wire):
        other_wire.answers(chat("b"))
        with myllm.Client(other_wire.url, model="m", dialect="vllm") as client:
            yield client

    def test_servers_have_answers_of_their_own(self, wire, other_wire, client, other):
        request = lm15.Request("m", (lm15.Message.user("hello"),))
        for _ in range(2):
            assert (LM(client)("hello"), LM(other)("hello")) == (["a"], ["b"])
            assert (LM(client)(request).message.text, LM(other)(request=request).message.text) == ("a", "b")
            assert (asyncio.run(LM(client).acall("hello")), asyncio.run(LM(other).acall("hello"))) == (
                ["a"],
                ["b"],
            )
        assert (len(wire.bodies), len(other_wire.bodies)) == (3, 3)
        assert (
            wire.bodies[0]
            == wire.bodies[1]
            == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        )
        assert request.config == lm15.Config()

    def test_several_servers_are_one_place_in_any_order(self, wire, other_wire):
        urls = [wire.url, other_wire.url]
        wire.answers(chat("a"))
        other_wire.answers(chat("a"))
        for order in (urls, urls[::-1]):
            LM(myllm.Client(order, model="m", dialect="vllm"))("hello")
        assert len(wire.bodies) + len(other_wire.bodies) == 1

    def test_a_name_stands_for_servers_that_move(self, wire, other_wire, client, other):
        assert LM(client, cache_scope="cluster", min_p=0.1)("hello") == ["a"]
        assert LM(other, cache_scope="cluster", min_p=0.1)("hello") == ["a"]
        assert HFClientVLLM("m", other_wire.port, cache_scope="cluster")("hello", min_p=0.1) == ["a"]
        assert other_wire.bodies == []

    def test_the_scope_survives_parameters_copies_and_files(self, wire, other_wire, client, other):
        lms = [LM(client, min_p=0.1), LM(other, min_p=0.1)]
        twins = [lm.copy(min_p=None) for lm in lms]
        loaded = [LM.load_state(lm.dump_state(), allow_custom_lm_class=True) for lm in lms]
        for pair in (lms, twins, loaded, [copy.deepcopy(lm) for lm in twins]):
            assert [lm("hello", top_k=3) for lm in pair] == [["a"], ["b"]]
            assert [lm("hello", min_p=None) for lm in pair] == [["a"], ["b"]]
        assert (len(wire.bodies), len(other_wire.bodies)) == (3, 3)


class TestHistory:
    def test_it_is_kept_shown_and_pickled_after_a_constrained_call(self, wire, client):
        wire.answers(chat('{"answer": "yes"}'))
        lm = LM(client)
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            assert dspy.Predict("question -> answer: Literal['yes', 'no']")(question="q").answer == "yes"
        twin = pickle.loads(pickle.dumps(lm))
        assert [entry["outputs"] for entry in twin.history] == [['{"answer": "yes"}']]
        schema = twin.history[0]["kwargs"]["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["answer"]["enum"] == ["yes", "no"]
        assert isinstance(lm.history[0]["kwargs"]["response_format"], type)
        shown = io.StringIO()
        twin.inspect_history(file=shown)
        assert '{"answer": "yes"}' in shown.getvalue()

    def test_nothing_of_ours_is_warned_about(self, wire, client, recwarn, caplog):
        with caplog.at_level(logging.WARNING), dspy.context(track_usage=True):
            LM(client)("hello", min_p=0.1)
            LM(client)(lm15.Request("m", (lm15.Message.user("hello"),)))
            asyncio.run(LM(client).acall("hello", n=1))
        # Those of connections that other tests left are collected at any time.
        assert not [warning for warning in recwarn if warning.category is not ResourceWarning]
        assert not caplog.records

    def test_nor_is_it_an_error_where_warnings_are(self, wire, tmp_path):
        """The first lines of a user's program, from the import on."""
        wire.answers(chat("[[ ## answer ## ]]\na"))
        code = (
            "import dspy\n"
            "from myllm_adapters.dspy import HFClientVLLM\n"
            f"dspy.configure(lm=HFClientVLLM(model='m', port={wire.port}, url='http://localhost'))\n"
            "print(dspy.Predict('question -> answer')(question='q', config={'min_p': 0.1}).answer)\n"
            "print(dspy.settings.lm._generate(prompt='q')['choices'][0]['text'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "DSPY_CACHEDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("a\n[[ ## answer ## ]]\na\n", 0), done.stderr
