"""DSPy's modules, adapters and optimizers on a real engine: outputs that the server's constraint shapes."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import dspy
import numpy as np
import pydantic
import pytest
from dspy.utils.exceptions import AdapterParseError

import myllm
from myllm_adapters.dspy import ChatAdapter, Embedder, HFClientTGI, HFClientVLLM

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning")


ONE = dspy.Example(question="What is 1 + 1?", reasoning="One and one are two.", answer=2)


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad (very)"


class Scalars(dspy.Signature):
    """Judge the review."""

    review: str = dspy.InputField()
    label: Literal["positive", "negative"] = dspy.OutputField()
    stars: Literal[1, 2, 3] = dspy.OutputField()
    mood: Mood = dspy.OutputField()
    words: int = dspy.OutputField()
    weight: float = dspy.OutputField()
    sure: bool = dspy.OutputField()
    summary: str = dspy.OutputField()


class City(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    size: Literal["small", "big"]


class Nested(dspy.Signature):
    """Name a city."""

    question: str = dspy.InputField()
    city: City = dspy.OutputField()
    marks: list[Literal["a", "b"]] = dspy.OutputField(max_length=2)


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    dspy.configure_cache(enable_disk_cache=False)


@pytest.fixture
def lm(server: myllm.Server) -> HFClientVLLM:
    return HFClientVLLM("smollm2", server.port, temperature=0, max_tokens=80)


class TestChatAdapter:
    def test_every_scalar_type_in_one_request(self, lm):
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            answer = dspy.Predict(Scalars)(review="I love it.")
        assert len(lm.history) == 1
        assert answer.summary
        assert answer.label in ("positive", "negative")
        assert answer.stars in (1, 2, 3)
        assert isinstance(answer.mood, Mood)
        assert (type(answer.words), type(answer.weight), type(answer.sure)) == (int, float, bool)

    async def test_asynchronous_and_streamed(self, lm):
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            program = dspy.ChainOfThought("question -> answer: int")
            program.predict.demos = [ONE]
            assert type((await program.acall(question="What is 2 + 3?")).answer) is int
            listener = dspy.streaming.StreamListener("reasoning")
            streamed = dspy.streamify(program, stream_listeners=[listener])
            parts = [part async for part in streamed(question="What is 3 + 4?")]
        assert "".join(p.chunk for p in parts[:-1]).strip() == parts[-1].reasoning
        assert type(parts[-1].answer) is int
        assert len(lm.history) == 2

    def test_other_types_are_answered_by_a_schema_at_once(self, lm):
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            answer = dspy.Predict(Nested)(question="Which city is in France?")
        assert isinstance(answer.city, City)
        assert set(answer.marks) <= {"a", "b"}
        assert len(lm.history) == 1

    def test_n_answers(self, lm):
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            program = dspy.Predict("question -> answer: Literal['yes', 'no']", n=3, temperature=1.0)
            answers = program(question="Is the sea wet?", config={"seed": 3}).completions.answer
        assert len(answers) == 3
        assert set(answers) <= {"yes", "no"}

    def test_an_answer_that_is_cut_off_is_told_once(self, lm):
        short = lm.copy(max_tokens=3)
        with dspy.context(lm=short, adapter=ChatAdapter()), pytest.raises(AdapterParseError):
            dspy.Predict("question -> answer")(question="Why?")
        assert len(short.history) == 1

    def test_the_tgi_routes_enforce_it_too(self, server):
        tgi = HFClientTGI("smollm2", server.port, temperature=0, max_tokens=80)
        for adapter in (ChatAdapter(), dspy.JSONAdapter()):
            with dspy.context(lm=tgi, adapter=adapter):
                answer = dspy.Predict("question -> answer: Literal['yes', 'no']")(question="Is the sea wet?")
            assert answer.answer in ("yes", "no")
        assert len(tgi.history) == 2


class TestJSONAdapter:
    def test_nested_types_in_one_request(self, lm):
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            answer = dspy.Predict(Nested)(question="Which city is in France?")
        assert isinstance(answer.city, City)
        (entry,) = lm.history
        assert set(json.loads(entry["outputs"][0])) == {"city", "marks"}

    def test_an_open_mapping_is_any_object(self, lm):
        (text,) = lm("Describe a cat as JSON:", response_format={"type": "json_object"}, max_tokens=40)
        assert text.startswith("{")


class TestTools:
    @pytest.fixture
    def agent(self):
        def population(city: Literal["Paris", "Rome"]) -> int:
            """Look up how many people live in a city."""
            return {"Paris": 2_100_000, "Rome": 2_800_000}[city]

        return dspy.ReActV2("question -> answer: Literal['more', 'fewer']", tools=[population], max_iters=1)

    @pytest.fixture
    def able(self, server):
        # Of a model that was not trained to call tools, calls are required: the server enforces those.
        return HFClientVLLM("smollm2", server.port, temperature=0, max_tokens=60,
                            supports={"function_calling": True}, tool_choice="required")  # fmt: skip

    def test_react_calls_tools_natively(self, able, agent):
        with dspy.context(lm=able, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
            prediction = agent(question="Do more than a million people live in Paris?")
        assert prediction.answer in ("more", "fewer")
        calls = [
            call for entry in able.history for output in entry["outputs"] for call in output["tool_calls"]
        ]
        assert {call["function"]["name"] for call in calls} <= {"population", "submit"}
        assert prediction.termination_reason in ("submit", "forced_submit")

    async def test_asynchronously(self, able, agent):
        with dspy.context(lm=able, adapter=dspy.JSONAdapter()):
            prediction = await agent.acall(question="Do more than a million people live in Paris?")
        assert prediction.answer in ("more", "fewer")

    def test_react_of_the_prompt(self, lm):
        def capital(country: str) -> str:
            """Look up a capital."""
            return "Paris"

        with dspy.context(lm=lm, adapter=ChatAdapter()):
            agent = dspy.ReAct("question -> answer: Literal['Paris', 'Rome']", tools=[capital], max_iters=1)
            agent.react.demos = [
                dspy.Example(
                    question="What is the capital of Spain?",
                    trajectory="",
                    next_thought="I look it up.",
                    next_tool_name="capital",
                    next_tool_args={"country": "Spain"},
                )
            ]
            prediction = agent(question="What is the capital of France?")
        assert prediction.answer == "Paris"
        assert prediction.trajectory["tool_name_0"] == "capital"
        assert prediction.trajectory["tool_args_0"] == {"country": "France"}


class TestWhatElseDSPyDoesWithAnLM:
    async def test_asyncify(self, lm):
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            program = dspy.asyncify(dspy.Predict("question -> answer: bool"))
            assert type((await program(question="Is the sea wet?")).answer) is bool

    def test_logprobs_of_a_prediction(self, lm):
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            program = dspy.Predict("question -> answer: Literal['yes', 'no']", logprobs=True, top_logprobs=2)
            prediction = program(question="Is the sea wet?")
        assert all(len(token.top_logprobs) == 2 for token in prediction.logprobs.content)

    def test_a_saved_program_answers_as_before(self, lm, tmp_path):
        program = dspy.Predict(Scalars)
        program.set_lm(lm)
        program.save(tmp_path / "program.json")
        loaded = dspy.Predict(Scalars)
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
        with dspy.context(adapter=ChatAdapter()):
            answers = [one(review="I hate it.").toDict() for one in (program, loaded, program.deepcopy())]
        assert answers[0] == answers[1] == answers[2]


class TestEmbedder:
    def test_vectors_batches_and_search(self, server):
        client = myllm.Client(server.url, model="smollm2")
        embed = Embedder(client, batch_size=2)
        texts = ["a cat", "a dog", "the stock market"]
        vectors = embed(texts)
        assert vectors.dtype == np.float32
        assert vectors.shape == (3, len(client.embed("a cat").vectors[0]))
        np.testing.assert_allclose(embed("a dog"), vectors[1], rtol=1e-3, atol=1e-4)
        search = dspy.retrievers.Embeddings(corpus=texts, embedder=embed, k=1)
        assert search("the stock market").passages == ["the stock market"]

    async def test_the_cache_knows_servers_and_models(self, wire, other_wire):
        wire.answers({"object": "list", "data": [{"index": 0, "embedding": [1.0]}], "model": "m"})
        other_wire.answers({"object": "list", "data": [{"index": 0, "embedding": [2.0]}], "model": "m"})
        here, there = (myllm.Client(w.url, model="m", dialect="vllm") for w in (wire, other_wire))
        for _ in range(2):
            assert [float(Embedder(client)("x")[0]) for client in (here, there)] == [1, 2]
            assert float((await Embedder(here).acall("x"))[0]) == 1
        assert len(wire.bodies) == 1
        Embedder(here, "other")("x")
        Embedder(here)("x", dimensions=1)
        Embedder(here)("x", caching=False)
        assert [(body["model"], body.get("dimensions")) for body in wire.bodies[1:]] == [
            ("other", None), ("m", 1), ("m", None),
        ]  # fmt: skip

    def test_mistakes(self, server):
        with pytest.raises(myllm.InvalidParameterError, match=r"must be a `myllm.Client`"):
            Embedder("smollm2")
        with pytest.raises(myllm.InvalidParameterError, match="temperature"):
            Embedder(myllm.Client(server.url), temperature=0.5)("x")


REVIEWS = [
    ("I love this film.", "positive"), ("A waste of time.", "negative"), ("Wonderful acting!", "positive"),
    ("Terrible, boring plot.", "negative"), ("The best day of my life.", "positive"), ("I hated it.", "negative"),
]  # fmt: skip


class TestOptimizers:
    @pytest.fixture
    def examples(self):
        return [dspy.Example(review=r, label=label).with_inputs("review") for r, label in REVIEWS]

    @pytest.fixture
    def program(self):
        return dspy.Predict("review -> label: Literal['positive', 'negative']")

    def test_bootstrap_few_shot(self, lm, program, examples):
        def right(example: Any, prediction: Any, trace: Any = None) -> bool:
            return bool(example.label == prediction.label)

        with dspy.context(lm=lm, adapter=ChatAdapter()):
            optimizer = dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=2)
            compiled = optimizer.compile(program, trainset=examples)
            score = dspy.Evaluate(devset=examples, metric=right, num_threads=4)(compiled).score
        assert 1 <= len(compiled.demos) <= 2
        assert 0 <= score <= 100

    def test_gepa(self, lm, program, examples):
        def right(
            gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
        ) -> Any:
            feedback = f"The label was {gold.label!r}."
            return dspy.Prediction(score=float(gold.label == pred.label), feedback=feedback)

        with dspy.context(lm=lm, adapter=ChatAdapter()):
            optimizer = dspy.GEPA(
                metric=right,
                max_metric_calls=14,
                reflection_minibatch_size=2,
                reflection_lm=lm.copy(temperature=1.0, max_tokens=40, seed=1),
                track_stats=True,
            )
            compiled = optimizer.compile(program, trainset=examples[:3], valset=examples[3:])
            assert compiled(review="Nice.").label in ("positive", "negative")
        assert len(compiled.detailed_results.candidates) >= 1
        assert len(optimizer.reflection_lm.history) >= 1
