"""Where everything in the window lies, for any size of the window.

Lengths are in hundredths of an inch, which are pixels at 100 dots per inch.
"""

from __future__ import annotations

from .drawing import Cell

FIGURE_SIZE = (7.1, 6.4)
"""Width and height of the window, inches; JupyterLab has room for it in a browser of 900 pixels."""

COLUMN = 196
"""Width of the column of buttons."""

BUTTON = 28
"""Height of a button."""

CAPTION = 19
"""Height of the text above a group of buttons."""

TITLE = 20
"""Height of the title above a picture."""

STRIP = 100
"""Height of the strip with sliders and the line of text, below the pictures."""

GAP = 6

GROUPS = {
    "method": ("merge", "grow"),
    "slider moves": ("level", "number"),
    "colour": ("cluster", "size", "phase", "orientation", "purity"),
    "a click will": ("look", "join", "split", "drop", "paint", "erase", "name", "disk"),
    "": ("undo", "redo", "auto", "keep"),
}
"""Captions of the groups of buttons, and the buttons of each, from top to bottom."""

PICTURES = ("image", "labels", "pattern", "average")


def arrange(width: float, height: float) -> dict[str, Cell]:
    """Cells of everything in the window, as shares of its width and height.

    Parameters
    ----------
    width, height : float
        Size of the window in inches.

    Returns
    -------
    dict
        Left, bottom, width and height of each picture ("image", ...), of the cell of a picture with
        its title ("image cell", ...), of each slider, the column of buttons, and the line of text.
    """
    width, height = 100 * width, 100 * height
    cells: dict[str, Cell] = {}

    def put(name: str, left: float, top: float, wide: float, high: float) -> None:
        cells[name] = left / width, 1 - (top + high) / height, wide / width, high / height

    room = width - COLUMN - GAP, height - STRIP
    sides = {n: min(room[0] / n, room[1] / (4 // n) - TITLE) for n in (1, 2, 4)}
    columns = max(sides, key=lambda n: sides[n])
    step = room[0] / columns, room[1] / (4 // columns)
    for k, name in enumerate(PICTURES):
        left, top = k % columns * step[0], k // columns * step[1]
        put(f"{name} cell", left, top, *step)
        put(name, left + GAP, top + TITLE, step[0] - GAP, step[1] - TITLE - GAP / 2)

    below = height - STRIP
    put("slider cell", 0, below, room[0], 42)
    put("slider", 84, below + 4, room[0] - 84 - 106, 24)
    put("size_slider cell", 0, below + 42, room[0], 26)
    put("size_slider", 84, below + 42, room[0] - 84 - 106, 22)
    put("text", 0, below + 69, width, STRIP - 69)

    put("panel", width - COLUMN, 0, COLUMN, below)
    return cells


def arrange_buttons() -> dict[str, tuple[float, float, float, float]]:
    """Left, top, width and height of each button and caption in the column of buttons."""
    places: dict[str, tuple[float, float, float, float]] = {}
    top, wide = 2.0, (COLUMN - 2 * GAP) / 2
    for caption, names in GROUPS.items():
        high = CAPTION if caption else GAP
        places[f"{caption} caption"] = 0, top, COLUMN, high
        top += high
        for k, name in enumerate(names):
            place = k % 2 * (wide + GAP), top + k // 2 * BUTTON
            places[name] = *place, wide, BUTTON - 3
        top += -(-len(names) // 2) * BUTTON
    return places
