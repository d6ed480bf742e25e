"""Check the bundled chat templates against the published formats.

The expected prompts are those of the models' cards, of the code that their authors published, or what the template
renders that comes with the model: each test names its source. Spelled out here, they are independent of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from myllm_engine.chat_template import bundled_templates, read_bundled
from myllm_engine.config import EngineConfig
from myllm_engine.errors import InvalidRequestError, ModelLoadError
from myllm_engine.models.source import ModelSource
from myllm_engine.tokenizer import Tokenizer, load_tokenizer, read_chat_template

DOCUMENT = Path(__file__).parents[2] / "docs" / "templates.md"
CHAT = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name."}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
}
TOOL_CHAT = [
    {"role": "user", "content": "What is the weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"celsius": 4}'},
]

# Without tools, with a generation prompt where the format has one.
EXPECTED = {
    # The template of teknium/OpenHermes-2.5-Mistral-7B.
    "chatml": "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n",
    # The template of mosaicml/mpt-30b-chat.
    "mpt": "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n",
    # NousResearch/Hermes-2-Pro-Llama-3-8B, "default".
    "hermes": "<s><|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n",
    # llama/generation.py, `chat_completion`, of github.com/meta-llama/llama; the BOS and EOS tokens as text.
    "llama2": "<s>[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there </s>"
    "<s>[INST] Who are you [/INST]",
    # llama/generation.py of github.com/meta-llama/codellama.
    "codellama": "<s>[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there </s>"
    "<s>[INST] Who are you [/INST]",
    # llama/tokenizer.py, `ChatFormat`, of github.com/meta-llama/llama3.
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    # The template of meta-llama/Llama-3.1-8B-Instruct.
    "llama3.1": "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    # The template of mistralai/Mistral-7B-Instruct-v0.2, since it knows system prompts.
    "mistral": "<s> [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s> [INST] Who are you [/INST]",
    # mistral-common, `InstructTokenizerV3`: the system prompt belongs to the last user message.
    "mistral-tools": "<s>[INST] Hello[/INST] Hi there</s>"
    "[INST] You are a helpful assistant\n\nWho are you[/INST]",
    "mistral-tools-parallel": "<s>[INST] Hello[/INST] Hi there</s>"
    "[INST] You are a helpful assistant\n\nWho are you[/INST]",
    # vLLM's examples/template_falcon.jinja; the model card has no turns.
    "falcon": "You are a helpful assistant\nUser: Hello\nAssistant: Hi there\nUser: Who are you\nAssistant:",
    # huggingface.co/blog/falcon-180b, "Prompt format".
    "falcon-180b": "System: You are a helpful assistant\nUser: Hello\nFalcon: Hi there\nUser: Who are you\nFalcon:",
    # FastChat, "vicuna_v1.1".
    "vicuna": "<s>You are a helpful assistant USER: Hello ASSISTANT: Hi there</s>USER: Who are you ASSISTANT:",
    # PROMPT_DICT of github.com/tatsu-lab/stanford_alpaca, which has one turn.
    "alpaca": "<s>You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:Hi there</s>\n\n"
    "### Instruction:\nWho are you\n\n### Response:",
    "wizardcoder": "<s>You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:Hi there</s>\n\n"
    "### Instruction:\nWho are you\n\n### Response:",
    # The card of Phind/Phind-CodeLlama-34B-v2.
    "phind-codellama": "<s>### System Prompt\nYou are a helpful assistant\n\n### User Message\nHello\n\n"
    "### Assistant\nHi there\n\n### User Message\nWho are you\n\n### Assistant\n",
    # The card of HuggingFaceH4/zephyr-7b-beta.
    "zephyr": "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi there</s>\n"
    "<|user|>\nWho are you</s>\n<|assistant|>\n",
}
# What stands before a lone "Hello" without a system prompt.
DEFAULT_SYSTEM = {
    "mpt": "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives "
    "helpful and honest answers.<|im_end|>\n<|im_start|>user\n",
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: ",
    "alpaca": "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n",
    # The card of WizardLM/WizardCoder-Python-34B-V1.0.
    "wizardcoder": "<s>Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n",
}
ALTERNATING = ("llama2", "codellama", "mistral", "mistral-tools", "mistral-tools-parallel")
SOME_ROLES = ("alpaca", "falcon", "falcon-180b", "phind-codellama", "vicuna", "wizardcoder", "zephyr")

HERMES_TOOLS = (
    "<s><|im_start|>system\nYou are a function calling AI model. You are provided with function signatures within "
    "<tools></tools> XML tags. You may call one or more functions to assist with the user query. Don't make "
    "assumptions about what values to plug into functions. Here are the available tools: <tools> "
    '{"type": "function", "function": {"name": "get_weather", "description": "get_weather(city: str) - Get the '
    "weather of a city.\n\n    Args:\n        city(str): The city's name.\", "
    '"parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city\'s name."}}, '
    '"required": ["city"]}} </tools>Use the following pydantic model json schema for each tool call you will make: '
    '{"properties": {"name": {"title": "Name", "type": "string"}, "arguments": {"title": "Arguments", "type": '
    '"object"}}, "required": ["name", "arguments"], "title": "FunctionCall", "type": "object"}}\n'
    "For each function call return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags as follows:\n<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\nWhat is the weather in Oslo?<|im_end|>\n"
    '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
    '<|im_start|>tool\n<tool_response>\n{"celsius": 4}\n</tool_response><|im_end|><|im_start|>assistant\n'
)
LLAMA_TOOLS = (
    "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, "
    "please respond with a JSON for a function call with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.Do not use '
    'variables.\n\n{\n    "type": "function",\n    "function": {\n        "name": "get_weather",\n        '
    '"description": "Get the weather of a city.",\n        "parameters": {\n            "type": "object",\n            '
    '"properties": {\n                "city": {\n                    "type": "string",\n                    '
    '"description": "The city\'s name."\n                }\n            },\n            "required": [\n                '
    '"city"\n            ]\n        }\n    }\n}\n\nWhat is the weather in Oslo?<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"celsius\\": 4}"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
MISTRAL_TOOLS = (
    '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_weather", "description": "Get the weather '
    'of a city.", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The '
    'city\'s name."}}, "required": ["city"]}}}][/AVAILABLE_TOOLS][INST] What is the weather in Oslo?[/INST]'
    '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "call00001"}]</s>'
    '[TOOL_RESULTS] {"content": {"celsius": 4}, "call_id": "call00001"}[/TOOL_RESULTS]'
)


@pytest.fixture(scope="module")
def bare() -> PreTrainedTokenizerFast:
    """A tokenizer with BOS and EOS tokens and without a template."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizer(bare: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer(bare)


