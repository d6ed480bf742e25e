"""Check LoRA against the `peft` library over transformers' own generation."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from myllm_engine import (
    LLM,
    AsyncEngine,
    Engine,
    EngineConfig,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    Request,
    RequestOutput,
    SamplingParams,
    SpeculativeConfig,
)
from myllm_engine.models.lora import LoraLinear

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
PROMPTS = [[5, 17, 300, 41, 8], [900, 31, 7] * 9, [77], list(range(100, 141))]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Two adapters of a family: of different ranks, scalings and layers.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        {
            "r": 8,
            "lora_alpha": 12,
            "use_rslora": True,
            "target_modules": ["q_proj", "down_proj", "lm_head"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"down_proj": 5},
            "exclude_modules": ["layers.3.mlp.down_proj"],
        },
    ),
    "qwen2": (
        {"r": 4, "lora_alpha": 4, "target_modules": r".*\.(q_proj|v_proj|gate_proj)"},
        {"r": 3, "lora_alpha": 9, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1, 3]},
    ),
    "gpt2": (
        {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        {"r": 2, "lora_alpha": 8, "target_modules": ["c_proj"], "fan_in_fan_out": True},
    ),
    "qwen3_moe": (
        {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
        {"r": 4, "lora_alpha": 32, "target_modules": ["v_proj", "o_proj"], "layers_to_transform": 2},
    ),
}

MakeAdapter = Callable[..., str]


@pytest.fixture(scope="session")
def make_adapter(tiny_model, tmp_path_factory) -> MakeAdapter:
    """Return a function that lets peft save an adapter with random weights, and returns its folder."""

    def make(family: str, *, seed: int = 0, **fields: Any) -> str:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(init_lora_weights=False, **fields))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.15)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder, save_embedding_layers=False)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def adapters(make_adapter) -> Callable[[str], tuple[str, str]]:
    made: dict[str, tuple[str, str]] = {}

    def get(family: str) -> tuple[str, str]:
        if family not in made:
            first, second = CONFIGS[family]
            made[family] = make_adapter(family, seed=3, **first), make_adapter(family, seed=4, **second)
        return made[family]

    return get


def load(model: Path, adapter: str | None) -> Any:
    """Load a model with transformers and an adapter with peft."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter)


Expected = list[tuple[list[int], torch.Tensor]]


@pytest.fixture(scope="session")
def expected(tiny_model, adapters) -> Callable[[str], dict[str | None, Expected]]:
    """Return a function that lets peft answer `PROMPTS`: with no adapter, with the first, with the second."""
    made: dict[str, dict[str | None, Expected]] = {}

    def get(family: str) -> dict[str | None, Expected]:
        if family not in made:
            made[family] = {}
            for name, folder in zip((None, "a", "b"), (None, *adapters(family)), strict=True):
                model = load(tiny_model(family), folder)
                made[family][name] = [_generate(model, prompt) for prompt in PROMPTS]
        return made[family]

    return get


