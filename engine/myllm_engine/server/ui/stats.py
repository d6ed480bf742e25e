"""Serve `GET /ui/stats`: what the live view draws."""

from __future__ import annotations

import time
from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from ..responses import json_response
from ..settings import Context

router = APIRouter(tags=["System"])


@router.get("/ui/stats", summary="Tell what the engine does at this moment")
async def get_stats(context: Context, http: Request) -> Response:
    """Return the engine's counters, the latency of late, and what is served.

    `seconds` is a clock of which only differences mean anything: a rate is the difference of a counter over
    that of the clock. A percentile of which there was nothing to measure is null.
    """
    engine = context.engine
    return json_response(
        {
            "seconds": time.monotonic(),
            "alive": engine.error is None,
            "engine": asdict(engine.stats()),
            "latency": http.app.state.latency.summary(),
            "server": {
                "version": context.version,
                "started": context.started,
                "model": engine.model_name,
                "device": engine.device,
                "dtype": engine.dtype,
                "max_model_len": engine.max_model_len,
                "max_num_seqs": engine.config.max_num_seqs,
                "page_size": engine.config.page_size,
            },
        }
    )
