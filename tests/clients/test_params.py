from __future__ import annotations

import pytest

from myllm import InvalidParameterError, UnknownParameterError
from myllm.params import build


def test_call_goes_before_defaults_under_any_name():
    params = build({"max_new_tokens": 5}, {"max_tokens": 99, "temperature": 0.5})
    assert params.set_values() == {"max_tokens": 5, "temperature": 0.5}


def test_none_removes_a_default():
    assert build({"stop": None}, {"stop": ["\n"]}).set_values() == {}


def test_one_stop_string_is_a_list():
    assert build({"stop_sequences": "###"}).stop == ["###"]


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("top-k", "top_k"),
        ("stop_sequence", "stop_sequences"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(given, nearest):
    with pytest.raises(UnknownParameterError) as caught:
        build({given: 1})
    assert f"`{given}`" in str(caught.value)
    assert f"Did you mean `{nearest}`?" in str(caught.value)
    assert "extra_body" in str(caught.value)


def test_an_unknown_default_is_refused_too():
    with pytest.raises(UnknownParameterError):
        build({}, {"bananas": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("n", 0),
        ("max_tokens", "many"),
        ("frequency_penalty", 3),
        ("logit_bias", {"cat": 1}),
        ("stop", [1]),
        ("stop", [""]),
        ("temperature", float("inf")),
    ],
)
def test_a_bad_value_is_named(name, value):
    with pytest.raises(InvalidParameterError) as caught:
        build({name: value})
    assert caught.value.param == name
    assert f"`{name}={value!r}`" in str(caught.value)


def test_two_names_of_one_parameter_may_agree_but_not_contradict():
    assert build({"max_tokens": 5, "max_completion_tokens": 5}).max_tokens == 5
    with pytest.raises(InvalidParameterError, match="`max_tokens=5` and `max_new_tokens=6`"):
        build({"max_tokens": 5, "max_new_tokens": 6})


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"do_sample": False, "temperature": 0}, 0.0),
    ],
)
def test_do_sample_is_said_with_temperature(given, temperature):
    assert (
        build(given, {"temperature": 0.7} if "temperature" not in given else None).temperature == temperature
    )


@pytest.mark.parametrize(
    "given", [{"do_sample": True, "temperature": 0}, {"do_sample": False, "temperature": 1}]
)
def test_do_sample_may_not_contradict_temperature(given):
    with pytest.raises(InvalidParameterError, match="contradicts"):
        build(given)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": 0}, 0),
        ({"logprobs": 3}, 3),
        ({"logprobs": True, "top_logprobs": 2}, 2),
    ],
)
def test_logprobs_of_both_apis_mean_one_number(given, wanted):
    assert build(given).wanted_logprobs == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stream", "stream_chat"),
        ("system_prompt", '"role": "system"'),
        ("apikey", "`api_key`"),
        ("port", "URL"),
    ],
)
def test_what_other_libraries_say_gets_a_pointer(name, words):
    with pytest.raises(UnknownParameterError) as caught:
        build({name: 1})
    assert words in str(caught.value)
    assert "extra_body" not in str(caught.value)
