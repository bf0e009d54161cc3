"""A proxy that wants a token: who has it is answered as always, who has not learns nothing."""

import json
import stat

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from proxies import Proxied  # noqa: E402
from sottovoce.errors import UsageError  # noqa: E402
from sottovoce.proxy.token import Token  # noqa: E402
from test_proxy import HELLO, call, expected  # noqa: E402

SECRET = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def proxied():
    with Proxied().running(token=Token(SECRET)) as running:
        yield running


def test_openais_client_shows_it_as_its_key(proxied):
    with openai.OpenAI(base_url=proxied.url + "/v1", api_key=SECRET, max_retries=0) as client:
        done = client.chat.completions.create(model="tiny", messages=HELLO)
        assert done.choices[0].message.content == expected(proxied, HELLO)
    with openai.OpenAI(base_url=proxied.url + "/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="wants the token"):
            client.chat.completions.create(model="tiny", messages=HELLO)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/sottovoce/wire?since=0"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("GET", "/nowhere"),
    ],
)
@pytest.mark.parametrize("shown", [None, SECRET, "Bearer", f"Bearer {SECRET}x", f"Basic {SECRET}"])
def test_without_it_nothing_is_answered(proxied, method, path, shown):
    headers = {} if shown is None else {"Authorization": shown}
    status, found, content = call(proxied, method, path, {} if method == "POST" else None, headers)
    assert status == 401 and found["www-authenticate"] == "Bearer"
    assert json.loads(content)["error"]["code"] == "invalid_api_key" and b"tiny" not in content


def test_with_it_everything_is(proxied):
    headers = {"Authorization": f"bearer  {SECRET}"}
    for path in ("/v1/models", "/metrics", "/health", "/sottovoce/wire?since=0"):
        assert call(proxied, "GET", path, headers=headers)[0] == 200


def test_the_page_itself_is_open(proxied):
    """It says nothing, and asks for the token."""
    for path in ("/", "/page/app.js", "/page/style.css"):
        status, _, content = call(proxied, "GET", path)
        assert status == 200 and b"127.0.0.1" not in content
    for path in ("/page/../v1/models", "/page/%2e%2e/v1/models", "/page//v1/models"):
        assert call(proxied, "GET", path)[0] in (401, 404)


def test_names_are_checked_first(proxied):
    """Also with the token: a page of a rebound name could not have it, but must not try it out either."""
    headers = {"Authorization": f"Bearer {SECRET}", "Host": "evil.example"}
    assert call(proxied, "GET", "/metrics", headers=headers)[0] == 403


def test_a_file_is_made_where_there_is_none(tmp_path):
    path = tmp_path / "token"
    token = Token.of_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text().strip()
    assert len(text) >= 43 and token.opens(f"Bearer {text}") and not token.opens(f"Bearer {text[:-1]}")
    assert Token.of_file(path).opens(f"Bearer {text}")
    assert Token.of_file(tmp_path / "other").opens(f"Bearer {text}") is False


@pytest.mark.parametrize(
    "content", [b"", b"short\n", b"with a space in its middle", b"\xff" * 20, b"a" * 201]
)
def test_tokens_that_are_none(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UsageError) as found:
        Token.of_file(path)
    assert "with a space" not in str(found.value)


def test_headers_of_any_bytes(proxied):
    for shown in ("Bearer \xff\xfe", "Bearer " + "x" * 5000, "\t", "Bearer\u00a0x"):
        assert call(proxied, "GET", "/v1/models", headers={"Authorization": shown})[0] in (400, 401, 431)
