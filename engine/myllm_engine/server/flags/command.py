"""Say what becomes of the options of `myllm serve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from ..listen import Listen, Tls
from . import values
from .answers import AnswerFlags, ChatFlags
from .limits import LimitFlags, MemoryFlags
from .model import LoraFlags, ModelFlags, SpeedFlags
from .network import BrowserFlags, NetworkFlags, TlsFlags
from .option import fill
from .process import IgnoredFlags, LogFlags, ProcessFlags

if TYPE_CHECKING:
    from ...config import EngineConfig
    from ..http_settings import HttpSettings
    from ..settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Flags:
    """Hold the options of one command line, group by group, in the order of the help."""

    model: ModelFlags
    network: NetworkFlags
    tls: TlsFlags
    browser: BrowserFlags
    chat: ChatFlags
    answers: AnswerFlags
    memory: MemoryFlags
    limits: LimitFlags
    speed: SpeedFlags
    lora: LoraFlags
    log: LogFlags
    process: ProcessFlags
    ignored: IgnoredFlags

    @classmethod
    def groups(cls) -> list[type]:
        """Return the groups' classes."""
        hints = get_type_hints(cls)
        return [hints[item.name] for item in fields(cls)]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Flags:
        """Return the options that typer has read."""
        return cls(*(fill(group, given) for group in cls.groups()))

    def engine_config(self) -> EngineConfig:
        """Return what the engine is built from.

        Raises:
            ValueError: for a value that cannot be.
        """
        from ...config import EngineConfig

        model, memory, speed, lora = self.model, self.memory, self.speed, self.lora
        adapters = values.parse_lora_modules(lora.lora_modules or ())
        adapters |= values.parse_lora_adapters(lora.lora_adapters or "", besides=adapters)
        if lora.max_loras is not None and lora.max_loras < len(adapters):
            raise ValueError(f"`--max-loras` {lora.max_loras} has no room for {len(adapters)} adapters")
        cache = memory.kv_cache_memory
        return EngineConfig(
            model=model.model or model.model_option or "smollm2",
            tokenizer=model.tokenizer,
            revision=model.revision,
            chat_template=self.chat.template(),
            dtype=model.dtype,
            quantization=model.quantization,
            device=model.device,
            trust_remote_code=model.trust_remote_code,
            seed=model.seed,
            max_model_len=memory.max_model_len,
            max_num_seqs=memory.max_num_seqs,
            max_num_batched_tokens=memory.max_num_batched_tokens,
            max_queue=self.limits.max_num_queued_reqs,
            page_size=memory.page_size,
            kv_cache_memory=None if cache is None else values.parse_size(cache),
            gpu_memory_utilization=memory.gpu_memory_utilization,
            enable_prefix_caching=speed.enable_prefix_caching,
            speculative=speed.speculative(),
            tensor_parallel_size=speed.tensor_parallel_size,
            cuda_graphs=not speed.enforce_eager,
            compile=speed.compile,
            lora_adapters=adapters,
            max_loras=lora.max_loras or max(len(adapters), int(lora.enable_lora or lora.allow_runtime_lora)),
        )

    def server_settings(self) -> ServerSettings:
        """Return what the HTTP side is configured with.

        Raises:
            ValueError: for a value that cannot be.
        """
        from ..sampling_defaults import check_override, read_generation_config
        from ..settings import ServerSettings

        model, limits, chat = self.model, self.limits, self.chat
        config = model.generation_config
        override = values.json_object("--override-generation-config", model.override_generation_config)
        check_override(override)
        same = {
            item.name: getattr(group, item.name)
            for group in (chat, self.answers, limits)
            for item in fields(group)
            if item.name in ServerSettings.__dataclass_fields__
        }
        return ServerSettings(
            **same
            | {
                "max_body_size": values.parse_size(limits.max_body_size),
                "allow_image_urls": chat.allow_image_urls or bool(chat.allowed_media_domains),
                "allowed_media_domains": tuple(values.parse_list(chat.allowed_media_domains)),
                "max_image_size": values.parse_size(limits.max_image_size),
                "default_chat_template_kwargs": values.json_object(
                    "--default-chat-template-kwargs", chat.default_chat_template_kwargs
                ),
            },
            http=self.http_settings(),
            served_model_names=tuple(values.parse_list(model.served_model_name)),
            api_keys=tuple(self.network.api_key or ()),
            generation_config={"auto": None, "vllm": {}, "none": {}}[config]
            if config in ("auto", "vllm", "none")
            else read_generation_config(config),
            override_generation_config=override,
            allow_runtime_lora=self.lora.allow_runtime_lora,
            enable_ui=self.network.enable_ui,
        )

    def http_settings(self) -> HttpSettings:
        """Return what lies around the routes.

        Raises:
            ValueError: for a value that cannot be, and for middleware that cannot be imported.
        """
        from ..http_settings import HttpSettings
        from ..layers import load_middleware

        network, browser, log = self.network, self.browser, self.log
        for name in network.middleware or ():
            load_middleware(name)
        return HttpSettings(
            root_path=network.root_path,
            allowed_origins=tuple(values.parse_list(browser.allowed_origins)),
            allowed_methods=tuple(values.parse_list(browser.allowed_methods)) or ("*",),
            allowed_headers=tuple(values.parse_list(browser.allowed_headers)) or ("*",),
            allow_credentials=browser.allow_credentials,
            middleware=tuple(network.middleware or ()),
            enable_docs=not network.disable_fastapi_docs,
            enable_request_id_headers=log.enable_request_id_headers,
            enable_log_requests=log.enable_log_requests,
            max_log_len=log.max_log_len,
            sse_keep_alive_interval=network.sse_keep_alive_interval,
            request_timeout=self.limits.request_timeout,
            otlp_traces_endpoint=log.otlp_traces_endpoint,
        )

    def listen(self) -> Listen:
        """Return where to listen.

        Raises:
            ValueError: for a value that cannot be.
        """
        tls, network = self.tls, self.network
        files = (tls.ssl_keyfile, tls.ssl_certfile, tls.ssl_ca_certs)
        wanted = any(files) or tls.ssl_cert_reqs
        return Listen(
            host=network.host,
            port=network.port,
            uds=network.uds,
            fd=network.fd,
            tls=Tls(*files, cert_reqs=tls.ssl_cert_reqs) if wanted else None,
        )
