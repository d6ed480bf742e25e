"""LangChain's `ChatOpenAI` on the bundled model."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

ASK = [HumanMessage("What is the weather in Paris?")]


@tool
def get_weather(city: str, days: int = 1) -> str:
    """Look up the weather of a city."""
    return f"Rain in {city} for {days} days"


class Person(BaseModel):
    """Say who a person is."""

    name: str = Field(max_length=10)
    age: int = Field(ge=1, le=120)


@pytest.fixture(scope="module")
def model(live):
    return ChatOpenAI(
        base_url=f"{live.url}/v1", api_key="-", model="smollm2", temperature=0, max_tokens=40, max_retries=0
    )


def test_it_answers_whole_and_in_a_stream(model):
    question = [HumanMessage("What is the capital of France? Answer in one sentence.")]
    answer = model.invoke(question)
    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    chunks = list(model.stream(question, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == answer.content
    assert chunks[-1].chunk_position == "last"
    assert answer.usage_metadata["output_tokens"] == sum(
        chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata
    )


@pytest.mark.parametrize("choice", ["get_weather", "any"])
def test_bound_tools_are_called_and_their_results_go_back(model, choice):
    bound = model.bind_tools([get_weather], tool_choice=choice, parallel_tool_calls=False)
    answer = bound.invoke(ASK)
    [call] = answer.tool_calls
    assert call["name"] == "get_weather"
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content.startswith("Rain in ")
    # The bundled model's template has no tools, but renders the messages.
    assert isinstance(model.invoke([*ASK, answer, result]), AIMessage)


def test_streamed_calls_add_up(model):
    bound = model.bind_tools([get_weather], tool_choice="get_weather")
    whole = None
    for chunk in bound.stream(ASK):
        whole = chunk if whole is None else whole + chunk
    [call] = whole.tool_calls
    [expected] = bound.invoke(ASK).tool_calls
    assert (call["name"], call["args"]) == (expected["name"], expected["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_a_model(model, method):
    structured = model.with_structured_output(Person, method=method)
    assert isinstance(structured.invoke("Ada Lovelace is 36 years old."), Person)
