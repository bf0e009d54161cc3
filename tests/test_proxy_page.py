"""The chat page in a real browser: what a person does with it, and what it must not do."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browsers import browser  # noqa: E402
from proxies import Proxied  # noqa: E402
from sottovoce.models.model import greedy  # noqa: E402
from sottovoce.proxy.token import Token  # noqa: E402

_PATIENCE = 120_000  # milliseconds; only a broken page takes as long


@pytest.fixture(scope="module")
def proxied():
    with Proxied().running() as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium, proxied):
    context = chromium.new_context(accept_downloads=True, viewport={"width": 1200, "height": 800})
    context.set_default_timeout(_PATIENCE)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(proxied.url + "/")
    page.get_by_text("tiny at 127.0.0.1").wait_for()
    page.get_by_label("tokens").fill("8")
    yield page
    context.close()
    assert not page.complaints  # a violation of the content security policy would be one
    assert all(url.startswith((proxied.url, "blob:")) for url in page.requested)


# Waiting for functions, not for expressions: these would be evaluated by `eval`, which the page forbids.
def ask(page, text, answers=1):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "n => document.querySelectorAll('.assistant:not(.growing)').length === n"
        " && !document.querySelector('#save').disabled",
        arg=answers,
    )
    return page.locator("#talk .assistant").last.inner_text()


def test_a_conversation_streams_and_costs_are_shown(page, proxied):
    answer = ask(page, "hello")
    tokens = proxied.model.card.chat("hello").tokens
    wanted = proxied.model.card.tokenizer.decode(greedy(proxied.model, tokens, 8))
    assert "".join(answer.split()) == "".join(wanted.split())
    assert page.locator("#tokens").inner_text() == "8" and int(page.locator("#rounds").inner_text()) > 0
    assert page.locator("#talk .user").inner_text() == "hello"
    ask(page, "more", answers=2)
    assert page.locator("#tokens").inner_text() == "16" and int(page.locator("#cached").inner_text()) > 8


def test_words_and_costs_show_while_the_answer_grows(page, proxied):
    proxied.gate.clear()  # the first token comes from the prefill, no other one can come
    try:
        page.get_by_label("Message", exact=True).fill("hello")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => (document.querySelector('.assistant.growing')?.textContent ?? '') !== ''"
        )
        page.wait_for_function(
            "() => Number(document.querySelector('#seconds').textContent) > 0"
            " && document.querySelector('#up').textContent !== '0 B'"
        )
        assert page.locator("#tokens").inner_text() == "1" and page.locator("#rounds").inner_text() == "…"
        page.wait_for_function("() => document.querySelectorAll('#wire .frame').length > 0")
        assert page.get_by_role("button", name="Stop").is_visible()
    finally:
        proxied.gate.set()
    page.get_by_role("button", name="Send").wait_for()
    assert page.locator("#tokens").inner_text() == "8" and int(page.locator("#rounds").inner_text()) > 0


def test_the_servers_side_shows_real_frames(page, proxied):
    ask(page, "what is seen")
    page.wait_for_function("() => document.querySelectorAll('#wire .frame').length > 0")
    shown = [bytes.fromhex(text) for text in page.locator("#wire .frame div:last-child").all_inner_texts()]
    received = b"\0".join(proxied.received)
    assert shown and all(piece in received for piece in shown)
    assert "the server sees every token" in page.locator("#sees").inner_text()
    assert "open" in page.locator("#protection").get_attribute("class")  # this engine protects nothing


def test_public_text_is_marked_and_sent_as_such(page, tmp_path, proxied):
    file = tmp_path / "page.txt"
    file.write_text("A public page.")
    page.locator("#public-file").set_input_files(file)
    page.get_by_text("The server reads this: A public page.").wait_for()
    ask(page, "and?")
    assert page.get_by_role("button", name="Public text").is_disabled()  # only a beginning can be public
    assert any(b"A public page." in _text(proxied, piece) for piece in proxied.received)


def _text(proxied, command):
    """Public tokens travel in the prefill's command, four bytes each."""
    from sottovoce.parties.protocol import Command

    try:
        tokens = Command.parse(memoryview(command)).public_tokens
    except Exception:  # noqa: BLE001
        return b""
    return proxied.model.card.tokenizer.decode(tokens).encode()


def test_a_conversation_is_saved_and_goes_on(page, tmp_path):
    ask(page, "remember")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save").click()
    file = tmp_path / "conversation.json"
    saved.value.save_as(file)
    content = json.loads(file.read_text())
    assert [m["role"] for m in content["messages"]] == ["user", "assistant"]
    page.get_by_role("button", name="New").click()
    assert page.locator("#talk li").count() == 0
    page.locator("#load-file").set_input_files(file)
    page.get_by_text("2 messages loaded").wait_for()
    ask(page, "go on", answers=2)
    assert int(page.locator("#cached").inner_text()) > 0  # the session still held it
    file.write_text("{}")
    page.locator("#load-file").set_input_files(file)
    page.get_by_text("this is not a saved conversation").wait_for()


def test_an_answer_can_be_stopped(page, proxied):
    proxied.gate.clear()
    try:
        page.get_by_label("Message", exact=True).fill("stop me")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop").click()
    finally:
        proxied.gate.set()
    page.get_by_role("button", name="Send").wait_for()
    ask(page, "still there?", answers=page.locator(".assistant").count() + 1)


def test_problems_are_said(page):
    page.get_by_label("Message", exact=True).fill("x" * 300)
    page.keyboard.press("Enter")
    page.get_by_text("context is 96").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    page.complaints.clear()  # the browser reports the 400 as well
    ask(page, "shorter")


def test_a_proxy_with_a_token_is_unlocked(chromium):
    with Proxied().running(token=Token("a-token-of-24-characters")) as locked:
        context = chromium.new_context()
        context.set_default_timeout(_PATIENCE)
        page = context.new_page()
        page.goto(locked.url + "/")
        for attempt in ("not-the-token-of-it", "a-token-of-24-characters"):
            field = page.get_by_label("This proxy wants its token")
            field.wait_for()
            assert not page.locator("#ask").is_visible()
            field.fill(attempt)
            with page.expect_response("**/v1/models"):
                page.get_by_role("button", name="Unlock").click()
            if attempt.startswith("not"):
                page.get_by_text("that is not the token").wait_for()
        page.get_by_text("tiny at 127.0.0.1").wait_for()
        page.get_by_label("tokens").fill("8")
        assert ask(page, "hello") and page.evaluate("localStorage.length + sessionStorage.length") == 0
        page.wait_for_function("() => document.querySelectorAll('#wire .frame').length > 0")
        context.close()


def test_light_and_dark(page):
    def back():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    first = back()
    page.get_by_role("button", name="Light or dark").click()
    assert back() != first


def test_names_and_keyboard(page):
    """Everything that can be used has a name, and the keyboard reaches it."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input:not([hidden]), textarea')].filter((e) =>
            !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
            .map((e) => e.id)"""
    )
    assert unnamed == []
    page.get_by_label("Message", exact=True).focus()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"new", "load", "publish", "theme", "send", "most", "wire"} <= reached
