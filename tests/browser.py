"""A page as a browser shows it: Debian's Chromium, without a window, that asks nobody anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
).split()


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium")
    return found


def rendered(page: Path, profile: Path) -> str:
    """The page's document when it has been laid out."""
    return _browse(page, profile, "--dump-dom").stdout


def picture(page: Path, profile: Path, file: Path, size: str = "1000,1400") -> bytes:
    """What it looks like, as PNG."""
    _browse(page, profile, f"--screenshot={file}", f"--window-size={size}")
    return file.read_bytes()


def _browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [chromium(), *_FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "HOME": str(profile)},
    )
