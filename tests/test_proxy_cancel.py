"""Who leaves, who comes too often, whose session breaks: the session is free again, and the client knows."""

import asyncio
import inspect
from functools import partial

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from proxies import Proxied  # noqa: E402
from sottovoce.parties import GenerationOptions  # noqa: E402
from sottovoce.proxy.app import create_app  # noqa: E402
from sottovoce.proxy.gateway import Plan  # noqa: E402
from test_proxy import HELLO, wait_for  # noqa: E402
from test_proxy_guard import begun  # noqa: E402

BODY = {"model": "tiny", "messages": HELLO, "max_tokens": 60}


@pytest.fixture(scope="module")
def proxied():
    proxied = Proxied(plan=Plan(waiting=0, defaults=GenerationOptions(max_tokens=8)))
    proxied.clients, connect = [], proxied.gateway._connect

    def remembered():
        proxied.clients.append(connect())
        return proxied.clients[-1]

    proxied.gateway._connect = remembered
    with proxied.running(keep_alive=0.02, patience=0.05) as running:
        yield running


@pytest.fixture(autouse=True)
def open_again(proxied):
    yield
    proxied.gate.set()
    wait_for(lambda: proxied.gateway.load == (0, 0))


def left(proxied, leave):
    """The answer under way is given up once somebody has left, and no later than at its next token."""
    (job,) = proxied.gateway._running.values()
    leave()
    wait_for(job.cancelled.is_set)
    proxied.gate.set()
    wait_for(lambda: proxied.gateway.load == (0, 0))


def test_an_asynchronous_client_is_cancelled(proxied):
    async def run():
        async with openai.AsyncOpenAI(base_url=proxied.url + "/v1", api_key="x", max_retries=0) as client:
            for stream in (True, False):
                proxied.gate.clear()
                first = asyncio.Event()

                async def ask(stream=stream, first=first):
                    answer = await client.chat.completions.create(**BODY, stream=stream)
                    async for _ in answer:
                        first.set()

                task = asyncio.create_task(ask())
                if stream:
                    await first.wait()
                else:
                    await asyncio.to_thread(wait_for, lambda: proxied.gateway.load == (1, 0))
                loop = asyncio.get_running_loop()
                await asyncio.to_thread(left, proxied, partial(loop.call_soon_threadsafe, task.cancel))
                with pytest.raises(asyncio.CancelledError):
                    await task
            done = await client.chat.completions.create(**{**BODY, "max_tokens": 2})
            assert done.usage.completion_tokens == 2

    asyncio.run(run())


def test_a_connection_that_closes_behind_the_first_spaces(proxied):
    proxied.gate.clear()
    connection = begun(proxied, BODY)
    assert connection.getresponse().read(2) == b"  "
    left(proxied, connection.close)


def test_who_comes_too_often_gets_the_sdks_own_error(proxied):
    proxied.gate.clear()
    connection = begun(proxied, {**BODY, "stream": True})
    wait_for(lambda: proxied.gateway.load == (1, 0))
    with openai.OpenAI(base_url=proxied.url + "/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as found:
            client.chat.completions.create(**BODY)
    assert int(found.value.response.headers["retry-after"]) >= 1 and found.value.code == "rate_limit_exceeded"
    left(proxied, connection.close)


def test_a_session_that_breaks_in_an_answer(proxied):
    """Words were sent already, so the error comes in the stream, and the SDK raises it."""
    proxied.gate.clear()
    with openai.OpenAI(base_url=proxied.url + "/v1", api_key="x", max_retries=0) as client:
        stream = iter(client.chat.completions.create(**BODY, stream=True))
        said = ""
        while not said:
            said = next(stream).choices[0].delta.content or ""
        proxied.clients[-1].channel.close()
        proxied.gate.set()
        with pytest.raises(openai.APIError, match="connection"):
            list(stream)
        assert client.chat.completions.create(**{**BODY, "max_tokens": 1}).choices


def test_silence_is_never_long():
    """The issue is a client's time-out; 15 seconds are what the documentation promises at most."""
    times = inspect.signature(create_app).parameters
    assert times["keep_alive"].default <= 15.0 and times["patience"].default <= 60.0
