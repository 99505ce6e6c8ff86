"""A small scan, and a window driven by events of matplotlib."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from matplotlib.backend_bases import KeyEvent, MouseEvent
from py4DSTEM import DataCube

from py4dstem_clustering import simulate_scan

QUIET = {"progress_bar": False}
SHAPE = (24, 20)


@lru_cache
def simulation():
    return simulate_scan(SHAPE, (48, 44), n_grains=3, seed=1)


def make_cube():
    datacube = DataCube(simulation().datacube.data, name="cube")
    datacube.calibration.set_R_pixel_size(2.5)
    datacube.calibration.set_R_pixel_units("nm")
    return datacube


@lru_cache
def tree_of(method):
    return DataCube(simulation().datacube.data).get_cluster_tree(method=method, **QUIET)


def controls(explorer):
    return explorer._screen.controls


def slider(explorer):
    return explorer._screen.controls.slider


def size_slider(explorer):
    return explorer._screen.controls.size_slider


def pictures(explorer):
    return explorer._screen.pictures


def said(explorer):
    """The line of text of the window."""
    return controls(explorer).text.get_text().replace("\n", " ")


def title(explorer):
    return pictures(explorer).label_ax.get_title()


def mouse(explorer, ax, x, y, name="button_press_event", button=1):
    place = ax.transData.transform((x, y))
    MouseEvent(name, explorer.figure.canvas, *place, button)._process()


def press_mouse(explorer, ax, x, y):
    for name in ("button_press_event", "button_release_event"):
        mouse(explorer, ax, x, y, name)


def click(explorer, rx, ry, where="image_ax"):
    """Click a scan position, or a pixel of a pattern."""
    press_mouse(explorer, getattr(pictures(explorer), where), ry, rx)


def drag(explorer, places, where="label_ax"):
    """Drag over scan positions with the button of the mouse down."""
    ax = getattr(pictures(explorer), where)
    names = ["button_press_event", *["motion_notify_event"] * (len(places) - 1)]
    for name, (rx, ry) in zip(names, places, strict=True):
        mouse(explorer, ax, ry, rx, name)
    mouse(explorer, ax, *places[-1][::-1], "button_release_event")


def press(explorer, *keys):
    for key in keys:
        KeyEvent("key_press_event", explorer.figure.canvas, key)._process()


def push(explorer, name):
    """Click a button."""
    button = controls(explorer).buttons[name]
    place = np.add(button.get_xy(), (button.get_width() / 2, button.get_height() / 2))
    press_mouse(explorer, controls(explorer).panel_ax, *place)


def same_clusters(a, b):
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.seeds, b.seeds)
    assert a.settings.keys() == b.settings.keys()
    for key in ("threshold", "n_clusters", "min_size", "method", "level", "edits", "names"):
        assert a.settings.get(key) == b.settings.get(key), key
