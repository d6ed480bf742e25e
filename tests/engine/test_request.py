"""Check what sampling parameters accept and how outputs join."""

from __future__ import annotations

import math

import pytest

from myllm_engine.errors import EngineError, InvalidRequestError
from myllm_engine.request import (
    CompletionOutput,
    Repetition,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [-1, 1.5, True, "3"]),
        ("temperature", [-0.1, 1.1e30, 10**400, math.inf, math.nan, "hot", None]),
        ("top_k", [-2, 1.0]),
        ("top_p", [0, 0.0, 1.01, -1, math.nan]),
        ("min_p", [-0.1, 1.1]),
        ("typical_p", [0, 2]),
        ("repetition_penalty", [0, -1, 1e-45, 1e7]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("presence_penalty", [-3, 3]),
        ("logit_bias", [{"5": 1.0}, {-1: 1.0}, {5: math.inf}, {5: 1e39}, {5: math.nan}, {5: "x"}, [1]]),
        ("seed", [2**63, 1.0, "x"]),
        ("n", [0, 1.0, 129]),
        ("stop", ["", ["a", ""], [1], 5, ["a"] * 65, "a" * 4097, ["a" * 2048, "b" * 2049]]),
        ("stop_token_ids", [[-1], ["a"], 5, "5"]),
        ("min_tokens", [-1]),
        ("bad_words", ["word", [""], ["a", " "], [1], 5, ["a"] * 1025, ["a" * 65537]]),
        ("allowed_token_ids", [[-1], ["a"], 5, "5"]),
        ("logprobs", [-1, True]),
        ("logprob_token_ids", [[5], [-1], "5"]),  # the first for want of `logprobs`
        ("ignore_eos", [1, "yes"]),
    ],
)
def test_bad_values_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(InvalidRequestError, match=f"`{name}`") as caught:
            SamplingParams(**{name: value})
        assert caught.value.param == name
        assert isinstance(caught.value, EngineError)
        assert isinstance(caught.value, ValueError)


def test_limits_themselves_are_accepted():
    SamplingParams(
        max_tokens=0, temperature=0, top_k=-1, top_p=1, min_p=1, typical_p=1, seed=-(2**63), logprobs=0
    )
    SamplingParams(
        n=128, stop=["a" * 64] * 64, temperature=1e30, repetition_penalty=1e6, logit_bias={0: -1e30}
    )
    SamplingParams(frequency_penalty=-2, presence_penalty=2, logit_bias={0: -100}, min_tokens=3, max_tokens=3)


def test_min_tokens_above_max_tokens_is_refused():
    with pytest.raises(InvalidRequestError, match=r"`min_tokens` \(5\).*`max_tokens` \(4\)"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_reported_tokens_are_few():
    SamplingParams(logprobs=0, logprob_token_ids=range(128))
    with pytest.raises(InvalidRequestError, match="may hold 128 token ids; got 129"):
        SamplingParams(logprobs=0, logprob_token_ids=range(129))


def test_a_beam_search_makes_tokens():
    with pytest.raises(InvalidRequestError, match="`max_tokens` must be 1 or more"):
        SamplingParams(max_tokens=0, temperature=0, use_beam_search=True)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_pattern_size": 0, "min_count": 2}, "`max_pattern_size`"),
        ({"max_pattern_size": 257, "min_count": 2}, "`max_pattern_size`"),
        ({"max_pattern_size": 4, "min_pattern_size": 5, "min_count": 2}, "`min_pattern_size`"),
        ({"max_pattern_size": 4, "min_count": 1}, "`min_count`"),
        ({"max_pattern_size": 256, "min_count": 9}, "`min_count`"),
    ],
)
def test_bad_patterns_are_refused(fields, says):
    with pytest.raises(InvalidRequestError, match=says) as caught:
        Repetition(**fields)
    assert caught.value.param == "repetition_detection"


def test_repetitions_are_found_where_the_text_ends():
    twice = Repetition(max_pattern_size=3, min_count=2)
    assert twice.found([5, 5])
    assert twice.found([9, 1, 2, 3, 1, 2, 3])
    assert not twice.found([1, 2, 3, 1, 2, 3, 4])
    assert not twice.found([1, 2, 3, 4, 1, 2, 3, 4])  # longer than what is looked for
    assert not twice.found([3, 1, 2, 3])
    long = Repetition(max_pattern_size=3, min_pattern_size=2, min_count=3)
    assert long.found([7, 7, 7, 7, 7, 7])
    assert not long.found([7, 7, 7, 7, 7])
    assert not long.found([])


def test_sequences_are_normalised():
    assert SamplingParams(stop="a").stop == ("a",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[1]).stop == ("a", "b")
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None) == SamplingParams()
    assert SamplingParams(temperature=0).greedy


@pytest.mark.parametrize("ids", [[], [-1], ["a"], [1.0], "text"])
def test_bad_prompts_are_refused(ids):
    with pytest.raises(InvalidRequestError) as caught:
        Request(prompt_token_ids=ids)
    assert caught.value.param == "prompt"


def test_request_ids_are_made_up():
    assert Request(prompt_token_ids=[1]).request_id != Request(prompt_token_ids=[1]).request_id


def test_outputs_join():
    def logprob(token: int) -> TokenLogprob:
        return TokenLogprob(token, -1.0, 1)

    first = RequestOutput("r", [1], [CompletionOutput(1, "a", [5], [logprob(5)])])
    first.extend(
        RequestOutput("r", [1], [CompletionOutput(0, "x", [6]), CompletionOutput(1, "b", [7], [logprob(7)])])
    )
    first.extend(RequestOutput("r", [1], [CompletionOutput(1, "c", [], None, "stop", "c")], finished=True))
    assert first == RequestOutput(
        "r",
        [1],
        [
            CompletionOutput(0, "x", [6]),
            CompletionOutput(1, "abc", [5, 7], [logprob(5), logprob(7)], "stop", "c"),
        ],
        finished=True,
    )
