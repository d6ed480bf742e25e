"""Images as parts of messages, over HTTP, with a tiny model that sees and against transformers alone."""

from __future__ import annotations

import base64
import io
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import torch
from PIL import Image

from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig
from myllm_engine.errors import InvalidRequestError
from myllm_engine.server.fetch import Fetcher
from myllm_engine.server.images import decode_data_url, decode_image, load_images
from myllm_engine.server.settings import ServerContext, ServerSettings

MAX_TOKENS = 6


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (5, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(noise).resize(size)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]
    return {"model": "default", "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0, **more}


@pytest.fixture(scope="module")
def tiny(tiny_vision: Callable[[str], Any]) -> Any:
    return tiny_vision("smolvlm")


@pytest.fixture(scope="module")
def vision_engine(tiny: Any) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(
        EngineConfig(model=str(tiny.folder), dtype="float32", device="cpu", kv_cache_memory=2**22)
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def seeing(vision_engine: AsyncEngine, serve_engine: Callable[..., Any]) -> Iterator[str]:
    """The URL of a server with a model that sees."""
    with serve_engine(vision_engine, ServerSettings(max_images=2, max_image_pixels=64 * 64)) as live:
        yield live.url


def answer(tiny: Any, *images: Image.Image) -> tuple[str, int]:
    """Return the greedy text of transformers alone, and the length of its prompt."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "What is this?"}]
    tokenizer = tiny.processor.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = tiny.processor(text=text, images=list(images), return_tensors="pt", add_special_tokens=False)
    result = tiny.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
    length = inputs["input_ids"].shape[1]
    return tokenizer.decode(result[0, length:], skip_special_tokens=True), length


def test_the_openai_client_shows_images(seeing: str, tiny: Any):
    client = openai.OpenAI(base_url=f"{seeing}/v1", api_key="none")
    texts = []
    for images in ([picture(1)], [picture(2)], [picture(1), picture(3, (64, 20))]):
        reply = client.chat.completions.create(
            **body(*(part(data_url(image), detail="high") for image in images))
        )
        expected, length = answer(tiny, *images)
        assert reply.choices[0].message.content == expected
        assert reply.usage.prompt_tokens == length
        texts.append(expected)
    assert len(set(texts)) == 3


def test_images_in_vllms_short_form(seeing: str, tiny: Any):
    url = data_url(picture(1))
    for shown in ({"image_url": url}, {"type": "image_url", "image_url": url, "uuid": "mine"}):
        messages = [{"role": "user", "content": [shown, "What is this?"]}]
        content = {"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
        reply = httpx.post(f"{seeing}/v1/chat/completions", json=content).json()
        assert reply["choices"][0]["message"]["content"] == answer(tiny, picture(1))[0]


def test_a_stream_shows_images(seeing: str, tiny: Any):
    client = openai.OpenAI(base_url=f"{seeing}/v1", api_key="none")
    stream = client.chat.completions.create(**body(part(data_url(picture(1)))), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer(tiny, picture(1))[0]


def test_the_responses_api_shows_images(seeing: str, tiny: Any):
    client = openai.OpenAI(base_url=f"{seeing}/v1", api_key="none")

    def ask(seed: int, **more: Any) -> Any:
        content = [
            {"type": "input_image", "image_url": data_url(picture(seed)), "detail": "auto"},
            {"type": "input_text", "text": "What is this?"},
        ]
        return client.responses.create(
            model="default",
            input=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            max_output_tokens=MAX_TOKENS,
            temperature=0,
            **more,
        )

    expected, length = answer(tiny, picture(1))
    first = ask(1)
    assert first.output_text == expected
    assert first.usage.input_tokens == length
    events = list(ask(1, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    # What it goes on from has its image, too.
    second = ask(2, previous_response_id=first.id)
    assert second.usage.input_tokens > 2 * length
    body = {"previous_response_id": first.id, "input": "And?"}
    counted = httpx.post(f"{seeing}/v1/responses/input_tokens", json=body).json()["input_tokens"]
    assert counted > length


def test_anthropics_api_shows_images(seeing: str, tiny: Any):
    client = anthropic.Anthropic(base_url=seeing, api_key="none")
    data = base64.b64encode(encoded(picture(1))).decode()
    shown = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    messages = [{"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]}]
    arguments: Any = {"model": "default", "messages": messages}
    expected, length = answer(tiny, picture(1))
    limits: Any = {"max_tokens": MAX_TOKENS, "temperature": 0}
    reply = client.messages.create(**arguments, extra_body=limits, max_tokens=MAX_TOKENS)
    assert reply.content[0].text == expected
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens == length
    with client.messages.stream(**arguments, extra_body=limits, max_tokens=MAX_TOKENS) as stream:
        assert stream.get_final_text() == expected
    assert client.messages.count_tokens(**arguments).input_tokens == length


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "AAAA"}, "none of the formats PNG"),
        ({"type": "base64", "media_type": "image/png"}, "`data` is required by this type"),
        ({"type": "base64", "data": "AAAA"}, "`media_type` is required by this type"),
        ({"type": "url"}, "`url` is required by this type"),
        ({"type": "url", "url": "https://example.org/x.png"}, "`--allow-image-urls`"),
        ({"type": "file", "file_id": "x"}, "send the image itself"),
    ],
)
def test_what_is_no_good_image_to_anthropics_api(seeing: str, source: dict[str, Any], says: str):
    messages = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    response = httpx.post(f"{seeing}/v1/messages", json={"messages": messages, "max_tokens": 1})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_images_that_tools_return(seeing: str, tiny: Any):
    """A result of a call may hold images in each API; the template gets them where they stand."""
    url = data_url(picture(1))
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "Look."}]}
    bodies = {
        "/v1/chat/completions": {
            "messages": [
                asked,
                {"role": "assistant", "content": [], "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": [part(url)]},
            ],
            "max_tokens": MAX_TOKENS,
        },
        "/v1/responses": {
            "input": [
                {"role": "user", "content": "Look."},
                {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
                {
                    "type": "function_call_output",
                    "call_id": "1",
                    "output": [{"type": "input_image", "image_url": url}],
                },
            ],
            "max_output_tokens": MAX_TOKENS,
        },
        "/v1/messages": {
            "messages": [
                asked,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {}}],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "1",
                            "content": [{"type": "image", "source": source}],
                        }
                    ],
                },
            ],
            "max_tokens": MAX_TOKENS,
        },
    }
    said = {}
    for path, content in bodies.items():
        response = httpx.post(seeing + path, json={**content, "temperature": 0})
        assert response.status_code == 200, response.text
        said[path] = response.json()
    text = said["/v1/chat/completions"]["choices"][0]["message"]["content"]
    assert said["/v1/responses"]["output"][0]["content"][0]["text"] == text
    assert said["/v1/messages"]["content"][0]["text"] == text


def test_an_embedding_is_of_the_image_too(seeing: str, tiny: Any):
    def embed(image: Image.Image) -> torch.Tensor:
        asked = body(part(data_url(image)))["messages"]
        response = httpx.post(f"{seeing}/v1/embeddings", json={"messages": asked})
        assert response.status_code == 200, response.text
        return torch.tensor(response.json()["data"][0]["embedding"])

    text = tiny.processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
        tokenize=False,
    )
    inputs = tiny.processor(text=text, images=[picture(1)], return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        states = tiny.model.model(**inputs).last_hidden_state[0, -1]
    torch.testing.assert_close(
        embed(picture(1)), torch.nn.functional.normalize(states, dim=0), atol=1e-4, rtol=1e-3
    )
    assert not torch.allclose(embed(picture(1)), embed(picture(2)), atol=1e-3)


GOOD = data_url(picture(1))


@pytest.mark.parametrize(
    ("parts", "message", "param"),
    [
        ([part(GOOD)] * 3, "hold 3 images, and this server takes 2", "messages"),
        ([part(data_url(picture(1, (65, 64))))], "65 x 64 pixels, and this server takes 4096", "messages"),
        ([part("data:image/png;base64,AAAA")], "none of the formats PNG, JPEG", "messages"),
        ([part(GOOD[:-400])], "An image is damaged", "messages"),
        ([part("data:image/png;base64,@@@@")], "base64 of a data URL is damaged", "messages"),
        ([part("data:image/png,plain")], "must read `data:image/png;base64,…`", "messages"),
        ([part("file:///etc/passwd")], "must begin with `data:image/…;base64,`", "messages"),
        ([part("https://example.org/x.png")], "send them as data URLs .* `--allow-image-urls`", "messages"),
        ([{"type": "image_url"}], "image_url` is required", "messages[0].content"),
        ([part(GOOD, size=3)], "Unknown field 'size'", "messages[0].content"),
        ([{"type": "text", "text": "<image>"}, part(GOOD)], "2 places for images", "messages"),
        ([{"type": "input_audio"}], "'input_audio' are not read by this server", "messages[0].content"),
    ],
)
def test_what_is_no_good_image(seeing: str, parts: list[dict[str, Any]], message: str, param: str):
    response = httpx.post(f"{seeing}/v1/chat/completions", json=body(*parts))
    assert response.status_code == 400
    error = response.json()["error"]
    assert re.search(message, error["message"]), error["message"]
    assert (error["param"] or "").startswith(param)


def test_a_model_that_reads_text_alone(http: httpx.Client):
    response = http.post("/v1/chat/completions", json=body(part(GOOD)))
    assert response.status_code == 400
    assert "reads text alone, and the message holds an image" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages[0].content"


def test_urls_of_inner_hosts_are_not_fetched(
    seeing: str, serve_engine: Callable[..., Any], vision_engine: AsyncEngine
):
    settings = ServerSettings(allow_image_urls=True, allowed_media_domains=("localhost",))
    with serve_engine(vision_engine, settings) as live:
        for url, message in (
            (f"{seeing}/health", "'127.0.0.1' is not among those that this server fetches from"),
            ("http://localhost/x.png", "'localhost' is not the name of a public host"),
        ):
            response = httpx.post(f"{live.url}/v1/chat/completions", json=body(part(url)))
            assert response.status_code == 400
            assert message in response.json()["error"]["message"]


async def test_urls_are_fetched_where_allowed(tmp_path: Path):
    (tmp_path / "image.png").write_bytes(encoded(picture(1)))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    settings = ServerSettings(allow_image_urls=True)
    context = ServerContext(engine=None, settings=settings, version="", started=0)  # type: ignore[arg-type]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetcher = Fetcher(max_bytes=10_000, allowed=lambda address: address == "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_address[1]}/image.png"
        [image] = await load_images([url], context, fetcher=fetcher)
        assert image.tobytes() == picture(1).tobytes()
        with pytest.raises(InvalidRequestError, match="cannot be had: 127.0.0.1 answers with the status 404"):
            await load_images([url + "x"], context, fetcher=fetcher)
        server.shutdown()
    context.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(kind: str):
    image = decode_image(encoded(picture(1), kind), max_pixels=2000)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "EPS"])
def test_other_formats_are_not_parsed(kind: str):
    with pytest.raises(InvalidRequestError, match="none of the formats"):
        decode_image(encoded(picture(1), kind), max_pixels=2000)


def test_modes_and_orientation():
    palette = picture(1).convert("P")
    assert decode_image(encoded(palette), max_pixels=2000).mode == "RGB"
    translucent = picture(1).convert("RGBA")
    assert decode_image(encoded(translucent), max_pixels=2000).tobytes() == picture(1).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image(encoded(picture(1), "JPEG", exif=exif), max_pixels=2000).size == (30, 40)


def test_bombs_are_not_unpacked():
    content = encoded(picture(1))
    for side, message in ((5000, "5000 x 5000 pixels"), (60_000, "decompression bomb")):
        # The header of a PNG says how much will be unpacked, and carries a checksum.
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + content[24:29]
        bomb = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
        with pytest.raises(InvalidRequestError, match=message):
            decode_image(bomb, max_pixels=2**24)


def test_data_urls_with_parameters():
    content = base64.b64encode(b"x").decode()
    for head in ("data:image/png;base64,", "data:;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"):
        assert decode_data_url(head + content) == b"x"
