"""A notebook in JupyterLab in a headless Chromium, driven through Chromium's own protocol."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from itertools import count
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PANEL = "[...(window.jupyterapp?.shell?.widgets('main') ?? [])][0]"
"""The notebook, in JavaScript."""

LIMIT = 90
"""Seconds after which something that does not happen is an error."""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def wait_for(found, what):
    """The first true value of a function."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with suppress(OSError):
            value = found()
            if value:
                return value
        time.sleep(0.1)
    raise TimeoutError(f"after {LIMIT} s there is no {what}")


def read_json(url):
    with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310
        return json.load(reply)


class Notebook:
    """One notebook, opened in a window of a given width and height."""

    def __init__(self, folder, cells, width=1200, height=900):
        folder = Path(folder)
        body = {
            "cells": [
                {"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [],
                 "execution_count": None, "source": text}
                for k, text in enumerate(cells)
            ],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                        "language": "python"}},
            "nbformat": 4, "nbformat_minor": 5,
        }  # fmt: skip
        (folder / "page.ipynb").write_text(json.dumps(body))
        port, debug = free_port(), free_port()
        self._running = []
        self._numbers = count(1)
        try:
            self._start(
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=",
                "--ServerApp.disable_check_xsrf=True", "--LabApp.expose_app_in_browser=True",
                "--LabApp.extension_manager=readonly", f"--ServerApp.root_dir={folder}",
                log=folder / "jupyter.log",
            )  # fmt: skip
            wait_for(lambda: read_json(f"http://127.0.0.1:{port}/api/status"), "JupyterLab")
            self._start(
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--disable-dev-shm-usage", f"--remote-debugging-port={debug}",
                "--remote-allow-origins=*", f"--user-data-dir={folder / 'chromium'}",
                f"--window-size={width},{height}", "about:blank", log=folder / "chromium.log",
            )  # fmt: skip
            pages = wait_for(
                lambda: [
                    page
                    for page in read_json(f"http://127.0.0.1:{debug}/json")
                    if page["type"] == "page"
                ],
                "page of Chromium",
            )
            from websocket import create_connection

            self._socket = create_connection(pages[0]["webSocketDebuggerUrl"], timeout=LIMIT)
            self.resize(width, height)
            self.call("Emulation.setFocusEmulationEnabled", enabled=True)
            url = f"http://127.0.0.1:{port}/lab/tree/page.ipynb?reset"
            self.call("Page.navigate", url=url)
            self.wait(
                f"{PANEL}?.content?.widgets?.length && {PANEL}.sessionContext.session?.kernel"
            )
            if self.js("window.jupyterapp.shell.leftCollapsed === false"):
                self.command("application:toggle-left-area")
            self.js(f"window.jupyterapp.shell.activateById({PANEL}.id); true")
            self.js(f"{PANEL}.content.node.focus(); true")
            self.wait("window.jupyterapp.shell.currentWidget")
        except BaseException:
            self.close()
            raise

    def _start(self, *command, log):
        with open(log, "wb") as out:
            self._running.append(subprocess.Popen(command, stdout=out, stderr=out))

    def close(self):
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if hasattr(self, "_socket"):
            self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    # --- the protocol ------------------------------------------------------------------------

    def call(self, method, **params):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            reply = json.loads(self._socket.recv())
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]

    def js(self, code):
        """The value of an expression of JavaScript in the page."""
        reply = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{code}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def wait(self, code):
        return wait_for(lambda: self.js(f"!!({code})"), code)

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def picture(self, path):
        """Write a picture of the page."""
        # JupyterLab asks whether it may bring news.
        self.js("document.querySelectorAll('[class*=Toastify]').forEach(n => n.remove()); true")
        data = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    # --- JupyterLab --------------------------------------------------------------------------

    def command(self, name):
        self.js(f"window.jupyterapp.commands.execute('{name}').then(() => true)")

    def run(self, cell):
        """Run a cell, and wait until it is done; its text output."""
        where = f"{PANEL}.content"
        self.js(f"{where}.activeCellIndex = {cell}; {where}.deselectAll(); true")
        self.command("notebook:run-cell")
        return self.js(f"{where}.widgets[{cell}].outputArea.node.innerText")

    # --- mouse and keys ----------------------------------------------------------------------

    def canvas(self):
        """Left, top, width and height of the figure in the page."""
        found = (
            "[...document.querySelectorAll('.jupyter-matplotlib-canvas-container canvas')].at(-1)"
        )
        return self.js(
            f"(() => {{const c = {found}; c.scrollIntoView({{block: 'center'}}); "
            "const b = c.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]})()"
        )

    def mouse(self, kind, x, y, button="left"):
        """An event of the mouse at shares of the width and height of the figure, from below."""
        left, top, width, height = self.canvas()
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=left + x * width, y=top + (1 - y) * height,
            button="none" if kind == "mouseMoved" and button == "none" else button,
            buttons=0 if button == "none" else 1, clickCount=0 if kind == "mouseMoved" else 1,
        )  # fmt: skip

    def click(self, x, y):
        self.mouse("mouseMoved", x, y, "none")
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def press(self, key, text=None):
        options = {"key": key, "code": key, **({"text": text} if text else {})}
        self.call("Input.dispatchKeyEvent", type="keyDown", **options)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)
