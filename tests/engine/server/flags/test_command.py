"""What the options of `myllm serve` become, and which source of one wins."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from myllm_engine.config import EngineConfig, SpeculativeConfig
from myllm_engine.server.flags.command import Flags
from myllm_engine.server.flags.option import options
from myllm_engine.server.http_settings import HttpSettings
from myllm_engine.server.listen import Listen, Tls
from myllm_engine.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ([], {}),
        (["-q", "int8"], {"quantization": "int8"}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--enable-prefix-caching", "--block-size", "32"], {"page_size": 32}),
        (["--page-size", "8"], {"page_size": 8}),
        (["-tp", "2"], {"tensor_parallel_size": 2}),
        (["--tensor-parallel-size", "4"], {"tensor_parallel_size": 4}),
        (["--gpu-memory-utilization", "0.5"], {"gpu_memory_utilization": 0.5}),
        (["--kv-cache-memory-bytes", "1GiB"], {"kv_cache_memory": 2**30}),
        (
            [
                "--speculative-config",
                '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 6}',
            ],
            {"speculative": SpeculativeConfig(num_tokens=3, max_ngram=6)},
        ),
        (["--speculate", "3"], {"speculative": SpeculativeConfig(num_tokens=3)}),
        (["--enable-lora"], {"max_loras": 1}),
        (
            ["--lora-modules", "sql=/loras/sql", "--lora-modules", '{"name": "fr", "path": "org/fr"}'],
            {"lora_adapters": {"sql": "/loras/sql", "fr": "org/fr"}, "max_loras": 2},
        ),
        (["--lora-modules", "a=b", "--max-loras", "5"], {"lora_adapters": {"a": "b"}, "max_loras": 5}),
        (
            ["--lora-adapters", "org/a, b=org/c"],
            {"lora_adapters": {"org/a": "org/a", "b": "org/c"}, "max_loras": 2},
        ),
        (["--allow-runtime-lora"], {"max_loras": 1}),
        (
            ["--model-id", "m", "--num-shard", "2", "--max-total-tokens", "99", "--max-batch-size", "4"],
            {"model": "m", "tensor_parallel_size": 2, "max_model_len": 99, "max_num_seqs": 4},
        ),
    ],
)
def test_options_reach_the_engine(configured, arguments, fields):
    assert configured(*arguments).engine == EngineConfig(**fields)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--served-model-name", "a,b", "--served-model-name", "c"], {"served_model_names": ("a", "b", "c")}),
        (["--api-key", "x", "--api-key", "y,z"], {"api_keys": ("x", "y,z")}),
        (["--generation-config", "vllm"], {"generation_config": {}}),
        (
            ["--override-generation-config", '{"temperature": 0.5}'],
            {"override_generation_config": {"temperature": 0.5}},
        ),
        (
            ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
            {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"},
        ),
        (
            ["--reasoning-parser", "qwen3", "--response-role", "bot"],
            {"reasoning_parser": "qwen3", "response_role": "bot"},
        ),
        (
            ["--trust-request-chat-template", "--default-chat-template-kwargs", '{"a": 1}'],
            {"trust_request_chat_template": True, "default_chat_template_kwargs": {"a": 1}},
        ),
        (["--chat-template-content-format", "openai"], {"chat_template_content_format": "openai"}),
        (
            ["--allow-image-urls", "--max-image-size", "1MiB"],
            {"allow_image_urls": True, "max_image_size": 2**20},
        ),
        (
            [
                "--allowed-media-domains",
                "a.example,b.example",
                "--max-images",
                "2",
                "--max-image-pixels",
                "9",
            ],
            {
                "allow_image_urls": True,
                "allowed_media_domains": ("a.example", "b.example"),
                "max_images": 2,
                "max_image_pixels": 9,
            },
        ),
        (["--no-enable-ui"], {"enable_ui": False}),
        (["--pooling", "mean", "--allow-unknown-fields"], {"pooling": "mean", "allow_unknown_fields": True}),
        (
            [
                "--enable-prompt-tokens-details",
                "--enable-force-include-usage",
                "--enable-per-request-metrics",
            ],
            {
                "enable_prompt_tokens_details": True,
                "enable_force_include_usage": True,
                "enable_per_request_metrics": True,
            },
        ),
        (
            ["--return-tokens-as-token-ids", "--enable-tokenizer-info-endpoint", "--allow-runtime-lora"],
            {
                "return_tokens_as_token_ids": True,
                "enable_tokenizer_info_endpoint": True,
                "allow_runtime_lora": True,
            },
        ),
        (
            ["--max-input-length", "7", "--max-client-batch-size", "2", "--disable-grammar-support"],
            {"max_input_tokens": 7, "max_client_batch_size": 2, "disable_grammar_support": True},
        ),
        (
            ["--max-concurrent-requests", "9", "--payload-limit", "2000000", "--max-stored-responses", "0"],
            {"max_concurrent_requests": 9, "max_body_size": 2_000_000, "max_stored_responses": 0},
        ),
        (
            [
                "--max-logprobs",
                "1",
                "--max-best-of",
                "3",
                "--max-stop-sequences",
                "0",
                "--max-top-n-tokens",
                "2",
            ],
            {"max_logprobs": 1, "max_best_of": 3, "max_stop_sequences": 0, "max_top_n_tokens": 2},
        ),
    ],
)
def test_options_reach_the_application(configured, arguments, fields):
    assert configured(*arguments).settings == ServerSettings(**fields)


def test_a_plugin_is_read_at_once(configured, run, tmp_path):
    (tmp_path / "plugin.py").write_text("")
    plugin = str(tmp_path / "plugin.py")
    assert configured("--tool-parser-plugin", plugin).settings.tool_parser_plugin == plugin
    (tmp_path / "plugin.py").unlink()
    assert run("--tool-parser-plugin", plugin).exit_code == 2


# Fields whose options have other names.
OTHERWISE = {
    "served_model_names": "served_model_name",
    "api_keys": "api_key",
    "enable_docs": "disable_fastapi_docs",
    "max_queue": "max_num_queued_reqs",
    "speculative": "speculative_config",
    "cuda_graphs": "enforce_eager",
}
# Another dataclass, and what the engine finds out by itself.
NO_OPTION = {"http", "async_scheduling"}


@pytest.mark.parametrize("configuration", [EngineConfig, ServerSettings, HttpSettings])
def test_every_field_has_an_option(configuration):
    known = {name for group in Flags.groups() for name, *_ in options(group)}
    names = {field.name for field in fields(configuration)} - NO_OPTION
    assert {OTHERWISE.get(name, name) for name in names} <= known


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--root-path", "/llm", "--disable-fastapi-docs"], {"root_path": "/llm", "enable_docs": False}),
        (
            ["--allowed-origins", '["*"]', "--allow-credentials"],
            {"allowed_origins": ("*",), "allow_credentials": True},
        ),
        (
            [
                "--cors-allow-origin",
                "https://a",
                "--cors-allow-origin",
                "https://b",
                "--allowed-methods",
                "GET,POST",
            ],
            {"allowed_origins": ("https://a", "https://b"), "allowed_methods": ("GET", "POST")},
        ),
        (["--allowed-headers", '["X-A"]'], {"allowed_headers": ("X-A",)}),
        (["--enable-request-id-headers"], {"enable_request_id_headers": True}),
        (["--enable-log-requests", "--max-log-len", "9"], {"enable_log_requests": True, "max_log_len": 9}),
        (
            ["--sse-keep-alive-interval", "3", "--request-timeout", "60"],
            {"sse_keep_alive_interval": 3.0, "request_timeout": 60.0},
        ),
        (
            ["--middleware", "starlette.middleware.gzip.GZipMiddleware"],
            {"middleware": ("starlette.middleware.gzip.GZipMiddleware",)},
        ),
        (["--otlp-endpoint", "http://c/v1/traces"], {"otlp_traces_endpoint": "http://c/v1/traces"}),
    ],
)
def test_options_reach_what_lies_around_the_routes(configured, arguments, fields):
    assert configured(*arguments).settings.http == HttpSettings(**fields)


@pytest.mark.parametrize(
    ("arguments", "listen"),
    [
        ([], Listen()),
        (["--hostname", "0.0.0.0", "-p", "1"], Listen(host="0.0.0.0", port=1)),
        (["--uds", "/s"], Listen(uds="/s")),
        (
            ["--ssl-keyfile", "k", "--ssl-certfile", "c", "--ssl-ca-certs", "a", "--ssl-cert-reqs", "2"],
            Listen(tls=Tls("k", "c", "a", 2)),
        ),
    ],
)
def test_options_say_where_to_listen(configured, arguments, listen):
    assert configured(*arguments).listen == listen


def test_options_reach_the_http_library(configured):
    given = ("--log-level", "info", "--disable-uvicorn-access-log", "--shutdown-timeout", "3")
    assert configured(*given).process == {"log_level": "info", "access_log": False, "shutdown_timeout": 3.0}
    assert configured("--uvicorn-log-level", "error").process["log_level"] == "error"
    assert configured("--graceful-termination-timeout", "9").process["shutdown_timeout"] == 9.0


def test_the_command_line_wins_over_variables_and_these_over_the_file(configured, tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text("port: 1\nmax-num-seqs: 2\nserved_model_name: [file]\nseed: 4\n")
    made = configured(
        "--config",
        str(file),
        "--max-num-seqs",
        "20",
        PORT="10",
        MYLLM_SERVED_MODEL_NAME="one two",
        MYLLM_MAX_NUM_SEQS="3",
    )
    assert made.listen.port == 10
    assert made.engine.max_num_seqs == 20
    assert made.settings.served_model_names == ("one", "two")
    assert made.engine.seed == 4
    assert made.engine.page_size == EngineConfig().page_size
    # What others may have set for another purpose is told.
    assert "Options are taken from the environment: PORT\n" in made.said


def test_our_variables_win_over_those_of_others(configured):
    assert configured(MYLLM_PORT="2", PORT="1").listen.port == 2
    assert configured(MYLLM_API_KEY="a b", API_KEY="c").settings.api_keys == ("a", "b")
    assert configured(VLLM_API_KEY="v", API_KEY="c").settings.api_keys == ("v",)


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"MODEL_ID": "m"}, "model", "m"),
        ({"MYLLM_MODEL": "m"}, "model", "m"),
        ({"MAX_TOTAL_TOKENS": "99"}, "max_model_len", 99),
        ({"TRUST_REMOTE_CODE": "true"}, "trust_remote_code", True),
        ({"MYLLM_ENABLE_PREFIX_CACHING": "0"}, "enable_prefix_caching", False),
        ({"LORA_ADAPTERS": "a=b,c"}, "lora_adapters", {"a": "b", "c": "c"}),
    ],
)
def test_variables(configured, variables, field, value):
    assert getattr(configured(**variables).engine, field) == value


def test_hostname_is_what_every_container_has_and_no_option(configured):
    assert configured(HOSTNAME="db1f6a").listen == Listen()


def test_the_model_of_the_command_line_wins(configured, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: of-the-file")
    assert configured("--config", str(file)).engine.model == "of-the-file"
    assert configured("mine", "--config", str(file)).engine.model == "mine"
    assert configured("--model", "mine", "--config", str(file)).engine.model == "mine"
    assert configured("mine", MODEL_ID="other").engine.model == "mine"


def test_options_may_be_undone(configured, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("enable-lora: true")
    assert configured("--config", str(file)).engine.max_loras == 1
    assert configured("--config", str(file), "--no-enable-lora").engine.max_loras == 0


def test_a_generation_config_of_a_folder(configured, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 2}')
    made = configured("--generation-config", str(tmp_path))
    assert made.settings.generation_config == {"temperature": 0.6, "eos_token_id": 2}


@pytest.mark.parametrize(
    "template",
    ["{{ messages }}", [{"name": "default", "template": "{{ messages }}"}, {"name": "rag", "template": "r"}]],
)
def test_the_chat_template_of_a_tokenizer_config(configured, run, tmp_path, template):
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": template}))
    assert configured("--tokenizer-config-path", str(file)).engine.chat_template == "{{ messages }}"
    both = run("--tokenizer-config-path", str(file), "--chat-template", "x")
    assert (both.exit_code, "give one" in both.output) == (2, True)
    for content, says in (
        ("{}", "has no `chat_template`"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ):
        file.write_text(content)
        failed = run("--tokenizer-config-path", str(file))
        assert failed.exit_code == 2
        assert says in failed.output


# One command line each, as their documents and deployments have them.
VLLM = """
    org/name --host 0.0.0.0 --port 8000 --served-model-name a b --api-key k --max-model-len 4096 --max-num-seqs 64
    --max-num-batched-tokens 2048 --gpu-memory-utilization 0.9 --dtype auto --seed 0 --tokenizer t --revision main
    --trust-remote-code --quantization auto --load-format auto --chat-template x --chat-template-content-format auto
    --response-role assistant --enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3
    --default-chat-template-kwargs {} --max-logprobs 20 --generation-config auto --override-generation-config {}
    --enable-lora --lora-modules a=x b=y --max-lora-rank 16 --max-loras 2 --enable-prefix-caching --enable-chunked-prefill
    --return-tokens-as-token-ids --enable-prompt-tokens-details --enable-force-include-usage --enable-request-id-headers
    --root-path /x --allowed-origins ["*"] --allowed-methods ["*"] --allowed-headers ["*"] --allow-credentials
    --uvicorn-log-level info --disable-uvicorn-access-log --enable-log-requests --disable-log-requests --disable-log-stats
    --disable-fastapi-docs --max-log-len 9 --sse-keep-alive-interval 15 --max-num-queued-reqs 9 --shutdown-timeout 3
    --tensor-parallel-size 1 --distributed-executor-backend mp --enforce-eager --block-size 16 --swap-space 4
    --guided-decoding-backend auto --disable-frontend-multiprocessing --use-v2-block-manager --num-scheduler-steps 8
    --preemption-mode swap --scheduling-policy fcfs --async-scheduling --task generate --runner auto --enable-reasoning
    --enable-server-load-tracking --enable-tokenizer-info-endpoint --allowed-media-domains a.example
    --max-seq-len-to-capture 8192 --kv-cache-memory-bytes 1GiB
