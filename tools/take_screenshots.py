"""Pictures of the chat page for the docs: `python tools/take_screenshots.py URL docs/images`.

URL is that of a running `sottovoce proxy`. Needs playwright and a Chromium.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

QUESTION = "Write a haiku about rain."
_HOUR = 3_600_000


def main(url: str, directory: Path) -> None:
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
        page.get_by_label("tokens").fill("14")
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


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
