"""Serve `GET /metrics`."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from ..settings import ServerContext
from . import tgi, vllm
from .recorder import Recorder

router = APIRouter(tags=["System"])


class _Collector:
    """Gather all metrics when they are asked for."""

    def __init__(self, context: ServerContext, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment."""
        context = self._context
        names = context.settings.served_model_names or (context.engine.config.model,)
        labels = {"model_name": names[0]}
        yield from vllm.families(context.engine, self._recorder, labels)
        yield from tgi.families(context.engine, self._recorder, context.traffic, labels)


def make_registry(context: ServerContext) -> CollectorRegistry:
    """Begin to count, and return what `/metrics` shows."""
    recorder = Recorder(context.engine.max_model_len)
    context.observe(recorder)
    registry = CollectorRegistry()
    registry.register(_Collector(context, recorder))
    ProcessCollector(registry=registry)
    return registry


@router.get("/metrics", summary="Show what is measured, for Prometheus")
async def get_metrics(request: Request) -> Response:
    """Answer in Prometheus' text format, which every scraper reads.

    Not in OpenMetrics': there prometheus_client (0.26) writes the colons of vLLM's names as underscores.
    """
    text = generate_latest(request.app.state.registry)
    return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
