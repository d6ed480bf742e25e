"""`dspy.Embedder` over a client."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy

import myllm
from myllm import InvalidParameterError

from .state import servers


class Embedder(dspy.Embedder):
    """`dspy.Embedder` over a client of yours, cached and batched as DSPy does it.

        embed = Embedder(myllm.Client("http://localhost:8000", model="smollm2"))
        embed(["a text", "another one"]).shape
        search = dspy.retrievers.Embeddings(corpus, embed, k=3)

    It retries as the client does (`max_retries`), for DSPy repeats no embeddings, and raises its errors
    (`myllm.errors`), for DSPy has no classes for those.

    Args:
        client: where to send.
        model: instead of the client's model.
        batch_size: most texts in one request.
        caching: keep vectors in DSPy's cache, under the texts, the model and the servers' URLs.
        **kwargs: options of every request: `dimensions`, `truncate_prompt_tokens`, `user`, `extra_body`, ….
    """

    def __init__(
        self,
        client: myllm.Client,
        model: str | None = None,
        batch_size: int = 200,
        caching: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(client, myllm.Client):
            raise InvalidParameterError(f"`client={client!r}` must be a `myllm.Client`.", param="client")
        self.client = client
        # In the cache's key, which of `_embed` itself knows the source text alone.
        place: Any = {"served_model": model or client.model, "served_at": servers(client)}
        super().__init__(self._embed, batch_size, caching, **place, **kwargs)

    def _embed(
        self, texts: list[str], *, served_model: str | None, served_at: str, **options: Any
    ) -> list[list[float]]:
        return self.client.embed(texts, model=served_model, **options).vectors

    async def acall(
        self,
        inputs: str | list[str],
        batch_size: int | None = None,
        caching: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `__call__`; the event loop goes on meanwhile, which DSPy's own would block."""
        return await asyncio.to_thread(self, inputs, batch_size, caching, **kwargs)
