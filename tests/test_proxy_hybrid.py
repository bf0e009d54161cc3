"""A conversation through the proxy with the real cryptography: two turns, reused, and nothing to read."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from proxies import Proxied  # noqa: E402
from sottovoce.engines.base import EngineOptions  # noqa: E402
from test_proxy import call  # noqa: E402


def test_two_private_turns():
    with Proxied(options=EngineOptions(engine="hybrid", kv="ciphertext")).running() as proxied:
        messages = [{"role": "user", "content": "a secret"}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 3}
        status, _, content = call(proxied, "POST", "/v1/chat/completions", body)
        first = json.loads(content)
        assert status == 200 and first["usage"]["sottovoce"]["engine"] == "hybrid"
        assert first["usage"]["sottovoce"]["rounds"] > 100  # counted by the ledger, not made up
        said = first["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "b"}]
        status, _, content = call(proxied, "POST", "/v1/chat/completions", body)
        usage = json.loads(content)["usage"]
        assert status == 200
        assert usage["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] + 2
        assert usage["sottovoce"]["public_tokens"] == first["usage"]["sottovoce"]["public_tokens"]
        found = call(proxied, "GET", "/sottovoce/wire?since=0")[2]
        samples = [bytes.fromhex(s["hex"]) for s in json.loads(found)["samples"] if s["to"] == "server"]
        received = b"\0".join(proxied.received)
        assert samples and all(sample in received for sample in samples)
        entry = json.loads(call(proxied, "GET", "/v1/models")[2])["data"][0]["sottovoce"]["privacy"]
        assert "never a private token" in entry["server"]
