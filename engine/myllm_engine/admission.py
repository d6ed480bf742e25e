"""Check requests against the model, and make their sequences."""

from __future__ import annotations

import dataclasses

from .beams import BeamGroup, BeamHost
from .config import EngineConfig
from .detokenizer import Detokenizer
from .errors import ContextLengthError, InvalidRequestError
from .groups import BestOfGroup, Group
from .kv_cache import PagePool
from .models.lora import LoraModel
from .request import Request, SamplingParams
from .sampler import derive_seed
from .sampling.bad_words import BadWords
from .sequence import Matcher, PreparedRequest, SeenImages, Sequence
from .structured import GrammarCompiler
from .tokenizer import Tokenizer


class Admission:
    """Let requests in that the engine can bring to an end.

    Args:
        config: of the engine.
        tokenizer: of the model.
        vocab_size: width of the logits.
        max_model_len: tokens that one sequence may have.
        pool: the pages of the KV cache.
        lora: the adapters that requests may name.
        grammars: compiles constraints.
        sees: whether the model sees images.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_model_len: int,
        pool: PagePool,
        lora: LoraModel,
        grammars: GrammarCompiler,
        sees: bool = False,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._pool = pool
        self._lora = lora
        self._grammars = grammars
        self._sees = sees

    def prepare(self, request: Request, matcher: Matcher | None = None) -> PreparedRequest:
        """Check a request against the model and compile its constraint, which may take long.

        May be called from any thread.

        Args:
            request: to prepare.
            matcher: of its constraint, from `grammars`; None: it is compiled here.

        Raises:
            InvalidRequestError: a token id that the model does not have; an unenforceable constraint; a LoRA
                adapter that is not loaded.
            ContextLengthError: prompt and completion are longer than the context.
            QueueFullError: too many constraints wait to be compiled.
        """
        params = request.params
        for name, ids in (
            ("prompt", request.prompt_token_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids),
            ("logprob_token_ids", params.logprob_token_ids),
        ):
            largest = max(ids, default=0)
            if largest >= self._vocab_size:
                raise InvalidRequestError(
                    f"`{name}` holds token id {largest}, but the vocabulary has {self._vocab_size} tokens",
                    param=name,
                )
        prompt_tokens = len(request.prompt_token_ids)
        max_tokens = 0 if request.pooling else params.max_tokens
        if prompt_tokens + (1 if max_tokens is None else max_tokens) > self._max_model_len:
            raise ContextLengthError.for_model(
                prompt_tokens=prompt_tokens, max_tokens=max_tokens, limit=self._max_model_len
            )
        if params.min_tokens > self._max_model_len - prompt_tokens:
            raise InvalidRequestError(
                f"`min_tokens` ({params.min_tokens}) is more than there is room for: the prompt leaves "
                f"{self._max_model_len - prompt_tokens} tokens",
                param="min_tokens",
            )
        if params.use_beam_search:
            self._check_beams(prompt_tokens, params)
        self._lora.number(request.lora)
        if request.images is not None:
            self._check_images(request)
        if matcher is None and params.structured is not None:
            matcher = self._grammars.matcher(params.structured)
        bad_words = BadWords.tokenize(params.bad_words, self._tokenizer) if params.bad_words else None
        return PreparedRequest(request, matcher, bad_words)

    def _check_images(self, request: Request) -> None:
        if not self._sees:
            raise InvalidRequestError(f"{self._config.model!r} sees no images", param="images")
        if request.images.places[-1] >= len(request.prompt_token_ids):
            raise InvalidRequestError("The images belong to another prompt", param="images")

    def _check_beams(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Refuse a beam search whose beams could never all run at once."""
        width, pool = params.num_sequences, self._pool
        longest = prompt_tokens + (params.max_tokens or self._max_model_len - prompt_tokens)
        needed = width * pool.pages_for(longest)
        if width > self._config.max_num_seqs or needed > pool.num_total:
            raise InvalidRequestError(
                f"A beam search of {width} beams of up to {longest} tokens may need {width} sequences and "
                f"{needed * pool.page_size} tokens of KV cache at once; this engine has "
                f"{self._config.max_num_seqs} and {pool.num_total * pool.page_size}: lower `best_of` (or "
                "`n`) or `max_tokens`",
                param="n" if params.best_of is None else "best_of",
            )

    def make_group(self, prepared: PreparedRequest, number: int, beams: BeamHost) -> Group:
        """Make the sequences of a request, with what turns their tokens into its outputs.

        Args:
            prepared: from `prepare`.
            number: of the request, which seeds it when it brings no seed.
            beams: forks and ends the sequences of a beam search.
        """
        request = prepared.request
        params = request.params
        seed = derive_seed(self._config.seed, number) if params.seed is None else params.seed
        if params.use_beam_search:
            [root] = self._make_sequences(request, prepared, seed, count=1)
            return BeamGroup(request, root, self._tokenizer.eos_token_ids, beams)
        if request.pooling is not None or params.num_sequences == params.n:
            count = 1 if request.pooling else params.n
            return Group(request, self._make_sequences(request, prepared, seed, count=count))
        # Ranking needs log-probabilities, whether or not the answer shows them.
        inner = _with_logprobs(request)
        return BestOfGroup(request, self._make_sequences(inner, prepared, seed, count=params.num_sequences))

    def _make_sequences(
        self, request: Request, prepared: PreparedRequest, seed: int, *, count: int
    ) -> list[Sequence]:
        params = request.params
        limit = self._max_model_len
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt_token_ids) + params.max_tokens)
        adapter = self._lora.number(request.lora)
        images = None if request.images is None else SeenImages(request.images)
        return [
            Sequence(
                request=request,
                index=index,
                seed=seed + index,
                max_total_tokens=limit,
                detokenizer=Detokenizer(
                    self._tokenizer,
                    prompt_token_ids=request.prompt_token_ids,
                    skip_special_tokens=params.skip_special_tokens,
                    stop=params.stop,
                    include_stop=params.include_stop_str_in_output,
                ),
                matcher=None if prepared.matcher is None else prepared.matcher.copy(),
                adapter=adapter,
                salt=self._salt(request, adapter),
                bad_words=prepared.bad_words,
                images=images,
            )
            for index in range(count)
        ]

    def _salt(self, request: Request, adapter: int) -> bytes:
        """Return what the keys of a request's cached pages begin with: whoever shares it shares pages.

        Without prefix caching that is the request alone: its sequences begin alike. All images have the same
        tokens: what they show stands here.
        """
        owner = None if self._config.enable_prefix_caching else request.request_id
        shown = None if request.images is None else request.images.digest
        return repr((adapter, request.cache_salt, owner, shown)).encode()


def _with_logprobs(request: Request) -> Request:
    logprobs = request.params.logprobs or 0
    return dataclasses.replace(request, params=dataclasses.replace(request.params, logprobs=logprobs))
