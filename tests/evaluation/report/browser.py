"""A page in headless Chromium: what it holds, what it complains of, and what it asks the network for.

Chromium is driven over its DevTools protocol through two pipes (JSON, each message ended by a zero byte), so that
nothing has to be installed besides it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
]


def find_chromium() -> str | None:
    """The browser's path: the environment's DETKIT_CHROMIUM, or one of the usual names."""
    return os.environ.get("DETKIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """An open page.

    Attributes:
        complaints: errors and warnings of its scripts, its console and its security policy.
        requests: addresses it asked for, those of `data:` and itself left out.
        refused: addresses that its security policy did not let it ask for.
    """

    browser: Browser
    session: str
    url: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _asked: dict[str, str] = field(default_factory=dict)
    loaded: bool = False

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.browser.call(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True}, session=self.session
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + 60
        while not self.run(expression):
            assert time.monotonic() < deadline, f"still not true after a minute: {expression}"
            time.sleep(0.02)

    def hear(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            self._asked[parameters["requestId"]] = url
            if url != self.url and not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Network.loadingFailed" and parameters.get("blockedReason") == "csp":
            self.refused.append(self._asked[parameters["requestId"]])
        elif method == "Page.loadEventFired":
            self.loaded = True


class Browser:
    """One headless Chromium."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # It reads its file 3 and writes its file 4; a shell puts the pipes there.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, *SWITCHES, f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number = b"", 0
        self._pages: dict[str, Page] = {}

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> Page:
        """Opens a file in a window of this size, and waits until it is there."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, path.resolve().as_uri())
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session=session)
        scale = 2 if phone else 1
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", size, session=session)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", {"features": scheme}, session=session)
        self.call("Page.navigate", {"url": page.url}, session=session)
        deadline = time.monotonic() + 60
        while not page.loaded:
            self._listen(deadline)
        page.run("document.title")  # whatever was said while it loaded has been heard before this answer
        return page

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        with memoryview(json.dumps(message).encode() + b"\0") as data:
            sent = 0
            while sent < len(data):
                sent += os.write(self._out, data[sent:])
        deadline = time.monotonic() + 60
        while True:
            answer = self._listen(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def close(self) -> None:
        """Ends this browser, and no other."""
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _listen(self, deadline: float) -> dict[str, Any]:
        """The next message; events go to their page first."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("Chromium does not answer" if not ready else "Chromium has ended")
            self._buffer += data
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(raw)
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.hear(message["method"], message["params"])
        return message


@contextlib.contextmanager
def chromium(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, closed at the end."""
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
