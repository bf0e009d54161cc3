"""The command line tool `llm`, the real one, with the proxy as one of its models."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llm", reason="the tool llm is not installed")

from proxies import Proxied  # noqa: E402
from sottovoce.models.model import greedy  # noqa: E402
from sottovoce.proxy.token import Token  # noqa: E402

SECRET = "a-token-of-24-characters"
# As docs/guides/proxy.md prints it.
MODELS = """\
- model_id: private
  model_name: tiny
  api_base: {url}/v1
  api_key_name: private
- model_id: private-text
  model_name: tiny
  api_base: {url}/v1
  api_key_name: private
  completion: true
"""


@pytest.fixture(scope="module")
def proxied():
    with Proxied().running(token=Token(SECRET)) as running:
        yield running


@pytest.fixture(scope="module")
def llm(proxied, tmp_path_factory):
    home = tmp_path_factory.mktemp("llm")
    (home / "extra-openai-models.yaml").write_text(MODELS.format(url=proxied.url))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "LLM_"))}
    # The package that ships our demo's weights is a plugin of llm, and wants another inference engine.
    environment = {**clean, "LLM_USER_PATH": str(home), "LLM_LOAD_PLUGINS": "", "NO_COLOR": "1"}

    def run(*arguments, key=SECRET):
        command = [sys.executable, "-m", "llm", *arguments, *(("--key", key) if key else ())]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
        )
        return done

    return run


def words(text):
    return text.rstrip("\n")


def test_an_answer_and_the_next_one(proxied, llm):
    first = llm("-m", "private", "hello")
    assert first.returncode == 0, first.stderr
    tokens = proxied.model.card.chat("hello").tokens
    wanted = proxied.model.card.tokenizer.decode(greedy(proxied.model, tokens, 8))
    assert words(first.stdout) == words(wanted)
    before = proxied.gateway.metrics.cached_tokens.value()
    assert llm("-c", "more").returncode == 0
    assert proxied.gateway.metrics.cached_tokens.value() > before  # the session went on
    whole = llm("-m", "private", "--no-stream", "-o", "max_tokens", "2", "hello")
    assert whole.returncode == 0 and wanted.startswith(words(whole.stdout))


def test_a_text_and_its_usage(proxied, llm):
    done = llm("-m", "private-text", "-u", "-o", "max_tokens", "4", "abc")
    assert done.returncode == 0, done.stderr
    text = proxied.model.card.plain("abc").tokens
    assert words(done.stdout) == words(proxied.model.card.tokenizer.decode(greedy(proxied.model, text, 4)))


def test_problems_are_said(llm):
    refused = llm("-m", "private", "hello", key="another-token-of-some-length")
    assert refused.returncode == 1 and "wants the token" in refused.stderr
    long = llm("-m", "private", "x" * 300)
    assert long.returncode == 1 and "context is 96" in long.stderr


def test_a_system_prompt_and_options(llm, proxied):
    done = llm("-m", "private", "-s", "be brief", "-o", "temperature", "0", "-o", "seed", "3", "hello")
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    tokens = proxied.model.card.chat(chat).tokens
    wanted = proxied.model.card.tokenizer.decode(greedy(proxied.model, tokens, 8))
    assert words(done.stdout) == words(wanted), done.stderr
