"""Fields of requests: every published one is known, and what nobody knows is refused."""

from __future__ import annotations

from typing import Any

import anthropic.types as claude
import anthropic.types.beta as claude_beta
import httpx
import openai.types as openai_types
import openai.types.chat as chat_types
import openai.types.responses as response_types
import pytest
from anthropic.types.beta.message_create_params import MessageCreateParamsStreaming as BetaMessageParams
from openai.types.shared_params import FunctionDefinition as OpenAIFunction
from openai.types.shared_params import Reasoning as OpenAIReasoning

from myllm_engine.server.anthropic import blocks
from myllm_engine.server.anthropic import request as messages
from myllm_engine.server.fields import StrictModel
from myllm_engine.server.openai import adapters, batch, embeddings, protocol, tokenization, vision
from myllm_engine.server.openai import messages as chats
from myllm_engine.server.openai.chat_request import ChatRequest
from myllm_engine.server.openai.completion_request import CompletionRequest
from myllm_engine.server.openai.constraints import StructuredOutputs
from myllm_engine.server.openai.responses import items
from myllm_engine.server.openai.responses import request as responses
from myllm_engine.server.openai.responses import tools as response_tools
from myllm_engine.server.openai.tool_request import FunctionDefinition
from myllm_engine.server.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "hi", "mood": "good"}], "wholly_unknown": 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi", "wholly_unknown": 1}),
        ("/v1/chat/completions", CHAT),
        ("/invocations", CHAT),
        ("/generate", {"inputs": "hi", "parameters": {"wholly_unknown": 1}}),
    ],
)
def test_unknown_fields_are_passed_over_where_that_is_wanted(scripted, said, path, body):
    script = [said(("ok", b"ok", "stop"))]
    with scripted(script, ServerSettings(allow_unknown_fields=True)) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code == 200, response.text
    with scripted(script) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code in (400, 422)
        assert "Unknown field" in response.text


def test_fields_that_are_known_and_not_offered_are_refused_in_any_case(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(allow_unknown_fields=True)) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "hi", "suffix": "ho"})
        assert response.status_code == 400
        assert "`suffix` is not taken" in response.json()["error"]["message"]


def published(*types: Any) -> set[str]:
    """Return the fields of an SDK's types."""
    return {name for kind in types for name in kind.__annotations__}


