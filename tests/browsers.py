"""A headless Chromium for tests of the chat page: the system's own, driven by Playwright."""

import os
import shutil
from contextlib import contextmanager

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser():
    """Skips the test, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("SOTTOVOCE_TEST_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium here; Debian's package is called chromium")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        running = driver.chromium.launch(
            executable_path=path, args=[*arguments, "--disable-dev-shm-usage"], timeout=180_000
        )
        try:
            yield running
        finally:
            running.close()
