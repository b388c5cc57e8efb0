"""Sees to it that the tests have a browser: looks for one, else tries to install one.  Never fails; says how it went.

`make browser` runs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile

from browser import start

_DOWNLOAD = 600
"""Seconds that a download may take."""


def found() -> tuple[str, str]:
    """The version of the browser that starts, and why there is none; one of the two is empty."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "", "playwright is not installed"
    with sync_playwright() as playwright:
        try:
            browser = start(playwright)
        except LookupError as e:
            return "", str(e)
        version = browser.version
        browser.close()
        return version, ""


def installs() -> list[list[list[str]]]:
    """The ways to get one, in order, each as commands; a system package only for who may install those."""
    ways = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        packages = ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-liberation"]
        ways.append([["apt-get", "update"], packages])
    return ways


def run(command: list[str]) -> str:
    """Why it failed, in its own words; empty where it did not."""
    surroundings = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "10000"}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        try:
            # In a session of its own, which ends as a whole: what does the work may be a child's child.
            process = subprocess.Popen(
                command, env=surroundings, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as e:
            return str(e)
        try:
            code = process.wait(_DOWNLOAD)
        except BaseException as e:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(e, subprocess.TimeoutExpired):
                return f"not done within {_DOWNLOAD} s"
            raise
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    reason = next((line for line in lines if "error" in line.lower() or line.startswith("E:")), f"exit code {code}")
    return "" if code == 0 else reason


def main() -> None:
    """One line at the end, whatever happens."""
    version, why = found()
    for way in installs():
        if version:
            break
        for command in way:
            print(f"no browser for the tests ({why}): trying {' '.join(command)}", flush=True)
            if wrong := run(command):
                print(f"  that failed: {wrong}", flush=True)
        version, why = found()
    if version:
        print(f"browser for the tests: Chromium {version}")
    else:
        print(f"no browser for the tests: {why}. Tests in a browser are skipped; `playwright install chromium`, or "
              "Chromium as a package of the system, brings one; CHROMIUM=/path/to/it names another.")  # fmt: skip


if __name__ == "__main__":
    main()
