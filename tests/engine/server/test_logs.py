"""The lines of the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import httpx
import pytest

from myllm_engine.server.exchange import Exchange, current
from myllm_engine.server.http_settings import HttpSettings
from myllm_engine.server.logs import configure
from myllm_engine.server.settings import ServerSettings

LOGGERS = ("myllm_engine", "uvicorn", "myllm_engine.server.request_log")


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Callable[[], list[str]]]]:
    """Return a function that configures the log, and returns what hands out the lines written since."""
    before = {
        name: (
            logging.getLogger(name).handlers[:],
            logging.getLogger(name).level,
            logging.getLogger(name).propagate,
        )
        for name in LOGGERS
    }

    def configure_here(level: str, **options) -> Callable[[], list[str]]:
        configure(level, **options)
        return lambda: capsys.readouterr().err.splitlines()

    yield configure_here
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_text_is_a_line_an_event(configured):
    lines = configured("info")
    logging.getLogger("myllm_engine.x").info(
        "done %s", 1, extra={"seconds": 0.5, "prompt": 'a "b"\nc', "empty": ""}
    )
    logging.getLogger("myllm_engine.x").debug("not seen")
    [line] = lines()
    assert line.endswith(r'INFO myllm_engine.x: done 1 seconds=0.5 prompt="a \"b\"\nc" empty=""')


def test_json_is_an_object_a_line(configured):
    lines = configured("warning", format="json")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("myllm_engine.x").exception("failed\ntwice", extra={"count": 2, "path": ...})
    [line] = lines()
    entry = json.loads(line)
    assert entry["time"].endswith("+00:00")
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "myllm_engine.x", "failed\ntwice")
    assert (entry["count"], entry["path"]) == (2, "Ellipsis")
    assert entry["exception"].splitlines()[-1] == "ValueError: no"


@pytest.mark.parametrize("format", ["text", "json"])
def test_lines_of_a_request_have_its_id(configured, format):
    lines = configured("info", format=format)
    token = current.set(Exchange("abc"))
    try:
        logging.getLogger("uvicorn.access").info("GET /")
    finally:
        current.reset(token)
    logging.getLogger("uvicorn.access").info("outside")
    inside, outside = lines()
    assert ("x_request_id=abc" if format == "text" else '"x_request_id": "abc"') in inside
    assert "x_request_id" not in outside


def test_uvicorn_may_have_a_level_of_its_own(configured):
    lines = configured("info", uvicorn_level="error")
    logging.getLogger("uvicorn.access").warning("GET /")
    logging.getLogger("myllm_engine").info("hello")
    assert ["hello" in line for line in lines()] == [True]


@pytest.mark.parametrize("wanted", [True, False])
def test_prompts_are_logged_when_they_are_asked_for(configured, serve, wanted):
    lines = configured("warning", format="json", log_requests=wanted)
    settings = ServerSettings(http=HttpSettings(enable_log_requests=wanted, max_log_len=9))
    with serve(settings) as live:
        body = {"prompt": "The capital of France is", "max_tokens": 2, "temperature": 0, "stop": ["\n"]}
        httpx.post(f"{live.url}/v1/completions", json=body, headers={"X-Request-Id": "abc"})
    entries = [json.loads(line) for line in lines()]
    if not wanted:
        assert entries == []
        return
    [entry] = entries
    assert entry["prompt"] == "The capit"
    assert len(entry["prompt_token_ids"]) == entry["prompt_tokens"] == 5
    assert entry["params"] == {"max_tokens": 2, "temperature": 0.0, "stop": ["\n"]}
    assert entry["x_request_id"] == "abc"
    assert entry["request_id"].startswith("cmpl-")
