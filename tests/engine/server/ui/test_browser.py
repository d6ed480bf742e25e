"""The page in a headless Chromium, against the real server: `make browser` gets one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from myllm_engine.server.settings import ServerSettings

NAMES = ("chromium", "chromium-browser", "chrome-headless-shell", "google-chrome", "google-chrome-stable")
OURS = Path(sys.prefix) / "chromium"  # where `make browser` puts it
# An answer that does not end by itself.
ENDLESS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2000}


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    """A Chromium, the system's or our own; without one the tests are skipped."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    environment = dict(os.environ)
    if executable is None and (OURS / "chromium").exists():
        executable = str(OURS / "chromium")
        # It brings what a bare system lacks.
        environment |= {"LD_LIBRARY_PATH": f"{OURS}/al2023/lib", "FONTCONFIG_PATH": f"{OURS}/fonts"}
    if executable is None:
        pytest.skip("there is no Chromium: `make browser` gets one, and so does `apt install chromium`")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable, env=environment, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


class Page:
    """A tab, what it asked for, and what it complained of."""

    def __init__(self, tab: Any, url: str) -> None:
        self.tab = tab
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on(
            "console",
            lambda message: message.type in ("error", "warning") and self.complaints.append(message.text),
        )

    async def until(self, expression: str) -> None:
        """Wait until an expression holds; Playwright's own way is forbidden by the page's policy."""
        deadline = time.monotonic() + 20
        while not await self.tab.evaluate(expression):
            assert time.monotonic() < deadline, f"never: {expression}"
            await asyncio.sleep(0.02)

    async def set(self, **fields: Any) -> None:
        """Fill in settings."""
        await self.tab.click("nav >> text=Settings")
        for name, value in fields.items():
            await self.tab.fill(f"#{name}", str(value))

    async def say(self, text: str) -> None:
        """Send a message by the keyboard."""
        await self.tab.fill("#prompt", text)
        await self.tab.press("#prompt", "Enter")

    async def answer(self) -> str:
        """Wait for the end of the answer and return its text."""
        await self.tab.wait_for_selector(
            "#log[aria-busy=false] .turn.assistant:last-child:not(.running) footer"
        )
        return await self.tab.inner_text(".turn.assistant:last-child .body")

    async def note(self) -> str:
        """Return what stands below the last answer."""
        return await self.tab.inner_text(".turn.assistant:last-child footer span")


@pytest.fixture
async def open_page(browser) -> AsyncIterator[Any]:
    """Return a function that opens the page of a server; at the end nothing may have gone wrong in it."""
    pages: list[Page] = []

    async def open_page(url: str, **options: Any) -> Page:
        context = await browser.new_context(**options)
        context.set_default_timeout(20_000)
        page = Page(await context.new_page(), url)
        pages.append(page)
        await page.tab.goto(f"{url}/ui")
        return page

    yield open_page
    for page in pages:
        await page.tab.context.close()
        assert not page.complaints
        assert all(request.startswith(page.url) for request in page.requests)


@pytest.fixture
async def page(open_page, live) -> Page:
    """The page of `live`, ready."""
    page = await open_page(live.url)
    await page.tab.wait_for_selector("#status[data-state=ready]")
    return page


async def test_it_says_what_it_serves(page, live):
    assert await page.tab.inner_text("#model-name") == live.engine.model_name
    assert live.engine.model_name in await page.tab.title()
    assert await page.tab.eval_on_selector("#prompt", "field => field === document.activeElement")
    assert await page.tab.locator("figure.card").count() == 6
    assert f"{live.engine.max_model_len:,} tokens" in await page.tab.inner_text("#facts")


