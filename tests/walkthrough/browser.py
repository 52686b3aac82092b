"""A headless Chromium, driven by the DevTools protocol over a pipe, with nothing else installed.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe"
).split()
PATIENCE = 180.0  # seconds


@contextmanager
def browser(profile: Path) -> Iterator["Browser"]:
    """Start a browser with an empty profile, and end it."""
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()

    def connect() -> None:  # the browser reads from 3 and writes to 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_child, from_child)]
        for end, number in zip(ends, (3, 4), strict=True):
            os.dup2(end, number)

    assert PROGRAM is not None
    process = subprocess.Popen(
        [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,  # no other is inheritable
        preexec_fn=connect,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Browser(from_parent, to_parent)
    finally:
        os.close(from_parent)  # which the browser takes for its end
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_parent)


class Browser:
    """Sends commands and collects events; `page` opens a page."""

    def __init__(self, write_end: int, read_end: int):
        self._write_end, self._read_end = write_end, read_end
        self._unread = b""
        self._sent = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write_end, json.dumps(message).encode("utf-8") + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read_end], [], [], end - time.monotonic())
            assert ready, "the browser does not answer"
            received = os.read(self._read_end, 1 << 20)
            assert received, "the browser ended"
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\0")
        return json.loads(line)

    def page(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
        """Open a file in a new tab."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height, dark)
        page.send("Page.navigate", url=path.as_uri())
        return page


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the tab."""
        return self._browser.send(method, self._session, **parameters)

    def resize(self, width: int, height: int, dark: bool) -> None:
        """Set the size of the window, and whether the user prefers dark colours."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        done = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.events()}"
            time.sleep(0.02)

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """Return what happened in the tab so far: the parameters of these events, or of all."""
        self.send("Runtime.evaluate", expression="0")  # whatever came before is read
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in mine if not methods or event["method"] in methods]

    def press(self, key: str) -> None:
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36}
        text = {"text": "\r"} if key == "Enter" else {}
        event = {"key": key, "windowsVirtualKeyCode": codes[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self) -> bytes:
        """Return a picture of the whole page, a PNG."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])
