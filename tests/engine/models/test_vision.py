"""Check models that see images against `transformers.generate`: tiny ones with random weights, in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from myllm_engine.config import EngineConfig, SpeculativeConfig
from myllm_engine.engine import Engine
from myllm_engine.errors import InvalidRequestError, ModelLoadError
from myllm_engine.models.pretrained import read_model
from myllm_engine.models.source import ModelSource
from myllm_engine.models.vision import VISION_FAMILIES, ImageInputs
from myllm_engine.request import Request, SamplingParams

MAX_TOKENS = 8


@pytest.fixture(scope="module", params=sorted(VISION_FAMILIES))
def tiny(request: pytest.FixtureRequest, tiny_vision: Callable[[str], Any]) -> Any:
    """A tiny model, where it is saved, and transformers' own processor for it."""
    return tiny_vision(request.param)


def make_engine(tiny: Any, **options: Any) -> Engine:
    defaults = {
        "dtype": "float32",
        "device": "cpu",
        "page_size": 4,
        "kv_cache_memory": 2**21,
        "max_num_seqs": 4,
    }
    return Engine(EngineConfig(model=str(tiny.folder), **{**defaults, **options}))


@pytest.fixture(scope="module")
def engine(tiny: Any) -> Engine:
    return make_engine(tiny)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (5, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(noise).resize(size)


def conversation(*texts: str) -> list[dict[str, Any]]:
    """Return a question with an image before each text."""
    parts = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})]
    return [{"role": "user", "content": parts}]


def prompt(engine: Engine, images: Sequence[Image.Image], *texts: str) -> tuple[list[int], ImageInputs]:
    rendered = engine.tokenizer.render_chat(conversation(*texts))
    expanded = engine.vision.expand(rendered, images)
    token_ids = engine.tokenizer.encode(expanded.text, add_special_tokens=False)
    return token_ids, expanded.inputs(token_ids)


def answer(tiny: Any, images: Sequence[Image.Image], *texts: str) -> tuple[list[int], list[int]]:
    """Return the prompt and the greedy tokens of transformers alone: its template, processor, model and loop."""
    text = tiny.processor.tokenizer.apply_chat_template(
        conversation(*texts), tokenize=False, add_generation_prompt=True
    )
    inputs = tiny.processor(text=text, images=list(images), return_tensors="pt", add_special_tokens=False)
    result = tiny.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
    length = inputs["input_ids"].shape[1]
    return result[0, :length].tolist(), result[0, length:].tolist()


def run(
    engine: Engine, requests: dict[str, tuple[list[int], ImageInputs | None]], **params: Any
) -> dict[str, Any]:
    """Run requests together to their end; return their outputs."""
    greedy = SamplingParams(**{"temperature": 0.0, "max_tokens": MAX_TOKENS, **params})
    for name, (token_ids, images) in requests.items():
        engine.add_request(Request(request_id=name, prompt_token_ids=token_ids, images=images, params=greedy))
    outputs: dict[str, Any] = {}
    while engine.has_unfinished():
        for output in engine.step():
            assert output.error is None
            if output.request_id in outputs:
                outputs[output.request_id].extend(output)
            else:
                outputs[output.request_id] = output
    return outputs


def tokens(output: Any) -> list[int]:
    return output.outputs[0].token_ids


CASES: dict[str, tuple[list[Image.Image], tuple[str, ...]]] = {
    "one": ([picture(1)], ("What is this?",)),
    "other": ([picture(2)], ("What is this?",)),
    "tall": ([picture(3, (10, 64))], ("Describe it.",)),
    "small": ([picture(4, (3, 2))], ("Hm.",)),
    "two": ([picture(1), picture(2, (64, 64))], ("First.", "And this?")),
}


@pytest.fixture(scope="module")
def expected(tiny: Any) -> dict[str, tuple[list[int], list[int]]]:
    return {name: answer(tiny, images, *texts) for name, (images, texts) in CASES.items()}


def test_greedy_tokens_equal_transformers(engine: Engine, expected: dict[str, Any]):
    prompts = {name: prompt(engine, images, *texts) for name, (images, texts) in CASES.items()}
    assert {name: token_ids for name, (token_ids, _) in prompts.items()} == {
        name: token_ids for name, (token_ids, _) in expected.items()
    }
    outputs = run(engine, prompts)
    assert {name: tokens(output) for name, output in outputs.items()} == {
        name: answer for name, (_, answer) in expected.items()
    }
    # The images decide: else the test would pass for a model that is blind.
    assert tokens(outputs["one"]) != tokens(outputs["other"])