# Of vLLM's: vllm/entrypoints in version 0.32, and its documentation of 0.6.3 for what it has no more.
VLLM = {
    ChatRequest: """messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
        presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
        reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k min_p
        repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
        skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs
        logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt continue_final_message
        add_special_tokens documents chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs
        structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids
        routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload return_mm_kwargs cache_salt
        kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval best_of early_stopping
        guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern
        logits_processors""",
    CompletionRequest: """model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
        stream stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty watermarking
        length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
        spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs
        logprob_token_ids bad_words prompt_embeds add_special_tokens response_format structured_outputs priority
        request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start
        return_token_offsets mm_payload return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs
        repetition_detection thinking_token_budget stream_interval best_of early_stopping guided_json guided_regex
        guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern logits_processors""",
    batch.BatchRequest: """messages model frequency_penalty logit_bias logprobs top_logprobs logprob_token_ids max_tokens
        max_completion_tokens n presence_penalty response_format seed stop temperature top_p user tool_choice
        include_reasoning best_of use_beam_search top_k min_p repetition_penalty watermarking length_penalty
        early_stopping structured_outputs request_id add_generation_prompt continue_final_message chat_template
        chat_template_kwargs media_io_kwargs mm_processor_kwargs priority cache_salt include_stop_str_in_output
        guided_decoding_backend echo return_tokens_as_token_ids return_token_ids""",
    responses.ResponseRequest: """background include input instructions max_output_tokens max_tool_calls metadata model
        logit_bias parallel_tool_calls previous_response_id prompt reasoning include_reasoning service_tier store stream
        temperature text tool_choice tools top_logprobs top_p top_k min_p truncation user skip_special_tokens
        include_stop_str_in_output presence_penalty frequency_penalty prompt_cache_key watermarking request_id
        session_id media_io_kwargs mm_processor_kwargs priority mm_payload return_mm_kwargs cache_salt
        enable_response_messages previous_input_messages structured_outputs repetition_penalty seed stop stop_token_ids
        ignore_eos vllm_xargs kv_transfer_params ec_transfer_params chat_template_kwargs""",
    messages.MessagesRequest: """model messages max_tokens metadata output_config thinking stop_sequences stream system
        temperature tool_choice tools top_k top_p mm_payload return_mm_kwargs cache_salt watermarking kv_transfer_params
        ec_transfer_params vllm_xargs chat_template_kwargs""",
    messages.MessagesPrompt: "model messages output_config system thinking tool_choice tools chat_template_kwargs",
    embeddings.EmbeddingRequest: """model user truncate_prompt_tokens padding truncation_side request_id priority
        mm_processor_kwargs cache_salt input add_special_tokens messages add_generation_prompt continue_final_message
        chat_template chat_template_kwargs media_io_kwargs encoding_format embed_dtype endianness dimensions
        use_activation normalize""",
    tokenization.TokenizeRequest: """model prompt messages add_special_tokens return_token_strs add_generation_prompt
        continue_final_message chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs tools""",
    tokenization.DetokenizeRequest: "model tokens",
    adapters.LoadAdapterRequest: "lora_name lora_path load_inplace",
    adapters.UnloadAdapterRequest: "lora_name lora_int_id",
    protocol.StreamOptions: "include_usage continuous_usage_stats",
    protocol.RepetitionDetection: "max_pattern_size min_pattern_size min_count",
    StructuredOutputs: """json regex choice grammar json_object disable_any_whitespace disable_additional_properties
        whitespace_pattern structural_tag""",
    FunctionDefinition: "name description parameters strict defer_loading",
    chats.Message: "role content name tool_call_id tool_calls reasoning reasoning_content tools task",
    vision.ImagePart: "type image_url uuid",
}  # fmt: skip
OPENAI = {
    ChatRequest: [chat_types.completion_create_params.CompletionCreateParamsStreaming],
    CompletionRequest: [openai_types.completion_create_params.CompletionCreateParamsStreaming],
    embeddings.EmbeddingRequest: [openai_types.EmbeddingCreateParams],
    responses.ResponseRequest: [response_types.response_create_params.ResponseCreateParamsStreaming],
    responses.ResponsePrompt: [response_types.InputTokenCountParams],
    responses.ReasoningConfig: [OpenAIReasoning],
    responses.TextConfig: [response_types.ResponseTextConfigParam],
    responses.EventOptions: [response_types.response_create_params.StreamOptions],
    response_tools.FunctionTool: [response_types.FunctionToolParam],
    items.Message: [response_types.EasyInputMessageParam, response_types.ResponseOutputMessageParam],
    items.Text: [response_types.ResponseInputTextParam, response_types.ResponseOutputTextParam],
    items.Image: [response_types.ResponseInputImageParam],
    items.FunctionCall: [response_types.ResponseFunctionToolCallParam],
    items.FunctionCallOutput: [response_types.response_input_item_param.FunctionCallOutput],
    items.Reasoning: [response_types.ResponseReasoningItemParam],
    protocol.StreamOptions: [chat_types.ChatCompletionStreamOptionsParam],
    FunctionDefinition: [OpenAIFunction],
    chats.Message: [
        chat_types.ChatCompletionAssistantMessageParam,
        chat_types.ChatCompletionDeveloperMessageParam,
        chat_types.ChatCompletionFunctionMessageParam,
        chat_types.ChatCompletionSystemMessageParam,
        chat_types.ChatCompletionToolMessageParam,
        chat_types.ChatCompletionUserMessageParam,
        chat_types.ChatCompletionMessage,
    ],
    chats.MessageToolCall: [chat_types.ChatCompletionMessageFunctionToolCallParam],
    chats.TextPart: [chat_types.ChatCompletionContentPartTextParam],
    vision.ImagePart: [chat_types.ChatCompletionContentPartImageParam],
}
ANTHROPIC = {
    # `betas` is a header's, and `output_format` a class of Python that the SDK turns into `output_config`.
    messages.MessagesRequest: [claude.message_create_params.MessageCreateParamsStreaming, BetaMessageParams],
    messages.MessagesPrompt: [claude.MessageCountTokensParams, claude_beta.MessageCountTokensParams],
    messages.OutputConfig: [claude_beta.BetaOutputConfigParam],
    messages.ThinkingConfig: [claude.ThinkingConfigEnabledParam, claude.ThinkingConfigAdaptiveParam],
    messages.Tool: [claude_beta.BetaToolParam],
    blocks.Text: [claude.TextBlockParam],
    blocks.Image: [claude.ImageBlockParam],
    blocks.ToolUse: [claude.ToolUseBlockParam],
    blocks.ToolResult: [claude.ToolResultBlockParam],
    blocks.Thinking: [claude.ThinkingBlockParam],
    blocks.RedactedThinking: [claude.RedactedThinkingBlockParam],
}


def unknown(model: type[StrictModel], names: set[str]) -> list[str]:
    """Return the names that a model would call unknown."""
    return sorted(names - model._own_names() - {*model.unsupported, *model.no_effect})


@pytest.mark.parametrize("model", VLLM, ids=lambda model: model.__name__)
def test_vllms_fields_are_known(model):
    assert unknown(model, set(VLLM[model].split())) == []


@pytest.mark.parametrize("model", OPENAI, ids=lambda model: model.__name__)
def test_openais_fields_are_known(model):
    assert unknown(model, published(*OPENAI[model])) == []


@pytest.mark.parametrize("model", ANTHROPIC, ids=lambda model: model.__name__)
def test_anthropics_fields_are_known(model):
    assert unknown(model, published(*ANTHROPIC[model]) - {"betas", "output_format"}) == []
