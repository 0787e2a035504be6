"""A headless Chromium driven over its debugging pipe: real keys, real print, no driver needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
_PATIENCE = 60.0


class Tab:
    """One page in a browser of its own; what it complains about and asks for is kept.

    Attributes:
        complaints: console errors and uncaught exceptions.
        requests: addresses the page asked for, beside itself and its own data.
    """

    def __init__(self, page: Path, width: int = 1280, height: int = 900) -> None:
        assert BROWSER is not None
        read, child_write = os.pipe()
        child_read, self._write = os.pipe()
        self._read = os.fdopen(read, "rb", buffering=0)
        profile = f"--user-data-dir={page.parent / 'tab-profile'}"
        command = [BROWSER, *QUIET, profile, "--remote-debugging-pipe", "about:blank"]
        # Chromium expects its pipe as descriptors 3 and 4.
        shell = f'exec "$@" 3<&{child_read} 4>&{child_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(child_read, child_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(child_read)
        os.close(child_write)
        self._buffer, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        (target,) = [
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._event()

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._read.close()
        os.close(self._write)

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._event()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _event(self) -> dict[str, Any]:
        limit = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            assert time.monotonic() < limit, "Chromium does not answer"
            piece = self._read.read(1 << 20)
            assert piece, "Chromium has gone"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(str(params["entry"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("data:", "file:")):
                self.requests.append(address)
        return message

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1, *, shift: bool = False) -> None:
        """Press a key as a person does."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            down = {"type": "keyDown" if text else "rawKeyDown", "key": key, "code": key}
            code = {"windowsVirtualKeyCode": _KEYS[key], "modifiers": 8 if shift else 0}
            extra = {"text": text} if text else {}
            self.call("Input.dispatchKeyEvent", **down, **code, **extra)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **code)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def prefer(self, feature: str, value: str, media: str = "") -> None:
        """Set a preference of the reader, such as prefers-color-scheme, or the medium."""
        features = [{"name": feature, "value": value}] if feature else []
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def pdf(self) -> bytes:
        """Return the page as it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])
