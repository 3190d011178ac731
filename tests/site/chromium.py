"""A headless Chromium, driven by its own protocol."""

import asyncio
import base64
import json
import pathlib
import shutil
import subprocess
import urllib.request

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A tab of a headless Chromium: it opens pages at a width, evaluates, and keeps what goes wrong."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.errors, self._number = folder, [], 0

    async def __aenter__(self):
        from tornado.websocket import websocket_connect

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
        ]
        self._log = (self.folder / "chromium.log").open("w")
        self._process = subprocess.Popen(
            [FOUND, *flags, f"--user-data-dir={self.folder / 'profile'}", "about:blank"],
            stdout=self._log,
            stderr=self._log,
        )
        port = self.folder / "profile" / "DevToolsActivePort"
        for _ in range(600):
            if port.exists() and port.read_text().strip():
                break
            assert self._process.poll() is None, (self.folder / "chromium.log").read_text()
            await asyncio.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        self._socket = await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        return self

    async def __aexit__(self, *_):
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        self._log.close()

    async def call(self, method, **params):
        """Ask for something, and return the answer."""
        self._number += 1
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.read_message(), 60))
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"])[:500])

    async def open(self, address, width):
        """Open a page in a window of this width, and wait until it is loaded."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression):
        """Return the value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression, tries=300):
        """Wait until an expression holds, and return its value."""
        for _ in range(tries):
            if value := await self.evaluate(expression):
                return value
            await asyncio.sleep(0.1)
        raise AssertionError(f"never: {expression}; errors: {self.errors}")

    async def picture(self, file, height=900):
        """Write what the window shows."""
        clip = {"x": 0, "y": 0, "width": await self.evaluate("innerWidth"), "height": height, "scale": 1}
        answer = await self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        pathlib.Path(file).write_bytes(base64.b64decode(answer["data"]))