def with_templates(bare: PreTrainedTokenizerFast, templates: Any, **options: Any) -> Tokenizer:
    copy = PreTrainedTokenizerFast(
        tokenizer_object=bare.backend_tokenizer, bos_token="<s>", eos_token="</s>", chat_template=templates
    )
    return Tokenizer(copy, **options)


@pytest.mark.parametrize("name", bundled_templates())
def test_published_format(tokenizer: Tokenizer, name: str):
    assert tokenizer.render_chat(CHAT, chat_template=name) == EXPECTED[name]


@pytest.mark.parametrize("name", bundled_templates())
def test_without_system_prompt(tokenizer: Tokenizer, name: str):
    text = tokenizer.render_chat(CHAT[1:2], chat_template=name, add_generation_prompt=False)
    assert text.startswith(DEFAULT_SYSTEM.get(name, ""))
    assert text.count("Hello") == 1
    assert "You are a helpful assistant" not in text
    again = tokenizer.render_chat(CHAT[1:2], chat_template=name)
    assert again.startswith(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hermes", HERMES_TOOLS), ("llama3.1", LLAMA_TOOLS), ("mistral-tools", MISTRAL_TOOLS)],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_published_format_of_tools(tokenizer: Tokenizer, name: str, expected: str, as_text: bool):
    """Arguments come as an object, which templates were written for, or as OpenAI's JSON text."""
    call = {**CALL, "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}} if as_text else CALL
    chat = [TOOL_CHAT[0], {**TOOL_CHAT[1], "tool_calls": [call]}, TOOL_CHAT[2]]
    assert tokenizer.render_chat(chat, tools=[WEATHER], chat_template=name) == expected


def test_llama_tools_in_the_system_message(tokenizer: Tokenizer):
    text = tokenizer.render_chat(
        CHAT[:2],
        tools=[WEATHER],
        chat_template="llama3.1",
        tools_in_user_message=False,
        date_string="1 May 2025",
    )
    system, user, _ = text.split("<|eot_id|>")
    assert "Today Date: 1 May 2025\n\nYou have access to the following functions." in system
    assert system.endswith("}\n\nYou are a helpful assistant")
    assert user == "<|start_header_id|>user<|end_header_id|>\n\nHello"


def test_several_calls_and_results(tokenizer: Tokenizer):
    second = {**CALL, "id": "chatcmpl-tool-0123456789"}
    chat = [
        TOOL_CHAT[0],
        {"role": "assistant", "content": None, "tool_calls": [CALL, second]},
        TOOL_CHAT[2],
        {"role": "tool", "tool_call_id": "chatcmpl-tool-0123456789", "content": "cold"},
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": "Thanks"},
    ]
    mistral = tokenizer.render_chat(chat, tools=[WEATHER], chat_template="mistral-tools")
    assert (
        '"id": "call00001"}, {"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "123456789"}]</s>'
        in mistral
    )
    assert (
        '[TOOL_RESULTS] {"content": "cold", "call_id": "123456789"}[/TOOL_RESULTS] Cold.</s>[AVAILABLE_TOOLS]'
        in mistral
    )
    hermes = tokenizer.render_chat(chat, tools=[WEATHER], chat_template="hermes")
    assert hermes.count('<tool_call>\n{"name": "get_weather"') == 2
    assert (
        '<|im_start|>tool\n<tool_response>\n{"celsius": 4}\n</tool_response>\n<tool_response>\ncold\n</tool_response>\n'
        "<|im_end|><|im_start|>assistant\nCold.<|im_end|>\n" in hermes
    )
    with pytest.raises(InvalidRequestError, match="one tool call at a time: message 2 holds 2"):
        tokenizer.render_chat(chat, tools=[WEATHER], chat_template="llama3.1")


def test_parallel_tools_bring_their_system_prompt(tokenizer: Tokenizer):
    text = tokenizer.render_chat(CHAT, tools=[WEATHER], chat_template="mistral-tools-parallel")
    assert (
        "[INST] You are a helpful assistant that can call tools. If you call one or more tools, format"
        in text
    )
    assert text.endswith("interpret for the user.\n\nYou are a helpful assistant\n\nWho are you[/INST]")


def test_mistral_refuses_ids_that_it_cannot_write(tokenizer: Tokenizer):
    chat = [TOOL_CHAT[0], {**TOOL_CHAT[1], "tool_calls": [{**CALL, "id": "short"}]}]
    with pytest.raises(InvalidRequestError, match="Message 2 needs the id of its tool call, of 9 characters"):
        tokenizer.render_chat(chat, chat_template="mistral-tools")


@pytest.mark.parametrize(("spec", "expected"), [
    ({"type": "array", "items": {"type": "integer"}}, "list[int]"),
    ({"type": "array"}, "list[Any]"),
    ({"type": "object", "additionalProperties": {"type": "number"}}, "dict[str, float]"),
    ({"type": "object"}, "dict"),
    ({"type": ["string", "boolean"]}, "Union[str,bool]"),
    ({"enum": [1, 2]}, "Any"),
])  # fmt: skip
def test_hermes_writes_python_types(tokenizer: Tokenizer, spec: dict[str, Any], expected: str):
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": spec}}}
    text = tokenizer.render_chat(CHAT[1:2], tools=[tool], chat_template="hermes")
    assert f'"description": "f(x: {expected}) - ' in text


@pytest.mark.parametrize("name", ALTERNATING)
@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([CHAT[0], CHAT[2]], "message 2 is of the role assistant"),
        ([CHAT[1], CHAT[1]], "message 2 is of the role user"),
        ([CHAT[1], CHAT[0]], "message 2 is of the role system"),
    ],
)
def test_roles_must_alternate(tokenizer: Tokenizer, name: str, chat: list[dict[str, Any]], message: str):
    with pytest.raises(
        InvalidRequestError, match=f"Roles must alternate user/assistant.*{message}"
    ) as caught:
        tokenizer.render_chat(chat, chat_template=name)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("name", SOME_ROLES)
