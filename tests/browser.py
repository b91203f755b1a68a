"""A headless Chromium for tests of pages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextlib.contextmanager
def launch_browser(*flags: str) -> Iterator[Browser]:
    """Skip the test if there is none; fail if $REDUB_NEEDS_CHROMIUM is set."""
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get("REDUB_NEEDS_CHROMIUM"):
            pytest.fail("REDUB_NEEDS_CHROMIUM is set, but there is no chromium on the PATH")
        pytest.skip("no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, *flags])
        yield browser
        browser.close()