async def test_a_conversation_streams_to_its_end(page, http):
    await page.set(temperature=0, max_tokens=24, system="You are terse.")
    messages = [{"role": "system", "content": "You are terse."}]
    for question in ("Name three colours.", "And three more?"):
        await page.say(question)
        messages.append({"role": "user", "content": question})
        # Some of it is there before all of it is.
        await page.until("document.querySelector('.turn.running:last-child .body')?.textContent.length > 3")
        shown = await page.answer()
        reply = http.post(
            "/v1/chat/completions", json={"messages": messages, "temperature": 0, "max_tokens": 24}
        )
        content, usage = reply.json()["choices"][0]["message"]["content"], reply.json()["usage"]
        assert "".join(shown.split()) == "".join(content.replace("*", "").split())
        note = await page.note()
        assert f"{usage['completion_tokens']} tokens after {usage['prompt_tokens']} tokens of prompt" in note
        assert "tokens/s" in note
        messages.append({"role": "assistant", "content": content})


@pytest.mark.parametrize("how", ["button", "key"])
async def test_an_answer_can_be_stopped(page, live, how):
    await page.set(schema=json.dumps(ENDLESS), max_tokens=1500)
    await page.say("Count.")
    await page.until("document.querySelector('.turn.running .body')?.textContent.length > 20")
    assert live.engine.stats().num_running == 1
    if how == "button":
        await page.tab.click("#stop")
    else:
        await page.tab.press("body", "Escape")
    shown = await page.answer()
    assert shown.startswith("[")
    note = await page.note()
    assert "stopped" in note
    assert 0 < int(note.split()[0].replace(",", "")) < 1500
    deadline = time.monotonic() + 3
    while live.engine.stats().num_running:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert live.engine.stats().kv_pages_free == live.engine.stats().kv_pages_total
    # And the next one can be asked for.
    await page.set(schema="", max_tokens=3)
    await page.say("Hello")
    assert await page.answer()


async def test_a_refusal_is_shown_in_the_servers_words(page, http):
    await page.set(temperature=-1)
    await page.say("Hello")
    body = {"messages": [{"role": "user", "content": "Hello"}], "temperature": -1}
    words = http.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert "temperature" in words
    assert await page.answer() == words
    assert await page.tab.locator("[role=alert]").inner_text() == words
    # The browser itself notes the status.
    assert len(page.complaints) == 1
    assert "400" in page.complaints.pop()
    # What failed is no part of the conversation: once it is mended, it is asked again.
    await page.set(temperature=0, max_tokens=2)
    await page.tab.click("text=Try again")
    await page.tab.wait_for_selector("[role=alert]", state="detached")
    assert await page.answer()


async def test_a_schema_that_is_no_json_is_not_sent(page):
    await page.set(schema="{")
    await page.say("Hello")
    assert "not JSON" in await page.answer()
    assert not any("chat/completions" in request for request in page.requests)


async def test_a_failure_in_the_middle_of_an_answer_is_shown(open_page, scripted, said):
    from myllm_engine.errors import EngineDeadError

    script = [said(("Half of", b"Half of", None)), EngineDeadError("The engine died of a test")]
    with scripted(script) as live:
        page = await open_page(live.url)
        await page.say("Hello")
        shown = await page.answer()
        assert shown.startswith("Half of")
        assert "The engine died of a test" in shown
        assert "failed" in await page.note()


async def test_the_live_view_moves_while_tokens_are_made(page, live):
    await page.tab.click("nav >> text=Engine")
    cards = page.tab.locator("figure.card")

    async def values() -> list[str]:
        return await cards.locator("output").all_inner_texts()

    async def drawn() -> list[str]:
        return await page.tab.eval_on_selector_all(
            "figure.card .line-0", "all => all.map(one => one.getAttribute('d'))"
        )

    assert (await values())[:3] == ["0.0", "0", "0 %"]
    before = await drawn()
    await page.set(schema=json.dumps(ENDLESS), max_tokens=1500)
    await page.tab.click("nav >> text=Engine")
    await page.say("Count.")
    await page.tab.wait_for_selector("#status[data-state=busy]")
    await page.until("parseFloat(document.querySelector('figure.card output').textContent) > 0")
    rate, running, *_, between = await values()
    assert float(rate) > 1
    assert running == "1"
    assert "ms" in between
    assert "1 running" in await page.tab.inner_text("#status")
    assert await drawn() != before
    label = await page.tab.locator("figure.card svg").first.get_attribute("aria-label")
    assert "Tokens per second, now" in label
    await page.tab.click("#stop")
    await page.tab.wait_for_selector("#status[data-state=ready]")


