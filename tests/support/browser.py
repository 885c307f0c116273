"""Chromium without a window, driven by its DevTools protocol through a pipe.

`Browser` starts one; `page` opens a file. Keys are pressed as a person's are, so that focus, forms
and dialogs do what they do for one. Chromium is asked to resolve no name, and every request that a
page makes is recorded.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "ADRPO_REQUIRE_CHROMIUM"  # a test that would be skipped without it fails
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check"),
    *("--disable-gpu", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--metrics-recording-only"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-sandbox",  # root in a container has none; the pages are our own
)
KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, ""), "Escape": (27, "")}
KEYS |= {"ArrowRight": (39, ""), "ArrowLeft": (37, "")}


def chromium() -> str:
    """The program's path. Skips the test, saying so, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and REQUIRED not in os.environ:
        pytest.skip(f"needs one of {', '.join(NAMES)}, which is not installed")
    assert found is not None, f"{REQUIRED} is set, and none of {', '.join(NAMES)} is installed"
    return found


class Browser:
    """A process of Chromium, until `close`."""

    def __init__(self) -> None:
        program = chromium()
        self.profile = tempfile.mkdtemp(prefix="adrpo-chromium-")
        read_there, self.write_here = os.pipe()
        self.read_here, write_there = os.pipe()
        # Chromium reads its descriptor 3 and writes to 4; the shell puts ours there.
        start = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        words = [program, *ARGUMENTS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", start, "bash", *words],
            pass_fds=(read_there, write_there),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_there)
        os.close(write_there)
        self.events: list[dict[str, Any]] = []
        self._buffer, self._number = b"", 0

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.write_here)  # which ends it
        os.close(self.read_here)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol. AssertionError where it fails."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.write_here, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == self._number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next event of this name, or one that came since the last command was sent."""
        known = next((each for each in self.events if each["method"] == event), None)
        return known or self._until(lambda message: message.get("method") == event)

    def _until(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = self._read()
            if "method" in message:
                self.events.append(message)
            if is_wanted(message):
                return message

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self.read_here, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def page(self, file: Path, **size: int) -> Page:
        return Page(self, file, **size)


class Page:
    """A file, open. theme: what the system is said to prefer."""

    def __init__(
        self, browser: Browser, file: Path, width: int = 1280, height: int = 900, theme: str = ""
    ) -> None:
        self.browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.send("Target.attachToTarget", targetId=target, flatten=True)
        self.target, self.session = target, attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        self.prefer(theme or "light")
        browser.events.clear()
        self.send("Page.navigate", url=file.resolve().as_uri())
        browser.wait_for("Page.loadEventFired")
        self.send("Page.bringToFront")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def prefer(self, theme: str, media: str = "") -> None:
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it becomes."""
        told = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        code, text = KEYS[key]
        for _ in range(times):
            of = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            kind = "keyDown" if text else "rawKeyDown"
            self.send("Input.dispatchKeyEvent", type=kind, text=text, **of)
            self.send("Input.dispatchKeyEvent", type="keyUp", **of)
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def focus(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")

    def focused(self) -> str:
        """What has the focus, in words: its tag, its id, its text."""
        return self.value(
            "[document.activeElement.tagName, document.activeElement.id, "
            "document.activeElement.textContent.trim()].filter(Boolean).join(' ')"
        )

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a selector that are to be seen."""
        return self.value(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".filter(e => e.getClientRects().length).map(e => e.textContent.trim())"
        )

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, but for what lies inside it."""
        sent = [each for each in self.browser.events if each["method"].startswith("Network.requ")]
        urls = [each["params"]["request"]["url"] for each in sent if "request" in each["params"]]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Errors and violations of the policy that the page has logged."""
        found = []
        for each in self.browser.events:
            if each["method"] == "Log.entryAdded":
                found.append(each["params"]["entry"]["text"])
            if each["method"] == "Runtime.exceptionThrown":
                found.append(str(each["params"]["exceptionDetails"]))
        return found

    def screenshot(self, to: Path, *, whole: bool = False) -> None:
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        to.write_bytes(base64.b64decode(told["data"]))

    def pdf(self, to: Path) -> None:
        told = self.send("Page.printToPDF", printBackground=True)
        to.write_bytes(base64.b64decode(told["data"]))
