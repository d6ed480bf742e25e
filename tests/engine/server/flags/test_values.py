"""The options whose values are more than a number or a word."""

from __future__ import annotations

import re

import pytest

from myllm_engine.config import SpeculativeConfig
from myllm_engine.server.flags.values import parse_lora_modules, parse_size, parse_speculative


@pytest.mark.parametrize(
    ("text", "size"),
    [("123", 123), ("1k", 1000), ("2GiB", 2 * 2**30), ("1.5 MB", 1_500_000), ("4G", 4 * 10**9), ("8b", 8)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 XB", "1i", "one"])
def test_wrong_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ('{"num_speculative_tokens": 2}', SpeculativeConfig(num_tokens=2)),
        (
            '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 3}',
            SpeculativeConfig(num_tokens=5, max_ngram=4, min_ngram=3),
        ),
        (
            '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 1, "model": null}',
            SpeculativeConfig(num_tokens=5, max_ngram=1, min_ngram=1),
        ),
        (
            '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 7}',
            SpeculativeConfig(num_tokens=5, max_ngram=7, min_ngram=7),
        ),
        (
            '{"model": "org/small", "num_speculative_tokens": 3}',
            SpeculativeConfig(method="draft", model="org/small", num_tokens=3),
        ),
        (
            '{"method": "draft_model", "model": "org/small", "num_speculative_tokens": 3}',
            SpeculativeConfig(method="draft", model="org/small", num_tokens=3),
        ),
    ],
)
def test_speculative_configurations(text, config):
    assert parse_speculative(text) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ngram", "`--speculative-config` is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"method": "ngram"}', "needs `num_speculative_tokens`"),
        ('{"method": "eagle", "num_speculative_tokens": 2}', "must be 'ngram' or 'draft_model'; got 'eagle'"),
        (
            '{"num_speculative_tokens": 0}',
            "`num_speculative_tokens` in `--speculative-config` must be an integer",
        ),
        ('{"num_speculative_tokens": true}', "must be an integer of 1 or more; got True"),
        ('{"num_speculative_tokens": 2, "model": ""}', "`model` in `--speculative-config` must be a text"),
        ('{"num_speculative_tokens": 2, "method": "draft_model"}', "which needs it"),
        (
            '{"num_speculative_tokens": 2, "method": "ngram", "model": "m"}',
            "belongs to the method 'draft_model'",
        ),
        ('{"num_speculative_tokens": 2, "quantization": "fp8"}', "holds `quantization`; known are `method`"),
        (
            '{"num_speculative_tokens": 2, "prompt_lookup_max": 2, "prompt_lookup_min": 3}',
            "`prompt_lookup_min` (3) in `--speculative-config` must not be above `prompt_lookup_max` (2)",
        ),
    ],
)
def test_wrong_speculative_configurations(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_speculative(text)


def test_lora_modules():
    assert parse_lora_modules([]) == {}
    assert parse_lora_modules(["sql=/a=b", '{"name": "fr", "path": "org/fr"}']) == {
        "sql": "/a=b",
        "fr": "org/fr",
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["sql"], "must be NAME=PATH; got 'sql'"),
        (["=path"], "must be NAME=PATH"),
        (['{"name": "a"}'], "must be NAME=PATH"),
        (['{"name": "a", "path": "b", "base_model_name": "c"}'], "holds `base_model_name`"),
        (["{"], "`--lora-modules` is not JSON"),
        (["a=b", "a=c"], "names two adapters 'a'"),
    ],
)
def test_wrong_lora_modules(values, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_lora_modules(values)