async def test_a_server_with_a_key_is_opened_with_it(open_page, scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(api_keys=("k3y",))) as live:
        page = await open_page(live.url)
        await page.until("document.activeElement.id === 'key'")
        assert "needs an API key" in await page.tab.inner_text("#status")
        page.complaints = [each for each in page.complaints if "401" not in each]
        await page.tab.fill("#key", "k3y")
        await page.tab.press("#key", "Tab")
        await page.tab.wait_for_selector("#status[data-state=ready]")
        await page.say("Hello")
        assert await page.answer() == "ok"
        assert not await page.tab.evaluate(
            "localStorage.length + sessionStorage.length + document.cookie.length"
        )


async def test_what_a_model_writes_is_never_markup(open_page, scripted, said):
    text = (
        "<img src=x onerror=alert(1)> **bold** `code` [bad](javascript:alert(1)) [good](https://example.org/a)\n\n"
        "# <script>alert(1)</script>\n\n- one\n  - two\n\n> quoted\n\n```html\n<b>not bold</b>\n```\n"
        + "> " * 500
        + "deep"
    )
    with scripted([said((text, text.encode(), "stop"))]) as live:
        page = await open_page(live.url)
        await page.say("Hello")
        await page.answer()
        body = ".turn.assistant .body"
        for tag in ("img", "script", "b"):
            assert await page.tab.locator(f"{body} {tag}").count() == 0
        shown = await page.tab.inner_text(body)
        assert "<img src=x onerror=alert(1)>" in shown
        assert "[bad](javascript:alert(1))" in shown
        assert await page.tab.locator(f"{body} a").get_attribute("href") == "https://example.org/a"
        assert await page.tab.inner_text(f"{body} > p:first-child strong") == "bold"
        assert await page.tab.inner_text(f"{body} h3") == "<script>alert(1)</script>"
        assert await page.tab.inner_text(f"{body} pre[data-language=html] code") == "<b>not bold</b>"
        assert await page.tab.inner_text(f"{body} li li") == "two"
        assert "deep" in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_small_screen_has_one_view_at_a_time(open_page, live, scheme):
    page = await open_page(live.url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    await page.tab.wait_for_selector("#status[data-state=ready]")
    for view, part in (("Chat", "main.chat"), ("Engine", "#engine"), ("Settings", "#settings")):
        await page.tab.click(f"nav >> text={view}")
        for other in ("main.chat", "#engine", "#settings"):
            assert await page.tab.is_visible(other) is (other == part)
        assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    light = await page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    await page.tab.click("#theme")
    assert await page.tab.evaluate("getComputedStyle(document.body).backgroundColor") != light


async def test_everything_has_a_name_and_can_be_read(page):
    unnamed = """[...document.querySelectorAll('button, input, select, textarea')]
        .filter(each => !each.labels?.length && !each.textContent.trim() && !each.getAttribute('aria-label'))
        .map(each => each.outerHTML)"""
    assert await page.tab.evaluate(unnamed) == []
    # WCAG 2's contrast of text that stands on a plain ground, by its formula for relative luminance.
    contrast = """() => {
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const colour = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data]; };
        const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = (each) => { const c = colour(getComputedStyle(each).backgroundColor);
            return c[3] === 255 || !each.parentElement ? c : ground(each.parentElement); };
        const faint = [];
        for (const each of document.querySelectorAll('body *')) {
            const words = [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim());
            if (!words || !each.checkVisibility() || each.closest('.hidden, .skip')) continue;
            const [a, b] = [colour(getComputedStyle(each).color), ground(each)].map(luminance).sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            if (ratio < 4.5) faint.push(`${each.textContent.trim()}: ${ratio.toFixed(2)}`);
        }
        return faint;
    }"""
    for panel in ("Engine", "Settings"):
        await page.tab.click(f"nav >> text={panel}")
        for _ in range(2):
            assert await page.tab.evaluate(contrast) == []
            await page.tab.click("#theme")
