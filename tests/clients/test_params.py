from __future__ import annotations

import subprocess
import sys

import pytest

from myllm import InvalidParameterError, UnknownParameterError
from myllm.params import ALIASES, KNOWN_NAMES, NOTHING, PARAMETER_NAMES, Parameters, build


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
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("max_tokens", 5.5),
        ("temperature", "0.5"),
        ("temperature", float("nan")),
        ("seed", 2**63),
        ("logprobs", -1),
        ("prompt_logprobs", -2),
        ("top_k", -2),
        ("mirostat", 3),
        ("logit_bias", {1: 101}),
        ("logit_bias", {-1: 1}),
        ("bad_words", [""]),
        ("bad_words", "one"),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("choice", []),
        ("choice", [1]),
        ("choice", "yes"),
        ("regex", ""),
        ("grammar", 5),
        ("tools", {}),
        ("ignore_eos", 1),
    ],
)
def test_a_bad_value_is_named(name, value):
    with pytest.raises(InvalidParameterError) as caught:
        build({name: value})
    assert caught.value.param == name
    assert f"`{name}={value!r}`" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"logit_bias": {"12": 1}}, {"logit_bias": {12: 1}}),  # JSON has only texts for keys
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"num_predict": 3}, {"max_tokens": 3}),
        ({"n_predict": 3}, {"max_tokens": 3}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"num_return_sequences": 2}, {"n": 2}),
        ({"guided_choice": ["a"]}, {"choice": ["a"]}),
        ({"guided_json": {"type": "object"}}, {"json_schema": {"type": "object"}}),
        ({"top_n_tokens": 2}, {"logprobs": 2}),
        ({"max_tokens": 5, "max_new_tokens": None}, {"max_tokens": 5}),  # frameworks pass None for "not set"
        ({"max_tokens": None, "max_new_tokens": 5}, {"max_tokens": 5}),
        ({"max_new_tokens": None, "num_predict": 5}, {"max_tokens": 5}),
    ],
)
def test_what_other_libraries_write_is_understood(given, values):
    assert build(given).set_values() == values


def test_every_alias_leads_to_a_parameter():
    assert set(ALIASES.values()) <= set(PARAMETER_NAMES) == set(Parameters.model_fields)
    assert set(ALIASES).isdisjoint(PARAMETER_NAMES)
    assert {*PARAMETER_NAMES, *ALIASES, "do_sample"} == KNOWN_NAMES


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": {"type": "object"}, "regex": "a"},
        {"choice": ["a"], "grammar": "g"},
        {"json_schema": {}, "response_format": {"type": "json_object"}},
        {"guided_regex": "a", "choice": ["a"]},
    ],
)
def test_an_answer_has_one_shape(given):
    with pytest.raises(InvalidParameterError, match="give one of them"):
        build(given)
    with pytest.raises(InvalidParameterError, match="give one of them"):
        build({}, given)


def test_a_call_s_shape_goes_before_the_defaults():
    defaults = {"json_schema": {"type": "object"}, "top_p": 0.5}
    assert build({"regex": "a"}, defaults).set_values() == {"regex": "a", "top_p": 0.5}
    assert build({"regex": "a"}, build(defaults)).set_values() == {"regex": "a", "top_p": 0.5}
    assert build({"json_schema": None}, defaults).set_values() == {"top_p": 0.5}
    assert build({"n": 2}, defaults).json_schema == {"type": "object"}


def test_a_class_as_response_format_is_told_where_it_belongs():
    with pytest.raises(InvalidParameterError, match="json_schema=Parameters"):
        build({"response_format": Parameters})


def test_checked_defaults_are_shared_by_calls_that_set_nothing():
    defaults = build({"temperature": 0.5})
    assert build({}, defaults) is defaults
    assert build({"n": 2}, defaults).set_values() == {"temperature": 0.5, "n": 2}
    assert build({"temperature": None}, defaults).set_values() == {}
    assert build({}) is NOTHING


def test_schemas_cost_nothing_where_there_are_none():
    code = "import sys, myllm.params as p; p.build({'n': 1}); assert 'jsonschema' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"do_sample": "False"}, "`do_sample='False'` must be True or False"),
        ({"do_sample": 0}, "`do_sample=0` must be"),
        ({"logit_bias": {5: 1, "5": 2}}, "a token twice"),
        (
            {"response_format": {"type": "json_schema", "json_schema": "{}"}},
            "`json_schema` must be a mapping",
        ),
    ],
)
def test_what_a_server_would_be_blamed_for_is_refused_here(given, words):
    with pytest.raises(InvalidParameterError, match=words):
        build(given)


def test_two_names_of_one_parameter_may_agree_but_not_contradict():
    assert build({"max_tokens": 5, "max_completion_tokens": 5}).max_tokens == 5
    with pytest.raises(InvalidParameterError, match="`max_tokens=5` and `max_new_tokens=6`"):
        build({"max_tokens": 5, "max_new_tokens": 6})


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": None}, 1.0),
        ({"do_sample": None}, 0.7),
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
        ("structured_outputs", "`json_schema=`"),
        ("early_stopping", "removed"),
    ],
)
def test_what_other_libraries_say_gets_a_pointer(name, words):
    with pytest.raises(UnknownParameterError) as caught:
        build({name: 1})
    assert words in str(caught.value)
    assert "extra_body" not in str(caught.value)


def test_an_option_of_the_call_is_guessed_too():
    with pytest.raises(UnknownParameterError, match="Did you mean `session`"):
        build({"sesion": "a"})
