"""A real Chromium, driven through its debugging pipe: clicks, keys, the pointer, screenshots, console errors, requests.

It needs nothing but the browser. Every wait ends, and the browser with all its processes is gone when the block is left.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "chromium is not installed (apt-get install chromium)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium speaks on the descriptors 3 and 4 of its process.
EXEC = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowDown": 40, "ArrowRight": 39}


class Browser:
    """One browser with one page.

    Args:
        wait: Seconds that any answer may take.
        patience: Seconds that anything asked for may take to show.
    """

    def __init__(self, wait: float = 60, patience: float = 20) -> None:
        self.wait, self.patience = wait, patience
        self.errors: list[str] = []
        """What the page's console, or an exception, complained of."""
        self.requests: list[str] = []
        """Addresses that the page asked for, its own file and data inside it left out."""
        self._calls = 0
        self._held = b""
        self._loaded = False

    def __enter__(self) -> Browser:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", EXEC, str(child_in), str(child_out), *command],
            pass_fds=(child_in, child_out), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._folder.name},
        )  # fmt: skip
        os.close(child_in)
        os.close(child_out)
        try:
            self._session = ""
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for descriptor in (self._in, self._out):
            os.close(descriptor)
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the debugging protocol, and its answer."""
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data, until = json.dumps(message).encode() + b"\0", time.monotonic() + self.wait
        while data:
            data = data[os.write(self._out, data) :]
        while (answer := self._next(until)).get("id") != message["id"]:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, page: Path) -> None:
        """Loads a file, and waits until its scripts have run and its plots are drawn."""
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + self.wait
        while not self._loaded:
            self._next(until)
        self.settle()

    def settle(self) -> None:
        """Waits until what was asked for is on the screen: two frames."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))")

    def js(self, code: str) -> Any:
        """The value of an expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"].get("exception", {}).get("description", code))
        return answer["result"].get("value")

    def screen(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Sets the window's size and what the system prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.settle()

    def until(self, code: str, wanted: Any = True) -> None:
        """Waits for an expression to have a value: what is asked for is drawn when the machine comes to it.

        Raises:
            AssertionError: If it has another one to the end.
        """
        end = time.monotonic() + self.patience
        while (value := self.js(code)) != wanted:
            assert time.monotonic() < end, f"{code} is {value!r} after {self.patience:g} s: wanted {wanted!r}"
            time.sleep(0.02)

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is, after scrolling to it."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({ block: 'center', behavior: 'instant' }); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.settle()
        return x, y

    def point(self, x: float, y: float, code: str = "true") -> None:
        """Moves the pointer, and again until an expression is true: a busy browser may still aim at what was there before."""
        end = time.monotonic() + self.patience
        while True:
            for dx in (3, 0):  # a pointer that was there already must move to be seen
                self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + dx, y=y)
            self.settle()
            if self.js(code):
                return
            assert time.monotonic() < end, f"{code} is not true {self.patience:g} s after pointing at {x:g}, {y:g}"

    def click(self, selector: str) -> None:
        """Clicks into the middle of an element with the pointer, until it has had the click."""
        self.js(
            f"window.had = false, document.querySelector({json.dumps(selector)})"
            ".addEventListener('click', () => { window.had = true; }, { once: true })"
        )
        end = time.monotonic() + self.patience
        while not self.js("window.had"):
            assert time.monotonic() < end, f"{selector} cannot be clicked: something is over it"
            x, y = self.middle(selector)
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            self.settle()

    def press(self, key: str) -> None:
        """Presses a key."""
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **shared)
        if key in (" ", "Enter"):
            self.call("Input.dispatchKeyEvent", type="char", text="\r" if key == "Enter" else key, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Writes what the window shows, or the whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._in], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {self.wait:g} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser is gone (exit code {self._process.poll()})")
            self._held += part
        first, _, self._held = self._held.partition(b"\0")
        message = json.loads(first)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(part.get("value", part)) for part in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
            ("file:", "data:", "about:")
        ):
            self.requests.append(params["request"]["url"])
