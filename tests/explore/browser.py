"""A real headless Chromium for tests, the explorer it looks at, and what a test does with a page."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

PATIENCE = 60_000  # ms
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SERVE = "import sys; from spared_fm.explore.server import serve; serve(sys.argv[1], port=0, browser=False)"


def find_chromium() -> str:
    """Install Debian's Chromium where that is ours to do (root on Debian, as in a container), else skip."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        try:
            subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, check=True, timeout=400
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"Chromium can't be installed: apt-get {command[0]} failed ({error})")
    return shutil.which("chromium") or pytest.skip("apt-get installed no chromium")


@contextlib.contextmanager
def start_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def start_server(store: Path) -> Iterator[str]:
    """Serve a store as ``spared-fm explore`` does, in a process of its own; gives the address."""
    command = [sys.executable, "-c", SERVE, str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split(" at ")[1].split()[0]
            end = time.monotonic() + 30
            while time.monotonic() < end:
                with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                    break
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


class Looking:
    """A page of the explorer, with what it complained of and asked elsewhere."""

    def __init__(self, page: Any, address: str, shots: Path) -> None:
        self.page, self.address, self.shots = page, address, shots
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.running: set[Any] = set()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        page.on("request", self._asked)
        for ended in ("requestfinished", "requestfailed"):
            page.on(ended, lambda request: self.running.discard(request))

    def _asked(self, request: Any) -> None:
        self.running.add(request)
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self, state: str = "") -> None:
        """Open the page anew at a state, until its first view is coloured."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#{state}" if state else self.address)
        self.settle()

    def settle(self) -> None:
        """Wait until nothing has loaded, no view has been busy and the address has stayed, for a second."""
        self.page.wait_for_selector("#view-a .openseadragon-container", state="attached")
        busy = self.page.locator(".view:not([hidden])[aria-busy=true], #results[aria-busy=true]")
        quiet, address, end = 0, self.page.url, time.monotonic() + PATIENCE / 1000
        while quiet < 10:
            assert time.monotonic() < end, [request.url for request in self.running]
            self.page.wait_for_timeout(100)
            still = address == self.page.url and not self.running and not busy.count()
            quiet, address = quiet + 1 if still else 0, self.page.url

    def state(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.page.url).fragment).items()}

    def press(self, key: str, moves: str) -> None:
        """Press a key that changes a part of the state; the page writes it to its address some frames later."""
        before, end = self.state().get(moves), time.monotonic() + PATIENCE / 1000
        self.page.keyboard.press(key)
        while self.state().get(moves) == before:
            assert time.monotonic() < end, f"{key} has not changed {moves}={before}"
            self.page.wait_for_timeout(100)

    def results(self) -> list[str]:
        """Spots found, by rank."""
        return [item.get_attribute("data-spot") for item in self.page.locator("#results > li").all()]

    def get(self, path: str) -> Any:
        return self.page.request.get(self.address.rstrip("/") + path).json()

    def place(self, slide: str, barcode: str, view: str = "a") -> tuple[float, float]:
        """Where a spot of view a is on the screen."""
        spots = self.get(f"/api/slides/{slide}/spots")
        at = spots["ids"].index(barcode)
        return self.point(spots["x"][at], spots["y"][at], view)

    def point(self, x: float, y: float, view: str = "a") -> tuple[float, float]:
        centre_x, centre_y, zoom = map(float, self.state()["at"].split(","))
        box = self.page.locator(f"#view-{view} .picture").bounding_box()
        return box["x"] + box["width"] / 2 + (x - centre_x) * zoom, box["y"] + box["height"] / 2 + (y - centre_y) * zoom

    def shot(self, name: str) -> None:
        self.page.screenshot(path=self.shots / f"{name}.png")

    def close(self) -> None:
        self.page.close()
        assert not self.complaints, self.complaints
        assert not self.elsewhere, self.elsewhere
