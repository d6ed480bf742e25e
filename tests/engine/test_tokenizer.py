"""Check token ids against llama.cpp's, token bytes against the text, and chat rendering."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from myllm_engine.config import EngineConfig
from myllm_engine.errors import InvalidRequestError, ModelLoadError
from myllm_engine.models import gguf, gguf_tokenizer
from myllm_engine.models.source import resolve_model
from myllm_engine.tokenizer import Tokenizer, load_tokenizer, read_chat_template

LLAMA_CPP_IDS = Path(__file__).parent / "data" / "smollm2_token_ids.json"
MESSAGES = [{"role": "user", "content": "Hi"}]


def test_ids_equal_llama_cpp(tokenizer: Tokenizer):
    if not LLAMA_CPP_IDS.exists():
        pytest.skip("the ids that llama.cpp gives are not recorded yet")
    recorded = json.loads(LLAMA_CPP_IDS.read_text(encoding="utf-8"))
    wrong = []
    try:
        for case in recorded["cases"]:
            # Some cases were recorded with "<|im_end|>" read as text, which our tokenizer does not do by
            # itself.
            tokenizer.backend.encode_special_tokens = not case["special"]
            ids = tokenizer.encode(case["text"], add_special_tokens=False)
            if ids != case["ids"]:
                wrong.append((case["text"], case["ids"], ids))
    finally:
        tokenizer.backend.encode_special_tokens = False
    assert not wrong, f"{len(wrong)} of {len(recorded['cases'])} texts differ, the first: {wrong[0]}"


def test_digits_are_single_tokens(tokenizer: Tokenizer):
    ids = tokenizer.encode("12345")
    assert [tokenizer.token_text(token) for token in ids] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("text", ["Hello, world", " 😀é", "नमस्ते 今日", "a\n\tb  c", "x<|im_end|>y"])
def test_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer, text):
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(token) for token in ids).decode() == text
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_token_has_bytes(tokenizer: Tokenizer):
    assert all(tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
    assert tokenizer.token_bytes(10**6) == b""


def test_special_tokens(tokenizer: Tokenizer):
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(504)
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.decode([504, 2]) == "The"
    assert tokenizer.token_text(2) == "<|im_end|>"
    assert "\ufffd" in tokenizer.token_text(tokenizer.encode("😀")[0])


def test_chat_is_rendered_by_the_template(tokenizer: Tokenizer):
    text = tokenizer.render_chat([{"role": "system", "content": "S"}, *MESSAGES])
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_chat([{"role": "system", "content": "S"}, *MESSAGES]) == tokenizer.encode(text)
    assert not tokenizer.render_chat(MESSAGES, add_generation_prompt=False).endswith("assistant\n")
    open_end = [*MESSAGES, {"role": "assistant", "content": "Well, I"}]
    rendered = tokenizer.render_chat(open_end, add_generation_prompt=False, continue_final_message=True)
    assert rendered.endswith("<|im_start|>assistant\nWell, I")
    assert tokenizer.render_chat(MESSAGES, chat_template="{{ name }}", name="x") == "x"


def test_template_errors_are_the_requests_fault(tokenizer: Tokenizer):
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        tokenizer.render_chat(MESSAGES, chat_template=refusing)
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequestError):
        tokenizer.render_chat([{"role": "user"}])
    with pytest.raises(InvalidRequestError):
        tokenizer.render_chat(MESSAGES, chat_template="{% if %}")
    for failing in (
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 10.0 ** 400 }}",
        "{{ none.x() }}",
    ):
        with pytest.raises(InvalidRequestError, match="cannot render"):
            tokenizer.render_chat(MESSAGES, chat_template=failing)
    for name in ("self", "conversation", "tokenize", "return_tensors"):
        with pytest.raises(InvalidRequestError, match=f"`{name}` cannot be a variable") as caught:
            tokenizer.encode_chat(MESSAGES, **{name: 1})
        assert caught.value.param == "chat_template_kwargs"
    assert (
        tokenizer.render_chat(MESSAGES, chat_template="{{ documents }}", documents=[{"a": 1}]) == "[{'a': 1}]"
    )
    with pytest.raises(InvalidRequestError, match="cannot render"):  # a name of jinja's own
        tokenizer.render_chat(MESSAGES, messages=[])
    bare = Tokenizer(tokenizer._tokenizer)
    bare.chat_template = None
    with pytest.raises(InvalidRequestError, match="--chat-template"):
        bare.render_chat(MESSAGES)


def test_chat_template_from_config(tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("file {{ messages[0].content }}")
    assert read_chat_template(str(file)).startswith("file")
    assert read_chat_template("{{ x }}") == "{{ x }}"
    with pytest.raises(ModelLoadError, match="neither a Jinja template nor a file"):
        read_chat_template(str(tmp_path / "none.jinja"))
    loaded = load_tokenizer(EngineConfig(chat_template=str(file)), resolve_model("smollm2"))
    assert loaded.render_chat(MESSAGES) == "file Hi"


def test_a_tokenizer_json_beside_the_gguf_file_is_preferred(tmp_path: Path, tokenizer: Tokenizer):
    source = resolve_model("smollm2")
    (tmp_path / "m.gguf").symlink_to(source.gguf_path)
    other = tokenizer._tokenizer.from_pretrained(_saved(tokenizer, tmp_path))
    other.add_tokens(["<beside>"])
    other.save_pretrained(tmp_path)
    loaded = load_tokenizer(EngineConfig(), resolve_model(str(tmp_path / "m.gguf")))
    assert loaded.encode("<beside>") == [49152]
    explicit = load_tokenizer(
        EngineConfig(tokenizer=str(tmp_path / "tokenizer.json")), resolve_model("smollm2")
    )
    assert explicit.encode("<beside>") == [49152]


def _saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer._tokenizer.save_pretrained(folder)
    return folder


def test_an_unknown_split_is_left_to_transformers_with_a_warning(caplog: pytest.LogCaptureFixture):
    metadata = gguf.read_metadata(resolve_model("smollm2").gguf_path)
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    metadata["tokenizer.ggml.pre"] = "nobody-knows"
    assert gguf_tokenizer.build_tokenizer(metadata) is None
    with caplog.at_level(logging.WARNING):
        gguf_tokenizer.warn_of_unknown_split(metadata, "x.gguf")
    assert "'nobody-knows'" in caplog.text
    assert "token ids may be wrong" in caplog.text
    assert "tokenizer=" in caplog.text


def test_missing_tokenizer_says_what_to_do(tmp_path: Path):
    with pytest.raises(ModelLoadError, match=r"pass `tokenizer=`.*tokenizer\.json"):
        load_tokenizer(EngineConfig(tokenizer=str(tmp_path)), resolve_model("smollm2"))