"""
TGI = """
    --model-id org/name --revision main --sharded false --num-shard 1 --quantize none --speculate 2 --dtype float16
    --trust-remote-code --max-concurrent-requests 128 --max-best-of 2 --max-stop-sequences 4 --max-top-n-tokens 5
    --max-input-tokens 1024 --max-total-tokens 2048 --waiting-served-ratio 0.3 --max-batch-prefill-tokens 4096
    --max-batch-total-tokens 8192 --max-waiting-tokens 20 --max-batch-size 8 --hostname 127.0.0.1 --port 3000
    --json-output --otlp-endpoint http://c --cors-allow-origin https://a --api-key k --payload-limit 2000000
    --validation-workers 2 --max-client-batch-size 4 --lora-adapters a=b --usage-stats off --disable-grammar-support
    --cuda-memory-fraction 0.9 --graceful-termination-timeout 90 --enable-prefill-logprobs --disable-custom-kernels
"""


@pytest.mark.parametrize("line", [VLLM, TGI], ids=["vllm", "tgi"])
def test_command_lines_of_other_servers_are_understood_whole(configured, line):
    made = configured(*line.split())
    assert made.engine.model == "org/name"
    if line is VLLM:
        assert made.settings.served_model_names == ("a", "b")
        assert list(made.engine.lora_adapters) == ["a", "b"]


def test_commands_for_other_servers_work_and_are_told_what_does_nothing(configured):
    made = configured("--disable-log-requests", "--swap-space", "4", "--max-waiting-tokens", "20")
    assert made.engine == EngineConfig()
    assert made.settings == ServerSettings()
    for name in ("disable-log-requests", "swap-space", "max-waiting-tokens"):
        assert f"`--{name}` has no effect here: " in made.said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--root-path", "llm"], "`root_path` must begin with a slash"),
        (["--allowed-origins", "[1]"], "must hold strings only"),
        (["--middleware", "no.such"], "`--middleware` 'no.such' cannot be imported"),
        (["--middleware", "json.loads"], "is neither a class nor a coroutine function"),
        (["--override-generation-config", '{"temprature": 1}'], "did you mean `temperature`?"),
        (["--generation-config", "/no/such"], "`--generation-config` '/no/such' cannot be read"),
        (["--default-chat-template-kwargs", "{"], "`--default-chat-template-kwargs` is not JSON"),
        (["--enable-auto-tool-choice"], "needs a `tool_call_parser`"),
        (["--pooling", "max"], "`pooling` must be one of 'last', 'mean'"),
        (["--log-format", "xml"], "`--log-format` must be one of text, json"),
        (["--request-timeout", "0"], "`request_timeout` must be above 0 seconds"),
        (["--sse-keep-alive-interval", "-1"], "`sse_keep_alive_interval` must be 0"),
        (["--lora-modules", "a=b", "--lora-adapters", "a"], "names an adapter 'a' that there is already"),
        (["--max-loras", "1", "--lora-adapters", "a,b"], "has no room for 2"),
        (["--lora-adapters", "a,,b"], "must be [NAME=]PATH"),
        (["--speculate", "2", "--speculative-config", '{"num_speculative_tokens": 2}'], "say the same"),
    ],
)
def test_mistakes(run, arguments, says):
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_a_variable_parted_by_blanks_is_a_list_too(configured):
    origins = ["https://a", "https://b"]
    made = configured(CORS_ALLOW_ORIGIN=json.dumps(origins))
    assert made.settings.http.allowed_origins == tuple(origins)