def test_unknown_roles_are_refused(tokenizer: Tokenizer, name: str):
    with pytest.raises(
        InvalidRequestError, match="roles system, user and assistant: message 2 is of the role tool"
    ):
        tokenizer.render_chat([CHAT[1], {"role": "tool", "content": "x"}], chat_template=name)


@pytest.mark.parametrize("name", bundled_templates())
def test_final_message_continues(tokenizer: Tokenizer, name: str):
    text = tokenizer.render_chat(
        CHAT[:3], chat_template=name, add_generation_prompt=False, continue_final_message=True
    )
    assert text.endswith("Hi there")


@pytest.mark.parametrize("name", bundled_templates())
def test_parts_read_as_their_text(tokenizer: Tokenizer, name: str):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    expected = tokenizer.render_chat([{"role": "user", "content": "one\ntwo"}], chat_template=name)
    assert tokenizer.render_chat([{"role": "user", "content": parts}], chat_template=name) == expected
    with pytest.raises(InvalidRequestError, match="reads text alone.*'image'"):
        tokenizer.render_chat([{"role": "user", "content": [{"type": "image"}]}], chat_template=name)


# As SmolVLM's own reads contents; what comes as a string it loses letter by letter.
PARTS_ONLY = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}/{% endfor %}"
)
EITHER = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}[{{ part.type }}{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)


def test_templates_that_read_parts_get_parts(tokenizer: Tokenizer):
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    render = tokenizer.render_chat
    assert render([CHAT[0], image], chat_template=PARTS_ONLY) == (
        "system:You are a helpful assistant/user:<image>What is this?/"
    )
    text = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert render([text], chat_template=EITHER) == "a\nb"
    assert render([CHAT[1], image], chat_template=EITHER) == "Hello[image][textWhat is this?]"


def test_the_form_of_contents_can_be_told(tokenizer: Tokenizer):
    text = [{"role": "user", "content": "a"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert tokenizer.render_chat(text, "openai", chat_template=EITHER) == "[texta]"
    assert tokenizer.render_chat(parts, "openai", chat_template=EITHER) == "[texta][textb]"
    assert tokenizer.render_chat(parts, "string", chat_template=EITHER) == "a\nb"
    assert tokenizer.render_chat(text, chat_template="{{ content_format }}", content_format="x") == "x"


def test_without_a_template_the_error_says_what_to_do(tokenizer: Tokenizer):
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.render_chat(CHAT)
    assert "`--chat-template`" in str(caught.value)
    assert "llama2, llama3" in str(caught.value)
    assert caught.value.param == "messages"


def test_named_templates_of_the_model(bare: PreTrainedTokenizerFast):
    both = {"default": "plain", "tool_use": "{{ tools | length }} tools", "rag": "documents"}
    tokenizer = with_templates(bare, both)
    assert tokenizer.chat_template == "plain"
    assert tokenizer.render_chat(CHAT) == "plain"
    assert tokenizer.render_chat(CHAT, tools=[WEATHER]) == "1 tools"
    assert tokenizer.render_chat(CHAT, chat_template="rag") == "documents"
    assert tokenizer.render_chat(CHAT, tools=[WEATHER], chat_template="rag") == "documents"
    assert with_templates(bare, both, chat_template="own").render_chat(CHAT, tools=[WEATHER]) == "own"
    with pytest.raises(
        InvalidRequestError, match="'none' is neither.*: default, tool_use, rag, alpaca"
    ) as caught:
        tokenizer.render_chat(CHAT, chat_template="none")
    assert caught.value.param == "chat_template"
    with pytest.raises(
        InvalidRequestError, match="several chat templates and none named `default`.* one of tool_use"
    ):
        with_templates(bare, {"tool_use": "x"}).render_chat(CHAT)


def test_chat_template_from_config(bare: PreTrainedTokenizerFast, tmp_path: Path):
    saved = tmp_path / "model"
    with_templates(bare, {"default": "plain", "tool_use": "use"})._tokenizer.save_pretrained(saved)

    def load(template: str | None) -> Tokenizer:
        return load_tokenizer(EngineConfig(chat_template=template), ModelSource(str(saved)))

    assert load(None).render_chat(CHAT) == "plain"
    assert load("tool_use").render_chat(CHAT) == "use"
    assert load("llama2").render_chat(CHAT) == EXPECTED["llama2"]
    file = tmp_path / "file.jinja"
    file.write_text("from a file")
    assert load(str(file)).render_chat(CHAT) == "from a file"
    assert load("{{ 'inline' }}").render_chat(CHAT, tools=[WEATHER]) == "inline"
    with pytest.raises(ModelLoadError, match="'llama9' is neither.*default, tool_use, alpaca, chatml"):
        load("llama9")


def test_the_template_of_a_processor(bare: PreTrainedTokenizerFast, tmp_path: Path):
    bare.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of the processor"}')
    assert load_tokenizer(EngineConfig(), ModelSource(str(tmp_path))).render_chat(CHAT) == "of the processor"


def test_requests_read_no_files(tokenizer: Tokenizer, tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text("secret")
    with pytest.raises(InvalidRequestError, match="is neither a Jinja template nor the name of one"):
        tokenizer.render_chat(CHAT, chat_template=str(file))
    assert read_chat_template(str(file)) == "secret"


def test_templates_run_in_a_sandbox(tokenizer: Tokenizer):
    for escape in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% include 'alpaca.jinja' %}"):
        with pytest.raises(InvalidRequestError, match="cannot render"):
            tokenizer.render_chat(CHAT, chat_template=escape)


@pytest.mark.slow
def test_litellm_renders_phind_alike(tokenizer: Tokenizer):
    factory = pytest.importorskip("litellm.litellm_core_utils.prompt_templates.factory")
    expected = "<s>" + factory.phind_codellama_pt(CHAT) + "### Assistant\n"
    assert tokenizer.render_chat(CHAT, chat_template="phind-codellama") == expected


def test_the_documentation_lists_the_templates():
    rows = [line.split("`")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert sorted(rows) == bundled_templates()
    assert all(read_bundled(name) for name in bundled_templates())
