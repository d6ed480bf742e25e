"""Define the command `myllm serve`.

The module imports neither torch nor an HTTP library: `myllm serve --help` is quick, and the watcher of
`--exit-with-parent` runs before the slow imports begin.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

_MODEL = "Model"
_NETWORK = "Network"
_LIMITS = "Memory and limits"
_SPEED = "Speed"
_LORA = "LoRA adapters"
_PROCESS = "Process"

_API_KEY_VARIABLE = "MYLLM_API_KEY"
_DAY = 86_400  # seconds


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="What to serve: a folder in Hugging Face's format, a hub id, a *.gguf file, or smollm2, the "
            "model that comes as a package.",
            show_default="smollm2",
        ),
    ] = None,
    model_option: Annotated[
        str | None,
        typer.Option(
            "--model", "--model-id", metavar="MODEL", help="The same, as an option.", rich_help_panel=_MODEL
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name under which clients ask for the model. Repeat it for more names: the first one stands "
            "in answers. Default: the model as given.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of another tokenizer.", rich_help_panel=_MODEL),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=_MODEL)
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Jinja chat template that replaces the model's: a file, or the template itself.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Type of weights and activations: auto, bfloat16, float16 or float32. auto is bfloat16 "
            "where the device computes it natively.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    quantization: Annotated[
        str,
        typer.Option(
            "--quantization",
            "-q",
            help="Of the weights: auto (as the file has them, where a kernel takes them), none, int8 or int4 "
            "(quantised while the model is loaded).",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(help="auto (a GPU when there is one), cpu, cuda or cuda:N.", rich_help_panel=_MODEL),
    ] = "auto",
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run Python code that comes with the model.", rich_help_panel=_MODEL
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Seeds the requests that bring no seed.", rich_help_panel=_MODEL)
    ] = 0,
    enable_prefix_caching: Annotated[
        bool,
        typer.Option(
            help="Keep the keys and values of prompts for requests that begin alike.", rich_help_panel=_SPEED
        ),
    ] = True,
    speculative_config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Speculative decoding, which changes no answer: "
            """'{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}', or """
            """'{"model": "FOLDER", "num_speculative_tokens": 4}' for a draft model.""",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            "--tensor-parallel-size",
            "-tp",
            help="GPUs (on CPU: processes) that share each layer.",
            rich_help_panel=_SPEED,
        ),
    ] = 1,
    enforce_eager: Annotated[
        bool,
        typer.Option(
            "--enforce-eager",
            help="Capture no CUDA graphs: a start without them is faster.",
            rich_help_panel=_SPEED,
        ),
    ] = False,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Let torch.compile make the model's kernels: the start takes minutes, each step less.",
            rich_help_panel=_SPEED,
        ),
    ] = False,
    enable_lora: Annotated[
        bool,
        typer.Option(
            "--enable-lora",
            help="Make room for LoRA adapters; --lora-modules does so, too.",
            rich_help_panel=_LORA,
        ),
    ] = False,
    lora_modules: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Adapter to load, and the model name by which requests ask for it. Repeat it for more; also "
            """as '{"name": "NAME", "path": "PATH"}'.""",
            rich_help_panel=_LORA,
        ),
    ] = None,
    max_loras: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Adapters that may be loaded at once. Default: as many as --lora-modules names, or 1.",
            rich_help_panel=_LORA,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            "--hostname",
            help="Interface to listen on. The default is reached from this machine only; 0.0.0.0 opens the "
            "server to the network: use --api-key then.",
            rich_help_panel=_NETWORK,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free port.", rich_help_panel=_NETWORK),
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_API_KEY_VARIABLE,
            help="Key that clients must send as `Authorization: Bearer KEY`: ASCII, without blanks. "
            "Repeat it for more keys. In the variable keys are separated by blanks; there they do not show "
            "in the process list.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    fd: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Serve on this inherited socket (bound, not yet listening) in place of host and port.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            "--max-total-tokens",
            help="Limit on prompt and completion together, in tokens. Default: the model's own.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(help="Sequences that run at once; more wait.", rich_help_panel=_LIMITS)
    ] = 64,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of one step, over all sequences. Larger: prompts are read faster, and streams wait "
            "longer meanwhile. Default: 512 on CPU, 8192 on a GPU.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_num_queued_reqs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Sequences that may wait besides those that run; a request has one for each completion "
            "it asks for. What does not fit is answered with 503 (429 on TGI's routes). Default: no limit.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    page_size: Annotated[
        int,
        typer.Option(
            "--page-size",
            "--block-size",
            help="Tokens of a page of the KV cache; whole pages are shared by prompts that begin alike.",
            rich_help_panel=_LIMITS,
        ),
    ] = 16,
    kv_cache_memory: Annotated[
        str | None,
        typer.Option(
            "--kv-cache-memory",
            "--kv-cache-memory-bytes",
            metavar="SIZE",
            help="Memory for the KV cache, as in 512MiB or 4GiB. Default: taken from what is free.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(
            help="Share of the GPU's memory that weights, activations and KV cache may take together.",
            rich_help_panel=_LIMITS,
        ),
    ] = 0.9,
    max_logprobs: Annotated[
        int, typer.Option(min=0, help="Largest logprobs that a request may ask for.", rich_help_panel=_LIMITS)
    ] = 20,
    max_best_of: Annotated[
        int, typer.Option(min=1, help="Largest best_of on TGI's routes.", rich_help_panel=_LIMITS)
    ] = 2,
    max_stop_sequences: Annotated[
        int, typer.Option(min=0, help="Most stop strings on TGI's routes.", rich_help_panel=_LIMITS)
    ] = 4,
    max_top_n_tokens: Annotated[
        int, typer.Option(min=0, help="Largest top_n_tokens on TGI's routes.", rich_help_panel=_LIMITS)
    ] = 5,
    max_body_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Largest body of a request, as in 512KiB or 8MiB; a larger one is answered with 413.",
            rich_help_panel=_LIMITS,
        ),
    ] = "8MiB",
    max_stored_responses: Annotated[
        int,
        typer.Option(
            min=0,
            help="Responses of /v1/responses that are kept in memory for previous_response_id and GET; the "
            "oldest give way. 0: none.",
            rich_help_panel=_LIMITS,
        ),
    ] = 256,
    log_level: Annotated[
        str,
        typer.Option(
            help="debug, info, warning, error or critical. info has a line for every request; prompts and "
            "answers are never logged.",
            rich_help_panel=_PROCESS,
        ),
    ] = "warning",
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that running requests get to finish after Ctrl-C or SIGTERM. "
            "The exit code is then 0.",
            rich_help_panel=_PROCESS,
        ),
    ] = 5.0,
    exit_with_parent: Annotated[
        bool,
        typer.Option(
            "--exit-with-parent",
            help="Stop when stdin ends. For programs that start a server: hold the other end of its stdin, "
            "and the server goes with you, however you end.",
            rich_help_panel=_PROCESS,
        ),
    ] = False,
) -> None:
    """Serve a language model over HTTP, to clients of OpenAI's API, of vLLM and of TGI.

    The port is taken first and opened when the model is loaded. Stop the
    server with Ctrl-C or SIGTERM: running requests may finish, and the exit
    code is 0. A mistake in the options ends it with 2, anything else that
    keeps it from starting with 1; a signal while the model is being loaded
    ends it at once.
    """
    from . import run as runner
    from .lifetime import exit_with_parent as watch_parent
    from .logs import LEVELS, configure

    def mistake(message: str) -> runner.StartError:
        return runner.StartError(message, exit_code=2)

    try:
        if log_level not in LEVELS:
            raise mistake(f"`--log-level` must be one of {', '.join(LEVELS)}; got {log_level!r}")
        if not 0 <= shutdown_timeout <= _DAY:  # NaN fails, too
            raise mistake(
                f"`--shutdown-timeout` must be between 0 and {_DAY} seconds (a day); got {shutdown_timeout}"
            )
        if model is not None and model_option is not None and model != model_option:
            raise mistake(
                f"Two models are given, {model!r} and `--model` {model_option!r}; one server has one"
            )
        if api_key is None and _API_KEY_VARIABLE in os.environ:
            raise mistake(
                f"The variable {_API_KEY_VARIABLE} is set but holds no key: put one there, or unset it to "
                "serve without a key"
            )
        configure(log_level)
        if exit_with_parent:
            watch_parent(shutdown_timeout)
        runner.check_installed()
        from ..config import EngineConfig
        from .flags import parse_lora_modules, parse_size, parse_speculative
        from .settings import ServerSettings

        try:
            adapters = parse_lora_modules(lora_modules or ())
            if max_loras is not None and max_loras < len(adapters):
                raise mistake(f"`--max-loras` {max_loras} has no room for {len(adapters)} `--lora-modules`")
            config = EngineConfig(
                model=model or model_option or "smollm2",
                tokenizer=tokenizer,
                revision=revision,
                chat_template=chat_template,
                dtype=dtype,
                quantization=quantization,
                device=device,
                trust_remote_code=trust_remote_code,
                seed=seed,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_queue=max_num_queued_reqs,
                page_size=page_size,
                kv_cache_memory=None if kv_cache_memory is None else parse_size(kv_cache_memory),
                gpu_memory_utilization=gpu_memory_utilization,
                enable_prefix_caching=enable_prefix_caching,
                speculative=None if speculative_config is None else parse_speculative(speculative_config),
                tensor_parallel_size=tensor_parallel_size,
                cuda_graphs=not enforce_eager,
                compile=compile,
                lora_adapters=adapters,
                max_loras=max_loras or max(len(adapters), int(enable_lora)),
            )
            settings = ServerSettings(
                served_model_names=tuple(served_model_name or ()),
                api_keys=tuple(api_key or ()),
                max_logprobs=max_logprobs,
                max_best_of=max_best_of,
                max_stop_sequences=max_stop_sequences,
                max_top_n_tokens=max_top_n_tokens,
                max_body_size=parse_size(max_body_size),
                max_stored_responses=max_stored_responses,
            )
        except ValueError as error:
            raise mistake(str(error)) from error
        listen = runner.Listen(host=host, port=port, fd=fd)
        runner.run(config, settings, listen, log_level=log_level, shutdown_timeout=shutdown_timeout)
    except runner.StartError as error:
        typer.echo(f"myllm serve: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