def test_text_alone_is_text(engine: Engine, tiny: Any):
    token_ids = engine.tokenizer.encode("Hello <image> there", add_special_tokens=False)
    result = tiny.model.generate(torch.tensor([token_ids]), do_sample=False, max_new_tokens=MAX_TOKENS)
    assert tokens(run(engine, {"x": (token_ids, None)})["x"]) == result[0, len(token_ids) :].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 5},  # chunks end within images
        {"kv_cache_memory": 2 * 2 * 4 * 8 * 2 * 2 * 60},  # 60 pages: they preempt each other
        {"async_scheduling": True},
        {"enable_prefix_caching": False},
        {"speculative": SpeculativeConfig()},
    ],
    ids=["chunks", "preemption", "async", "no prefix caching", "speculation"],
)
def test_schedules_change_nothing(tiny: Any, expected: dict[str, Any], options: dict[str, Any]):
    engine = make_engine(tiny, **options)
    outputs = run(engine, {name: prompt(engine, images, *texts) for name, (images, texts) in CASES.items()})
    assert {name: tokens(output) for name, output in outputs.items()} == {
        name: answer for name, (_, answer) in expected.items()
    }
    if "kv_cache_memory" in options:
        assert engine.stats().num_preemptions > 0


def test_prefixes_are_shared_by_equal_images_only(tiny: Any, expected: dict[str, Any]):
    engine = make_engine(tiny)
    one, other = (prompt(engine, *CASES[name][:1], *CASES[name][1]) for name in ("one", "other"))
    assert one[0] == other[0]
    again = prompt(engine, [picture(1)], "What is this?")
    cached = []
    for request in (one, other, again):
        output = run(engine, {"x": request})["x"]
        cached.append(output.num_cached_tokens)
        assert tokens(output) == expected["other" if request is other else "one"][1]
    assert cached[:2] == [0, 0]
    assert cached[2] >= len(one[0]) - 5


def test_the_tower_runs_once_for_a_request(tiny: Any, monkeypatch: pytest.MonkeyPatch):
    engine = make_engine(tiny, max_num_batched_tokens=5, enable_prefix_caching=False)
    seen: list[int] = []
    whole: Callable[..., Any] = type(engine._runner._model).get_image_features

    def count(self: Any, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        seen.append(pixel_values.shape[1])
        return whole(self, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(type(engine._runner._model), "get_image_features", count)
    request = prompt(engine, *CASES["two"][:1], *CASES["two"][1])
    output = run(engine, {"x": request}, n=3, temperature=1.0, seed=0)["x"]
    assert len(output.outputs) == 3
    assert seen == [8, len(request[1].pixels) - 8]  # at most 8 tiles at once
    assert run(engine, {"y": request}, n=2, use_beam_search=True)["y"].outputs
    assert sum(seen) == 2 * len(request[1].pixels)


def test_images_and_places_must_fit(engine: Engine):
    with pytest.raises(InvalidRequestError, match="1 places for images.*2 images came"):
        prompt(engine, [picture(1), picture(2)], "One?")
    with pytest.raises(InvalidRequestError, match="2 places for images.*1 images came"):
        prompt(engine, [picture(1)], "What does <image> mean?")
    rendered = engine.tokenizer.render_chat(conversation("x"))
    expanded = engine.vision.expand(rendered, [picture(1)])
    token_ids = engine.tokenizer.encode(expanded.text)
    with pytest.raises(InvalidRequestError, match="cannot be cut"):
        expanded.inputs(token_ids[10:])
    with pytest.raises(InvalidRequestError, match="another prompt"):
        engine.prepare(Request(prompt_token_ids=token_ids[:5], images=expanded.inputs(token_ids)))


def test_a_model_without_eyes_refuses_images(engine: Engine, tiny_model: Callable[[str], Path]):
    token_ids, images = prompt(engine, [picture(1)], "x")
    blind = Engine(EngineConfig(model=str(tiny_model("llama")), device="cpu", kv_cache_memory=2**22))
    assert blind.vision is None
    with pytest.raises(InvalidRequestError, match="sees no images"):
        blind.prepare(Request(prompt_token_ids=token_ids, images=images))


def test_token_ids_carry_no_images(engine: Engine):
    with pytest.raises(InvalidRequestError, match="go to the server"):
        engine.tokenizer.encode_chat(conversation("x"))


def test_lower_precision_runs(tiny: Any):
    engine = make_engine(tiny, dtype="bfloat16")
    assert tokens(run(engine, {"x": prompt(engine, [picture(1)], "x")})["x"])


def test_what_cannot_be_had_is_refused_at_load(tiny: Any, tmp_path: Path):
    for options in ({"tensor_parallel_size": 2}, {"max_loras": 1}):
        config = EngineConfig(model=str(tiny.folder), **options)
        with pytest.raises(ModelLoadError, match="without `tensor_parallel_size` and without LoRA"):
            read_model(config, ModelSource(str(tiny.folder)), device=torch.device("cpu"), dtype=torch.float32)
    folder = tmp_path / "blind"
    folder.mkdir()
    for file in tiny.folder.iterdir():
        if file.name != "preprocessor_config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelLoadError, match="image processor of .* cannot be loaded"):
        make_engine(dataclasses.replace(tiny, folder=folder))