def _generate(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    result = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=GREEDY.max_tokens,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return (
        result.sequences[0, len(prompt) :].tolist(),
        torch.log_softmax(torch.cat(result.logits).float(), dim=-1),
    )


@pytest.fixture
def make_engine(tiny_model, adapters) -> Callable[..., Engine]:
    def make(family: str = "llama", **fields: Any) -> Engine:
        fields.setdefault("lora_adapters", dict(zip("ab", adapters(family), strict=True)))
        fields.setdefault("kv_cache_memory", 2**23)
        return Engine(
            EngineConfig(model=str(tiny_model(family)), dtype="float32", device="cpu", page_size=4, **fields)
        )

    return make


def run(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    for request in requests:
        engine.add_request(request)
    results: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        step(engine, results)
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total
    return results


def step(engine: Engine, results: dict[str, RequestOutput]) -> None:
    for output in engine.step():
        if output.request_id in results:
            results[output.request_id].extend(output)
        else:
            results[output.request_id] = output


def mixed(params: SamplingParams = GREEDY) -> list[Request]:
    """Ask every prompt without an adapter and with each."""
    return [
        Request(prompt_token_ids=prompt, params=params, lora=name, request_id=f"{name} {index}")
        for index, prompt in enumerate(PROMPTS)
        for name in (None, "a", "b")
    ]


def check(results: dict[str, RequestOutput], expected: dict[str | None, Expected]) -> None:
    for name, references in expected.items():
        for index, (tokens, logprobs) in enumerate(references):
            output = results[f"{name} {index}"].outputs[0]
            assert output.token_ids == tokens, (name, index)
            for row, item in zip(logprobs, output.logprobs, strict=True):
                assert item.logprob == pytest.approx(float(row[item.token_id]), abs=1e-3)
                assert [value for _, value in item.top] == pytest.approx(
                    row.topk(2).values.tolist(), abs=1e-3
                )


@pytest.mark.parametrize("family", CONFIGS)
def test_a_mixed_batch_equals_peft(make_engine, expected, family):
    answers = expected(family)
    for first, second in ((None, "a"), (None, "b"), ("a", "b")):  # or there would be nothing to tell apart
        assert all(one[0] != two[0] for one, two in zip(answers[first], answers[second], strict=True))
    engine = make_engine(family)
    check(run(engine, mixed()), answers)
    # Once more: now from cached prefixes.
    results = run(engine, mixed())
    check(results, answers)
    assert all(results[f"{name} 3"].num_cached_tokens == 40 for name in (None, "a", "b"))


def test_chunks_and_preemption_equal_peft(make_engine, expected):
    page = 4 * 2 * 16 * 2 * 4 * 4
    engine = make_engine(max_num_batched_tokens=12, max_num_seqs=12, kv_cache_memory=17 * page)
    check(run(engine, mixed()), expected("llama"))
    assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_speculation_equals_peft(make_engine, expected, tiny_model, method):
    model = str(tiny_model("llama")) if method == "draft" else None
    engine = make_engine(speculative=SpeculativeConfig(method=method, model=model, min_ngram=1))
    check(run(engine, mixed()), expected("llama"))
    assert engine.stats().draft_tokens_total > 0


def test_steps_that_begin_early_equal_peft(make_engine, expected):
    check(run(make_engine(async_scheduling=True), mixed()), expected("llama"))


def test_bfloat16_follows_the_merged_model(make_engine, adapters, tiny_model):
    """In bfloat16 the layers below may be packed; compare with the weights merged by hand in float32."""
    merged = load(tiny_model("qwen2"), adapters("qwen2")[0]).merge_and_unload()
    with torch.inference_mode():
        logprobs = merged(torch.tensor([PROMPTS[3]])).logits[0].log_softmax(dim=-1)
    engine = Engine(
        EngineConfig(
            model=str(tiny_model("qwen2")),
            dtype="bfloat16",
            device="cpu",
            lora_adapters={"a": adapters("qwen2")[0]},
            kv_cache_memory=2**23,
        )
    )
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    errors = {}
    for name in (None, "a"):
        result = run(engine, [Request(prompt_token_ids=PROMPTS[3], params=params, lora=name, request_id="x")])
        ours = torch.tensor([item.logprob for item in result["x"].prompt_logprobs[1:]])
        theirs = logprobs[range(len(ours)), PROMPTS[3][1:]]
        errors[name] = (ours - theirs).abs().mean()
    assert errors["a"] < 0.1 * errors[None]


def test_a_request_without_an_adapter_gets_the_same_bits_next_to_one(make_engine):
    engine = make_engine(enable_prefix_caching=False)
    logprobs = []
    for name in (None, "a"):
        requests = [
            Request(prompt_token_ids=PROMPTS[0], params=GREEDY, request_id="x"),
            Request(prompt_token_ids=PROMPTS[1], params=GREEDY, request_id="y", lora=name),
        ]
        logprobs.append(run(engine, requests)["x"].outputs[0].logprobs)
    assert logprobs[0] == logprobs[1]


def test_an_engine_without_adapters_stays_as_it_is(make_engine):
    engine = make_engine(lora_adapters={})
    assert not any(isinstance(module, LoraLinear) for module in engine._runner._model.modules())
    with pytest.raises(InvalidRequestError, match="can have no LoRA adapters: give .*`max_loras`") as caught:
        engine.add_request(Request(prompt_token_ids=[1], lora="a"))
    assert caught.value.param == "lora"
    with pytest.raises(InvalidRequestError, match="`max_loras` of 1 or more"):
        engine.add_lora("a", "somewhere")


def test_several_completions_share_their_prompt(make_engine):
    engine = make_engine()
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=6, n=3, ignore_eos=True)
    requests = [
        Request(prompt_token_ids=PROMPTS[3], params=params, lora=name, request_id=str(name))
        for name in (None, "a", "b")
    ]
    many = run(engine, requests)
    for request in requests:
        for output in many[request.request_id].outputs:
            one = dataclasses.replace(params, n=1, seed=5 + output.index)
            single = run(engine, [dataclasses.replace(request, params=one)])[request.request_id]
            assert single.outputs[0].token_ids == output.token_ids


def test_beams_equal_peft(make_engine, adapters, tiny_model):
    engine = make_engine()
    params = SamplingParams(temperature=0.0, use_beam_search=True, n=3, max_tokens=8, ignore_eos=True)
    requests = [
        Request(prompt_token_ids=PROMPTS[3], params=params, lora=name, request_id=str(name))
        for name in (None, "a", "b")
    ]
    results = run(engine, requests)
    for name, folder in zip((None, "a", "b"), (None, *adapters("llama")), strict=True):
        expected = load(tiny_model("llama"), folder).generate(
            input_ids=torch.tensor([PROMPTS[3]]),
            attention_mask=torch.ones(1, len(PROMPTS[3]), dtype=torch.int64),
            do_sample=False,
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=8,
            eos_token_id=None,
        )
        ours = [output.token_ids for output in results[str(name)].outputs]
        assert ours == expected[:, len(PROMPTS[3]) :].tolist()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_equal_peft(make_engine, adapters, tiny_model, pooling):
    engine = make_engine(max_num_batched_tokens=16, max_num_seqs=4)
    requests = [
        Request(prompt_token_ids=PROMPTS[1], lora=name, pooling=pooling, request_id=str(name))
        for name in (None, "a", "b")
    ]
    results = run(engine, requests)
    for name, folder in zip((None, "a", "b"), (None, *adapters("llama")), strict=True):
        model = load(tiny_model("llama"), folder)
        with torch.inference_mode():
            output = model(torch.tensor([PROMPTS[1]]), output_hidden_states=True)
        hidden = output.hidden_states[-1][0]
        vector = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
        vector = torch.nn.functional.normalize(vector, dim=0)
        assert torch.tensor(results[str(name)].embedding) == pytest.approx(vector, abs=1e-4)


def test_load_and_remove_under_load(make_engine, adapters, expected):
    answers = expected("llama")
    first, second = adapters("llama")
    engine = make_engine(lora_adapters={}, max_loras=2)
    assert engine.loras == {}
    engine.add_lora("b", second)
    engine.add_lora("a", first)
    assert engine.loras == {"a": first, "b": second}
    results: dict[str, RequestOutput] = {}
    for request in mixed():
        engine.add_request(request)
    for _ in range(3):
        step(engine, results)
    assert not any(output.finished for output in results.values())
    # Requests in flight keep what was removed; new ones cannot have it; its place is taken until they end.
    engine.remove_lora("b")
    assert engine.loras == {"a": first}
    with pytest.raises(InvalidRequestError, match=r"no LoRA adapter 'b'; loaded: 'a'") as caught:
        engine.add_request(Request(prompt_token_ids=[1], lora="b"))
    assert caught.value.param == "lora"
    with pytest.raises(InvalidRequestError, match=r"2 LoRA adapters .*'a'; 'b' is removed, but running"):
        engine.add_lora("c", second)
    while engine.has_unfinished():
        step(engine, results)
    check(results, answers)
    # Now there is room, and the next of that name is another one, whatever the last one left in the cache. The
    # other one has moved to where it was.
    engine.add_lora("b", first)
    results = run(engine, mixed())
    check(results, {**answers, "b": answers["a"]})
    assert results["a 3"].num_cached_tokens == 40
    assert results["b 3"].num_cached_tokens == 0
    engine.remove_lora("a")
    check(
        run(engine, [item for item in mixed() if item.lora != "a"]), {None: answers[None], "b": answers["a"]}
    )
    engine.remove_lora("b")
    with pytest.raises(InvalidRequestError, match="no LoRA adapter 'b'; loaded: none"):
        engine.remove_lora("b")
    check(run(engine, [item for item in mixed() if item.lora is None]), {None: answers[None]})


def test_the_names_of_the_config_are_checked(adapters):
    first, second = adapters("llama")
    with pytest.raises(
        ValueError, match=r"`max_loras` \(1\) must not be below the number of `lora_adapters` \(2\)"
    ):
        EngineConfig(lora_adapters={"a": first, "b": second}, max_loras=1)
    with pytest.raises(ValueError, match="`lora_adapters` must map names to folders"):
        EngineConfig(lora_adapters={"": first})


def test_names_are_used_once(make_engine, adapters):
    first, _ = adapters("llama")
    engine = make_engine(lora_adapters={"a": first}, max_loras=3)
    with pytest.raises(InvalidRequestError, match="'a' is loaded already, from .*remove it first") as caught:
        engine.add_lora("a", first)
    assert caught.value.param == "lora_name"
    with pytest.raises(InvalidRequestError, match="must not be empty"):
        engine.add_lora("", first)
    assert list(engine.loras) == ["a"]


def test_layers_that_get_only_some_tokens_are_refused(make_engine, adapters, monkeypatch):
    """As those of experts in code that keeps them apart."""
    whole = LlamaMLP.forward

    def in_parts(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([whole(self, x[:, :1]), whole(self, x[:, 1:])], dim=1)

    monkeypatch.setattr(LlamaMLP, "forward", in_parts)
    with pytest.raises(ModelLoadError, match=r"`model.layers.0.mlp.down_proj`, which gets only some of the"):
        make_engine(lora_adapters={"a": adapters("llama")[0]})


def test_layers_whose_weights_are_read_past_them_are_refused(make_engine, monkeypatch):
    def functional(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.up_proj.weight)

    monkeypatch.setattr(LlamaMLP, "forward", functional)
    with pytest.raises(ModelLoadError, match="cannot run with LoRA adapters: .*'weight'"):
        make_engine(lora_adapters={}, max_loras=1)


def test_llm(adapters, tiny_model, expected):
    first, second = adapters("llama")
    llm = LLM(str(tiny_model("llama")), dtype="float32", device="cpu", kv_cache_memory=2**23, max_loras=2)
    llm.add_lora("a", first)
    llm.add_lora("b", second)
    answers = expected("llama")
    outputs = llm.generate(PROMPTS[:3], GREEDY, lora=["a", None, "b"])
    for output, name, index in zip(outputs, ("a", None, "b"), range(3), strict=True):
        assert output.outputs[0].token_ids == answers[name][index][0]
    outputs = llm.generate(PROMPTS, GREEDY, lora="b")
    assert [output.outputs[0].token_ids for output in outputs] == [tokens for tokens, _ in answers["b"]]
    with pytest.raises(InvalidRequestError, match="4 prompts came with 1 values of `lora`"):
        llm.generate(PROMPTS, GREEDY, lora=["a"])
    messages = [{"role": "user", "content": "Hello"}]
    texts = {name: llm.chat(messages, GREEDY, lora=name)[0].outputs[0].text for name in (None, "a", "b")}
    assert len(set(texts.values())) == 3
    llm.remove_lora("a")
    assert llm.loras == {"b": second}
    llm.close()


async def test_async_engine_loads_and_removes_while_requests_run(adapters, tiny_model, expected):
    answers = expected("llama")
    first, second = adapters("llama")
    engine = AsyncEngine(
        EngineConfig(
            model=str(tiny_model("llama")), dtype="float32", device="cpu", kv_cache_memory=2**23, max_loras=2
        )
    )

    async def ask(name: str | None, index: int) -> list[int]:
        request = Request(prompt_token_ids=PROMPTS[index], params=GREEDY, lora=name)
        return [
            token
            async for output in engine.submit(request)
            for item in output.outputs
            for token in item.token_ids
        ]

    background = Request(prompt_token_ids=[5], params=SamplingParams(max_tokens=400, seed=1, ignore_eos=True))
    stream = engine.submit(background)
    await anext(stream)
    try:
        for _ in range(2):
            await asyncio.gather(engine.add_lora("a", first), engine.add_lora("b", second))
            assert dict(engine.loras) == {"a": first, "b": second}
            keys = [(name, index) for name in (None, "a", "b") for index in range(len(PROMPTS))]
            results = await asyncio.gather(*[ask(*key) for key in keys])
            for (name, index), tokens in zip(keys, results, strict=True):
                assert tokens == answers[name][index][0], (name, index)
            with pytest.raises(InvalidRequestError, match="No more than 2 LoRA adapters"):
                await engine.add_lora("c", first)
            await engine.remove_lora("a")
            with pytest.raises(InvalidRequestError, match="no LoRA adapter 'a'; loaded: 'b'"):
                await ask("a", 0)
            await engine.remove_lora("b")
        with pytest.raises(ModelLoadError, match="no adapter at './nowhere'"):
            await engine.add_lora("d", "./nowhere")
        assert engine.error is None
        await stream.aclose()
    finally:
        engine.close()
    with pytest.raises(EngineDeadError, match="closed"):
        await engine.remove_lora("a")
