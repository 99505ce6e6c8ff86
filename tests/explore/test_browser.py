"""The window in JupyterLab with ipympl, in a headless Chromium; skipped where these are missing."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import time
from pathlib import Path

import matplotlib.image as mpimg
import numpy as np
import pytest
from browser import CHROMIUM, Notebook
from driving import QUIET, make_cube, tree_of

NEEDED = ("ipympl", "jupyterlab", "websocket")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason=f"one of {NEEDED} is missing"
    ),
]

HERE = Path(__file__).parent
OPEN = f"""%matplotlib widget
import json, sys, warnings
warnings.filterwarnings("ignore")
sys.path[:0] = [{str(HERE.parents[1])!r}, {str(HERE)!r}, {str(HERE.parent)!r}]
from driving import QUIET, make_cube, tree_of
cube = make_cube()
tree = tree_of("merge")
"""
EXPLORE = "explorer = cube.explore_clusters(tree=tree, **QUIET)"
COUNT = """cuts = []
made = explorer._made
explorer._made = lambda state: cuts.append(state) or made(state)
"""
TELL = """figure = explorer.figure
def shares(ax, x, y):
    return (ax.transData.transform((x, y)) / figure.bbox.size).tolist()
pictures, controls = explorer._screen.pictures, explorer._screen.controls
print(json.dumps({
    "labels": explorer.clusters.labels.tolist(),
    "size": figure.bbox.size.tolist(),
    "position": explorer.position,
    "edits": explorer.edits,
    "names": explorer.clusters.settings.get("names", ()),
    "n_cuts": len(cuts),
    "level": explorer.clusters.settings["level"],
    "steps": explorer._screen._steps().tolist(),
    "value": float(controls.slider.val),
    "corner": shares(pictures.label_ax, 0, 0),
    "step": [b - a for a, b in zip(
        shares(pictures.label_ax, 0, 0), shares(pictures.label_ax, 1, 1))],
    "slider": [shares(controls.slider.ax, k, 0.5) for k in (0, controls.slider.valmax)],
    "buttons": {name: shares(controls.panel_ax, *button.get_center())
                for name, button in controls.buttons.items()},
}))
"""
SAVE = """import matplotlib.image
with explorer.lock:
    matplotlib.image.imsave("drawn.png", figure.canvas.buffer_rgba())
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    # The kernel must not turn warnings of its own packages into errors.
    before = os.environ.pop("PYTHONWARNINGS", None)
    with Notebook(folder, [OPEN, EXPLORE, COUNT, TELL, SAVE], 900, 1000) as opened:
        opened.run(0)
        opened.run(1)
        opened.wait("document.querySelector('.jupyter-matplotlib-canvas-container canvas')")
        opened.run(2)
        opened.folder = folder
        yield opened
    if before is not None:
        os.environ["PYTHONWARNINGS"] = before


def told(notebook):
    return json.loads(notebook.run(3))


def until(notebook, what):
    """What the kernel tells as soon as `what` holds."""
    end = time.monotonic() + 20
    while not what(state := told(notebook)):
        assert time.monotonic() < end, state
        time.sleep(0.2)
    return state


def place(state, rx, ry):
    """Share of width and height of the figure at which a scan position lies on the label map."""
    return [c + s * k for c, s, k in zip(state["corner"], state["step"], (ry, rx), strict=True)]


def position_in(state, label, k=3):
    found = [
        (rx, ry)
        for rx, row in enumerate(state["labels"])
        for ry, value in enumerate(row)
        if value == label
    ]
    return found[k]


def test_it_fits_900_pixels_and_the_toolbar_covers_nothing(notebook):
    state = told(notebook)
    left, top, width, height = notebook.canvas()
    assert [width, height] == state["size"]
    cell = notebook.js(
        "(() => {const b = document.querySelector('.jp-OutputArea-output:has(canvas)')"
        ".getBoundingClientRect(); return [b.left, b.right]})()"
    )
    assert cell[0] <= left
    assert left + width <= cell[1] + 1
    bars = notebook.js(
        "[...document.querySelectorAll('.jupyter-matplotlib-toolbar, .jupyter-widgets"
        ".widget-box button')].map(n => n.getBoundingClientRect()).filter(b => b.width > 0)"
        ".map(b => [b.left, b.top, b.right, b.bottom])"
    )
    assert bars
    for x0, y0, x1, y1 in bars:
        covers = min(x1, left + width) - max(x0, left) > 1 and (
            min(y1, top + height) - max(y0, top) > 1
        )
        assert not covers


def test_click_join_name_and_undo(notebook):
    state = told(notebook)
    a, b = position_in(state, 0), position_in(state, 1)
    notebook.click(*place(state, *a))
    state = until(notebook, lambda told: told["position"] == list(a))
    notebook.click(*state["buttons"]["join"])
    notebook.click(*place(state, *a))
    notebook.click(*place(state, *b))
    wanted = f"join(at=[{list(a)}, {list(b)}])"
    state = until(notebook, lambda told: told["edits"] == [wanted])
    notebook.click(*state["buttons"]["name"])
    notebook.click(*place(state, *a))
    for letter in "Au":
        notebook.press(letter, letter)
    notebook.press("Enter")
    state = until(notebook, lambda told: len(told["edits"]) == 2)
    assert state["names"][0].endswith(" Au")
    notebook.click(*state["buttons"]["look"])
    notebook.press("u", "u")
    notebook.press("u", "u")
    until(notebook, lambda told: told["edits"] == [])


def test_a_drag_over_the_slider_is_a_few_cuts(notebook):
    state = told(notebook)
    (x0, y), (x1, _) = state["slider"]
    at = x0 + (x1 - x0) * state["value"] / (len(state["steps"]) - 1)
    notebook.mouse("mouseMoved", at, y, "none")
    notebook.mouse("mousePressed", at, y)
    for k in range(25):
        notebook.mouse("mouseMoved", at + (x0 - at) * (k + 1) / 25, y)
    notebook.mouse("mouseReleased", x0, y)
    after = until(notebook, lambda told: told["level"] == told["steps"][0])
    assert after["n_cuts"] - state["n_cuts"] <= 8  # of 25 events
    assert (
        make_cube().explore_clusters(tree=tree_of("merge"), **QUIET)._screen._steps()[0]
        == (after["steps"][0])
    )


def test_the_page_shows_what_was_drawn_last(notebook):
    """Pictures that overtake each other on their way to the page must leave nothing behind."""
    state = told(notebook)
    for name in ("paint", "erase", "join", "drop", "split", "look"):
        notebook.click(*state["buttons"][name])

    def differs():
        notebook.run(4)
        drawn = mpimg.imread(notebook.folder / "drawn.png")
        page = notebook.js(
            "document.querySelector('.jupyter-matplotlib-canvas-container canvas')"
            ".toDataURL('image/png')"
        )
        shown = mpimg.imread(io.BytesIO(base64.b64decode(page.partition(",")[2])), format="png")
        assert shown.shape == drawn.shape
        return (np.abs(shown - drawn).max(axis=2) > 0.05).mean()

    end = time.monotonic() + 20
    while differs() > 1e-4:
        assert time.monotonic() < end
        time.sleep(0.5)
