"""Check every family against `transformers.generate`: tiny models with random weights, in float32.

`docs/models.md` lists the families tested here; `test_the_documentation_lists_these_families` holds it to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from myllm_engine.config import EngineConfig, SpeculativeConfig
from myllm_engine.engine import Engine
from myllm_engine.models.adapters import ADAPTED_FAMILIES
from myllm_engine.request import Request, SamplingParams
from myllm_engine.sequence import Sequence

DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"
VOCABULARY = 512
MAX_TOKENS = 8

# What a family's config has of these, by the several names that families use.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "max_seq_len": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attention_dropout": 0.0,
    "dropout": 0.0,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
# The family, and what sets a variant apart.
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 6, "hidden_size": 48},
    "codegen": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0, "head_dim": 8, **SLIDING},
    "deepseek_v3": MLA,
    "exaone4": SLIDING,
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, alibi": {"alibi": True, "multi_query": False, "parallel_attn": False},
    "falcon, multi-query": {"multi_query": True},
    "gemma2": {
        "head_dim": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 16,
        **SLIDING,
    },
    "gemma3_text": {"head_dim": 8, **SLIDING},
    "glm4": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "gpt_bigcode": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256, "multi_query": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {"head_dim": 8, **MOE, **SLIDING},
    "gptj": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4, "n_positions": 256},
    "granite": {"attention_multiplier": 0.3},
    "hunyuan_v1_dense": {"head_dim": 8},
    "llama": {},
    "llama4_text": {"head_dim": 8, "attention_chunk_size": 128, "intermediate_size_mlp": 64, **MOE},
    "mistral": {"head_dim": 8, "sliding_window": 8},
    "mixtral": MOE,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "nemotron": {},
    "olmo2": {},
    "openai-gpt": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "qwen2": {},
    "qwen2, sliding": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, **MOE},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": 8},
    "xglm": {"d_model": 32, "attention_heads": 4, "ffn_dim": 64},
}


def family_of(name: str) -> str:
    return name.partition(",")[0]


def make_config(name: str) -> Any:
    default = AutoConfig.for_model(family_of(name))
    sizes = {key: value for key, value in SIZES.items() if hasattr(default, key)}
    return AutoConfig.for_model(family_of(name), **{**sizes, **FAMILIES[name]})


def make_model(config: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    # Falcon's eager attention adds its bias twice; softcap and sinks exist in eager attention alone.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Every answer of a freshly initialised model is one repeated token.
            parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.add_(
                torch.randn_like(parameter) * 0.2
            )
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate(alphabet)}
    vocabulary |= {f"<{index}>": index for index in range(len(alphabet), VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def make_prompts() -> list[list[int]]:
    """Return prompts most of which begin alike, beyond page and chunk borders, and one of which repeats itself."""
    generator = torch.Generator().manual_seed(3)

    def draw(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    shared = draw(25)
    first = [shared + draw(n) for n in (1, 3, 17)] + [draw(1), draw(4) * 9]
    second = [shared + draw(2), first[2] + draw(5), list(first[0])]
    return first + second


PROMPTS = make_prompts()
FIRST_WAVE = 5


def answer(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return transformers' greedy tokens, and the log-softmax of each step's logits."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return result.sequences[0, len(prompt) :].tolist(), torch.log_softmax(torch.cat(result.logits), dim=-1)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable:
    """Return a function that makes a family's folder, and its answers to `PROMPTS`."""
    made: dict[str, tuple[Path, list[tuple[list[int], torch.Tensor]]]] = {}

    def make(name: str) -> tuple[Path, list[tuple[list[int], torch.Tensor]]]:
        if name not in made:
            model = make_model(make_config(name))
            folder = tmp_path_factory.mktemp("family")
            model.save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
            made[name] = folder, [answer(model, prompt) for prompt in PROMPTS]
        return made[name]

    return make


def run(engine: Engine, prompts: dict[str, list[int]]) -> dict[str, tuple[list[int], list[float]]]:
    """Run prompts to the end, adding one a step; return tokens and their log-probabilities."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=1)
    todo = list(prompts.items())
    results: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in prompts}
    while engine.has_unfinished() or todo:
        if todo:
            name, ids = todo.pop(0)
            engine.add_request(Request(prompt_token_ids=ids, params=params, request_id=name))
        for output in engine.step():
            assert output.error is None
            for part in output.outputs:
                results[output.request_id][0].extend(part.token_ids)
                results[output.request_id][1].extend(item.logprob for item in part.logprobs or ())
    return results


class Oracle:
    """Propose what transformers answered, the last token wrong: drafts to keep and to drop, whatever the model says."""

    def __init__(self, answers: list[list[int]]) -> None:
        self._texts = [prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)]

    def propose(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        return {sequence: self._guess(sequence.token_ids, count) for sequence, count in wanted.items()}

    def _guess(self, tokens: list[int], count: int) -> list[int]:
        text = next(text for text in self._texts if text[: len(tokens)] == tokens)
        right = text[len(tokens) : len(tokens) + count]
        return [*right[:-1], (right[-1] + 1) % VOCABULARY]


@pytest.mark.parametrize("speculative", [None, SpeculativeConfig()], ids=["plain", "speculative"])
@pytest.mark.parametrize("name", FAMILIES)
def test_mixed_batches_equal_transformers(family, monkeypatch, name, speculative):
    folder, references = family(name)
    # The CPU library has tests of its own; here the attention in transformers' models is of interest.
    monkeypatch.setattr("myllm_engine.models.load.make_native", lambda *_, **__: None)
    monkeypatch.setattr(
        "myllm_engine.runner.num_pages", lambda *_, **__: 15
    )  # 14, and sequences need up to 14
    engine = Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            max_num_seqs=8,
            max_num_batched_tokens=16,
            page_size=4,
            speculative=speculative,
        )
    )
    if speculative is not None:
        engine._speculator._proposer = Oracle([token_ids for token_ids, _ in references])
    prompts = {str(index): prompt for index, prompt in enumerate(PROMPTS)}
    waves = dict(list(prompts.items())[:FIRST_WAVE]), dict(list(prompts.items())[FIRST_WAVE:])
    results = run(engine, waves[0]) | run(engine, waves[1])
    for index, (token_ids, logprobs) in enumerate(references):
        ours, our_logprobs = results[str(index)]
        assert ours == token_ids, index
        expected = [row[token].item() for row, token in zip(logprobs, token_ids, strict=True)]
        assert our_logprobs == pytest.approx(expected, abs=1e-3)
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_cached_tokens_total > 0
    assert (stats.draft_tokens_total > stats.accepted_tokens_total > 0) == (speculative is not None)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_vary(family, name):
    """A model that repeats one token would pass with any attention."""
    _, references = family(name)
    assert len({token for token_ids, _ in references for token in token_ids}) >= 6


def test_the_documentation_lists_these_families():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (transformers' attention|an adapter)", line)]
    by_interface, by_adapter = (set(re.findall(r"`([\w-]+)`", row)) for row in rows)
    assert by_adapter == ADAPTED_FAMILIES
    assert by_interface | by_adapter == {family_of(name) for name in FAMILIES}
