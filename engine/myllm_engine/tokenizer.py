"""Turn text into token ids and back, and chat messages into prompts."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import tokenizers

from .chat_template import ContentReader, Messages, bundled_templates, find_template
from .errors import InvalidRequestError, ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .config import EngineConfig
    from .models.source import ModelSource

logger = logging.getLogger(__name__)


class Tokenizer:
    """Wrap a transformers tokenizer; safe to use from several threads.

    Text and ids go through the backend (the `tokenizers` library) itself: transformers' own methods set
    padding and truncation on it, which another thread would see.

    Args:
        tokenizer: a tokenizer with a `tokenizers` backend.
        eos_token_ids: further ids that end a completion, next to the tokenizer's own.
        chat_template: Jinja text that replaces the tokenizer's templates.

    Attributes:
        backend: the backend tokenizer.
        chat_template: Jinja text, or None when there is none.
        chat_templates: the tokenizer's templates by name, when it has several; else empty.
        eos_token_ids: ids that end a completion.
        special_tokens: ids of the tokens that are left out when special tokens are skipped, by their text.
        vocab_size: ids known to the tokenizer, added tokens included; the model's own number may be larger.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        chat_template: str | None = None,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ModelLoadError(
                f"`{type(tokenizer).__name__}` has no `tokenizers` backend, which the engine needs: "
                "pass `tokenizer=` with a folder or hub id that has a `tokenizer.json`"
            )
        self.backend: tokenizers.Tokenizer = backend
        self.backend.no_padding()
        self.backend.no_truncation()
        self._tokenizer = tokenizer
        own = tokenizer.chat_template
        self.chat_templates: dict[str, str] = own if isinstance(own, dict) else {}
        if isinstance(own, dict):
            own = own.get("default")
        self._replaced = chat_template is not None
        self.chat_template: str | None = chat_template or own
        self._contents = ContentReader(self._apply_template)
        eos = tokenizer.eos_token_id
        self.eos_token_ids = eos_token_ids | (frozenset() if eos is None else {eos})
        self.vocab_size: int = self.backend.get_vocab_size(with_added_tokens=True)
        added = self.backend.get_added_tokens_decoder()
        self._added = {index: token.content for index, token in added.items()}
        self.special_tokens = {token.content: index for index, token in added.items() if token.special}
        self._special = frozenset(self.special_tokens.values())
        # A decoder is one step or a sequence of steps; its pickled form is the JSON of tokenizer.json.
        decoder = self.backend.decoder
        self._byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text; special tokens that occur in it are recognised."""
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a text, and where in it each token begins and ends, in characters.

        A token that stands for nothing in the text, as one added at its beginning, has `(0, 0)`.
        """
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """Return the decoded text of one token, special tokens included; it may hold U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of one token as it stands inside a text; empty for an unknown id."""
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self.backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            table = _byte_of_char()
            if all(char in table for char in piece):
                return bytes(table[char] for char in piece)
            return piece.encode()
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):  # sentencepiece's byte fallback
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()

    def token_name(self, token_id: int) -> str:
        """Return the name that the vocabulary has for a token, such as "Ġthe"; empty for an unknown id."""
        return self.backend.id_to_token(token_id) or ""

    def info(self) -> dict[str, Any]:
        """Return what describes the tokenizer, as a `tokenizer_config.json` does, in values that JSON has."""
        known = {
            name: value
            for name, value in self._tokenizer.init_kwargs.items()
            if not name.endswith("_file") and name not in ("name_or_path", "tokenizer_object")
        }
        plain = json.loads(json.dumps(known, default=_in_json))
        return {
            **plain,
            "tokenizer_class": type(self._tokenizer).__name__,
            "chat_template": self.chat_template,
        }

    def is_special(self, token_id: int) -> bool:
        """Tell whether a token is left out when special tokens are skipped."""
        return token_id in self._special

    def render_chat(
        self,
        messages: Messages,
        content_format: str = "auto",
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the prompt text of a conversation, rendered as transformers does, in its sandbox.

        Args:
            messages: dicts with `role` and `content`, a string or a list of parts; text parts become one
                string, a line each, for templates that read strings.
            content_format: what the template reads: "string", "openai" (parts), or "auto", which tries it.
            tools: JSON schemas of functions, handed to the template; of a tokenizer with several templates
                the one named "tool_use" is taken then.
            add_generation_prompt: end with the words that open the assistant's turn.
            continue_final_message: leave the last message open, for the model to continue.
            chat_template: Jinja text that replaces the tokenizer's, or the name of one of the tokenizer's
                or of the bundled templates.
            kwargs: further variables of the template.

        Raises:
            InvalidRequestError: there is no template, or it refuses the messages; a variable has the name of
                one of transformers' own arguments.
        """
        if reserved := sorted(_template_arguments() & kwargs.keys()):
            raise InvalidRequestError(
                f"`{reserved[0]}` cannot be a variable of the chat template: the name is taken",
                param="chat_template_kwargs",
            )
        template = self._choose_template(chat_template, tools)
        try:
            return self._apply_template(
                self._contents.fit(messages, template, content_format),
                template,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **kwargs,
            )
        except InvalidRequestError:
            raise
        # A template is a program that the messages run: what it does not expect shows as any exception.
        except Exception as error:
            raise InvalidRequestError(
                f"The chat template cannot render these messages: {error or type(error).__name__}",
                param="messages",
            ) from error

    def _choose_template(self, wanted: str | None, tools: list[dict[str, Any]] | None) -> str:
        if wanted is not None:
            template = find_template(wanted, self.chat_templates)
            if template is None:
                raise InvalidRequestError(
                    f"`chat_template` {wanted!r} is neither a Jinja template nor the name of one: "
                    f"{', '.join([*self.chat_templates, *bundled_templates()])}",
                    param="chat_template",
                )
            return template
        if tools is not None and not self._replaced and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        if self.chat_template is not None:
            return self.chat_template
        if self.chat_templates:
            raise InvalidRequestError(
                "The model has several chat templates and none named `default`: start the engine with "
                f"`--chat-template` and one of {', '.join(self.chat_templates)}",
                param="messages",
            )
        raise InvalidRequestError(
            "The model has no chat template: start the engine with `--chat-template` and a file, or one of "
            f"the bundled templates ({', '.join(bundled_templates())}) if the model was trained with it; or "
            "send a plain prompt",
            param="messages",
        )

    def _apply_template(self, messages: Messages, template: str, **kwargs: Any) -> str:
        return self._tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, **{"add_generation_prompt": True, **kwargs}
        )

    def encode_chat(self, messages: Messages, /, **kwargs: Any) -> list[int]:
        """Return the ids of `render_chat(messages, **kwargs)`; the template writes its own special tokens.

        Raises:
            InvalidRequestError: see `render_chat`; or a message holds an image: ids alone do not carry it.
        """
        for message in messages:
            parts = message["content"] if isinstance(message.get("content"), list) else []
            if any(isinstance(part, dict) and part.get("type") != "text" for part in parts):
                raise InvalidRequestError(
                    "Token ids carry text alone: conversations with images go to the server", param="messages"
                )
        return self.encode(self.render_chat(messages, **kwargs), add_special_tokens=False)


def _in_json(value: Any) -> Any:
    """Return what stands for a value that JSON does not have: a token's text, or what Python shows."""
    return getattr(value, "content", None) or str(value)


@functools.cache
def _template_arguments() -> frozenset[str]:
    """Return the names that mean something else to transformers than a variable of the template."""
    from transformers import PreTrainedTokenizerBase

    taken = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset(taken) - {"documents", "kwargs"}


def load_tokenizer(
    config: EngineConfig, source: ModelSource, *, eos_token_ids: frozenset[int] = frozenset()
) -> Tokenizer:
    """Load the tokenizer of a model, or the one that `config.tokenizer` names.

    Raises:
        ModelLoadError: there is none, or it cannot be used.
    """
    try:
        if config.tokenizer is None and source.gguf_file is not None:
            tokenizer, gguf_eos = _from_gguf(source)
            eos_token_ids |= gguf_eos
        else:
            tokenizer = _from_pretrained(config.tokenizer or source.path, config)
            if tokenizer.chat_template is None and config.tokenizer is None:
                tokenizer.chat_template = _processor_template(source, config)
    except ModelLoadError:
        raise
    except Exception as error:
        name = config.tokenizer or config.model
        reason = " ".join(str(error).split())
        raise ModelLoadError(
            f"The tokenizer of {name!r} cannot be loaded: {reason} - pass `tokenizer=` with a folder or hub "
            "id that has a `tokenizer.json`"
        ) from error
    template = None
    if config.chat_template is not None:
        named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
        template = read_chat_template(config.chat_template, named)
    return Tokenizer(tokenizer, eos_token_ids=eos_token_ids, chat_template=template)


def read_chat_template(value: str, named: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a chat template given inline, by name, or as the path of a file.

    Args:
        value: Jinja text, a name of `named` or of a bundled template, or a path.
        named: the model's own templates.

    Raises:
        ModelLoadError: it is none of these.
    """
    template = find_template(value, named)
    if template is not None:
        return template
    path = Path(value).expanduser()
    if not path.is_file():
        raise ModelLoadError(
            f"`chat_template` {value!r} is neither a Jinja template nor a file, nor the name of one: "
            f"{', '.join([*named, *bundled_templates()])}"
        )
    return path.read_text(encoding="utf-8")


def _from_pretrained(name: str, config: EngineConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    return AutoTokenizer.from_pretrained(
        name,
        revision=config.revision if config.tokenizer is None else None,
        trust_remote_code=config.trust_remote_code,
    )


def _processor_template(source: ModelSource, config: EngineConfig) -> str | None:
    """Return the chat template of a model's processor, in the file where such templates were kept first."""
    from transformers.utils import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file

    file = cached_file(
        source.path,
        LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
        revision=config.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]


def _from_gguf(source: ModelSource) -> tuple[PreTrainedTokenizerBase, frozenset[int]]:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from .models import gguf, gguf_tokenizer

    metadata = gguf.read_metadata(source.gguf_path)
    eos = gguf_tokenizer.eos_token_ids(metadata)
    if (Path(source.path) / "tokenizer.json").is_file():
        # The original beside the file is better than what can be rebuilt from metadata.
        return AutoTokenizer.from_pretrained(source.path), eos
    backend = gguf_tokenizer.build_tokenizer(metadata)
    if backend is None:
        gguf_tokenizer.warn_of_unknown_split(metadata, str(source.gguf_path))
        return AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file), eos
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **gguf_tokenizer.special_tokens(metadata))
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer, eos


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """Return GPT-2's table of printable stand-ins for bytes, turned around."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    table = {chr(byte): byte for byte in kept}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table
