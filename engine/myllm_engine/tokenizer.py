"""Turn text into token ids and back, and chat messages into prompts."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

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
        chat_template: replaces the tokenizer's.

    Attributes:
        backend: the backend tokenizer.
        chat_template: Jinja text, or None when there is none.
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
        if isinstance(own, dict):
            own = own.get("default")
        self.chat_template: str | None = chat_template or own
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

    def is_special(self, token_id: int) -> bool:
        """Tell whether a token is left out when special tokens are skipped."""
        return token_id in self._special

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the prompt text of a conversation, rendered as transformers does.

        Args:
            messages: dicts with `role` and `content`.
            tools: JSON schemas of functions, handed to the template.
            add_generation_prompt: end with the words that open the assistant's turn.
            continue_final_message: leave the last message open, for the model to continue.
            chat_template: Jinja text that replaces the tokenizer's.
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
        template = chat_template or self.chat_template
        if template is None:
            raise InvalidRequestError(
                "The model has no chat template: start the engine with `--chat-template FILE`, "
                "or send a plain prompt",
                param="messages",
            )
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **kwargs,
            )
        # A template is a program that the messages run: what it does not expect shows as any exception.
        except Exception as error:
            raise InvalidRequestError(
                f"The chat template cannot render these messages: {error or type(error).__name__}",
                param="messages",
            ) from error

    def encode_chat(self, messages: list[dict[str, Any]], /, **kwargs: Any) -> list[int]:
        """Return the ids of `render_chat(messages, **kwargs)`; the template writes its own special tokens."""
        return self.encode(self.render_chat(messages, **kwargs), add_special_tokens=False)


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
    template = None if config.chat_template is None else read_chat_template(config.chat_template)
    try:
        if config.tokenizer is None and source.gguf_file is not None:
            tokenizer, gguf_eos = _from_gguf(source)
            eos_token_ids |= gguf_eos
        else:
            tokenizer = _from_pretrained(config.tokenizer or source.path, config)
    except ModelLoadError:
        raise
    except Exception as error:
        name = config.tokenizer or config.model
        reason = " ".join(str(error).split())
        raise ModelLoadError(
            f"The tokenizer of {name!r} cannot be loaded: {reason} - pass `tokenizer=` with a folder or hub "
            "id that has a `tokenizer.json`"
        ) from error
    return Tokenizer(tokenizer, eos_token_ids=eos_token_ids, chat_template=template)


def read_chat_template(value: str) -> str:
    """Return a chat template given inline or as the path of a file.

    Raises:
        ModelLoadError: it looks like a path and no file is there.
    """
    if "{" in value or "\n" in value:
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise ModelLoadError(f"`chat_template` {value!r} is neither a file nor a Jinja template")
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
