"""Pictures of the chat page for the docs: `python tools/take_screenshots.py docs/images`, a few minutes.

Serves SmolLM2 with the engine hybrid and puts a proxy in front of it; `--url` takes the pictures of another
proxy instead. Needs playwright and a Chromium.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

QUESTION = "Write a haiku about rain."
TOKENS = "24"
_HOUR = 3_600_000
_SOTTOVOCE = [sys.executable, "-m", "sottovoce"]


@contextmanager
def proxy(model: str = "smollm2-135m") -> Iterator[str]:
    """The address of a proxy, with a server behind it, both for these pictures only."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory, "ready.json")
        environment = {**os.environ, "SOTTOVOCE_CONFIG_DIR": directory}
        serve = [*_SOTTOVOCE, "serve", model, "--kv", "masked", "--port", "0", "--ready-file", str(ready)]
        server = subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL)
        started = [server]
        try:
            while not ready.exists():
                if server.poll() is not None:
                    raise SystemExit(f"`{' '.join(serve[2:4])}` ended")
                time.sleep(0.1)
            address = f"localhost:{json.loads(ready.read_text())['port']}"
            front = subprocess.Popen(
                [*_SOTTOVOCE, "proxy", address, "--port", "0"],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(front)
            assert front.stderr is not None
            found = filter(None, (re.search(r"chat page at (http\S+?)/ ", line) for line in front.stderr))
            yield next(found)[1]
        finally:
            for process in reversed(started):
                process.terminate()
                process.communicate()


def take(url: str, directory: Path) -> None:
    """An answer under way in light colours, and the finished one in dark ones."""
    directory.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        flags = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme="light")
        page.set_default_timeout(_HOUR)
        page.goto(url)
        page.wait_for_function("() => document.querySelector('#protection').textContent")
        page.get_by_label("tokens").fill(TOKENS)
        page.get_by_label("Message", exact=True).fill(QUESTION)
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => (document.querySelector('#talk .assistant')?.textContent ?? '').length > 20"
        )
        page.screenshot(path=directory / "chat-page-light.png")
        page.wait_for_function("() => !document.querySelector('#send').hidden")
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=directory / "chat-page-dark.png")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--url", help="a running proxy")
    arguments = parser.parse_args()
    if arguments.url is not None:
        take(arguments.url, arguments.directory)
        return
    with proxy() as url:
        take(url, arguments.directory)


if __name__ == "__main__":
    main()
