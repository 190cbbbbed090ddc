"""The map as a slide: imagery and land use side by side, with a legend, areas, a scale and an arrow to the north."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from landseg.grid import Grid
from landseg.legend import Legend
from landseg.outputs import ClassArea
from landseg.outputs.drafts import writing

PICTURE_PX = 1600
"""Longest side of the map that it is drawn from."""

# All lengths are in inches on a slide of 16:9, all positions (left, bottom).
WIDTH, HEIGHT, DPI = 40 / 3, 7.5, 150
MARGIN = 0.6
PANELS = (MARGIN, 0.85, 8.7, 5.5)
"""Left, bottom, width and height of the room for imagery and map."""
PANEL_GAP = 0.3
CAPTION_WIDTH = 1.0
CAPTION_HEIGHT = 0.32
LEGEND_LEFT, LEGEND_RIGHT = 9.9, WIDTH - MARGIN
LEGEND_ROW = 0.56
LEGEND_CLASSES = 10
"""How many classes have a line of their own."""
SCALE_WIDTH = 1.7
FOOT_HEIGHT = 0.95
"""Of the scale and the arrow to the north, with the space above them."""

MERGED = "; the map shows every pixel, the areas count small polygons to the neighbours that they joined"

INK, GREY, RULE = "#1f2933", "#66727f", "#c9d0d6"


def draw_picture(
    path: Path,
    *,
    labels: NDArray[np.uint8],
    imagery: NDArray[np.uint8] | None,
    grid: Grid,
    legend: Legend,
    areas: Sequence[ClassArea],
    merged: bool,
    title: str,
    source: str,
) -> None:
    """Draw a map as a PNG of 2000 x 1125 pixels.

    Parameters
    ----------
    path
        A draft; the caller renames it when it is complete.
    labels
        (rows, cols) uint8, 0 = nodata, which stays white; decimated to about the picture's resolution.
    imagery
        (rows, cols, 3) uint8 of the same ground, or None to draw the map alone.
    grid
        Pixels of ``labels`` on the ground. They are drawn as they are stored, so in a rotated grid the arrow turns.
    legend
        Names and colours.
    areas
        What the legend says of each class; where they are many, only the largest ten are named.
    merged
        Whether ``areas`` are of polygons of which small ones joined a neighbour. ``labels`` don't show that; the small
        print says so.
    title, source
        Heading, and the small print below.

    Raises
    ------
    DiskError
        If the disk is full or the folder can't be written to.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    slide = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    slide.set_axis_off()

    pictures = {"Land use": _coloured(labels, legend)}
    if imagery is not None:
        pictures = {"Imagery": imagery, **pictures}
    height_m, width_m = grid.shape[0] * grid.pixel_size_m[0], grid.shape[1] * grid.pixel_size_m[1]
    boxes = _panel_boxes(len(pictures), height_m / width_m)
    for (caption, picture), box in zip(pictures.items(), boxes, strict=True):
        _draw_panel(slide, caption, picture, box)

    _write(slide, (MARGIN, HEIGHT - 0.62), title, WIDTH - 2 * MARGIN, size=25, weight="bold")
    _write(slide, (MARGIN, 0.42), source + (MERGED if merged else ""), WIDTH - 2 * MARGIN, size=10, color=GREY)
    legend_bottom = _draw_legend(slide, legend, areas)
    foot = min(boxes[-1][1], legend_bottom - FOOT_HEIGHT)
    _draw_scale(slide, foot, metres_per_inch=width_m / boxes[0][2])
    _draw_north(slide, foot, grid.north)
    with writing(path):
        figure.savefig(path, format="png", metadata={"Title": title, "Software": "landseg"})


def _coloured(labels: NDArray[np.uint8], legend: Legend) -> NDArray[np.uint8]:
    """Look up (rows, cols, 4) colours; what is no class is transparent."""
    colours = np.zeros((256, 4), np.uint8)
    for c in legend:
        colours[c.class_id] = (*c.rgb, 255)
    return colours[labels]


def _panel_boxes(count: int, aspect: float) -> list[tuple[float, float, float, float]]:
    """Place panels of height / width ``aspect`` beside or below each other, whichever lets them be larger."""
    left, bottom, width, height = PANELS
    sizes = []
    for rows, cols in {(1, count), (count, 1)}:
        room_x = (width - (cols - 1) * PANEL_GAP) / cols
        room_y = (height - (rows - 1) * PANEL_GAP) / rows - CAPTION_HEIGHT
        sizes.append((min(room_x, room_y / aspect), rows, cols))
    panel_width, rows, cols = max(sizes)
    # A line of pixels is still to be seen.
    panel_height, panel_width = max(panel_width * aspect, 0.02), max(panel_width, 0.02)
    # Captions of narrow panels need room, too.
    step_x, step_y = max(panel_width, CAPTION_WIDTH) + PANEL_GAP, panel_height + CAPTION_HEIGHT + PANEL_GAP
    left += (width - cols * step_x + PANEL_GAP) / 2
    top = bottom + height - CAPTION_HEIGHT
    return [
        (left + col * step_x, top - panel_height - row * step_y, panel_width, panel_height)
        for row in range(rows)
        for col in range(cols)
    ]


def _draw_panel(slide: Axes, caption: str, picture: NDArray[np.uint8], box: tuple[float, float, float, float]) -> None:
    left, bottom, width, height = box
    panel = slide.inset_axes((left, bottom, width, height), transform=slide.transData)
    panel.imshow(picture, aspect="auto")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(color=RULE, linewidth=0.8)
    slide.text(left, bottom + height + 0.1, caption, size=12.5, color=GREY)


def _draw_legend(slide: Axes, legend: Legend, areas: Sequence[ClassArea]) -> float:
    """List the classes from the panels' upper edge down, then the total; give the height of its lower end."""
    named = sorted(areas, key=lambda a: a.area_m2, reverse=True)[:LEGEND_CLASSES]
    rows = [(legend[a.class_id].colour, a.class_name, a.area_m2, a.share) for a in areas if a in named]
    if rest := [a for a in areas if a not in named]:
        rows.append(("none", f"{len(rest)} more", sum(a.area_m2 for a in rest), sum(a.share for a in rest)))
    _, bottom, _, height = PANELS
    top = bottom + height - CAPTION_HEIGHT
    row_height = min(LEGEND_ROW, (top - bottom - FOOT_HEIGHT) / (len(rows) + 1))
    scale = max(row_height / LEGEND_ROW, 0.7)
    for index, (colour, name, area_m2, share) in enumerate(rows):
        y = top - index * row_height
        if colour != "none":
            swatch = Rectangle((LEGEND_LEFT, y - 0.32 * scale), 0.32 * scale, 0.32 * scale, facecolor=colour)
            swatch.set(edgecolor=RULE, linewidth=0.8)
            slide.add_patch(swatch)
        _write_row(slide, y, name, area_m2, share, scale)
    y = top - len(rows) * row_height
    slide.plot([LEGEND_LEFT, LEGEND_RIGHT], [y + 0.05 * scale] * 2, color=RULE, linewidth=0.8)
    y -= 0.07 * scale
    _write_row(slide, y, "Total", sum(a.area_m2 for a in areas), sum(a.share for a in areas), scale)
    return y - 0.36 * scale


def _write_row(slide: Axes, y: float, name: str, area_m2: float, share: float, scale: float) -> None:
    left = LEGEND_LEFT + 0.47 * scale
    upper, lower = y - 0.08 * scale, y - 0.275 * scale
    _write(slide, (left, upper), name, LEGEND_RIGHT - left - 0.85 * scale, size=13 * scale)
    _write(slide, (LEGEND_RIGHT, upper), f"{share * 100:.1f} %", 0.85, size=13 * scale, ha="right")
    _write(slide, (left, lower), _hectares(area_m2), 2, size=10.5 * scale, color=GREY)


def _hectares(area_m2: float) -> str:
    hectares = area_m2 / 1e4
    decimals = 0 if hectares >= 100 or hectares == 0 else 1 if hectares >= 1 else 2
    return f"{hectares:,.{decimals}f} ha"


def _draw_scale(slide: Axes, foot: float, metres_per_inch: float) -> None:
    metres = _round_length(SCALE_WIDTH * metres_per_inch)
    right = LEGEND_LEFT + metres / metres_per_inch
    xs, ys = [LEGEND_LEFT, LEGEND_LEFT, right, right], [foot + 0.09, foot, foot, foot + 0.09]
    slide.plot(xs, ys, color=INK, linewidth=1.4, solid_joinstyle="miter", solid_capstyle="butt")
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    _write(slide, ((LEGEND_LEFT + right) / 2, foot + 0.2), text, SCALE_WIDTH, size=11, ha="center")


def _round_length(most_m: float) -> float:
    """Give the largest 1, 2 or 5 times a power of ten that is not above ``most_m``."""
    power = 10.0 ** math.floor(math.log10(most_m))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= most_m)


def _draw_north(slide: Axes, foot: float, north: tuple[float, float]) -> None:
    along, across = np.array(north), np.array([north[1], -north[0]])
    centre = np.array([LEGEND_RIGHT - 0.3, foot + 0.24])
    tip, notch = centre + 0.26 * along, centre - 0.12 * along
    for side, colour in ((-1, INK), (1, "white")):
        tail = centre - 0.24 * along + side * 0.15 * across
        slide.add_patch(Polygon([tip, tail, notch], closed=True, facecolor=colour, edgecolor=INK, linewidth=1))
    x, y = centre + 0.4 * along
    _write(slide, (x, y), "N", 0.3, size=11, ha="center", weight="bold")


def _write(
    slide: Axes,
    position: tuple[float, float],
    text: str,
    room: float,
    *,
    size: float,
    color: str = INK,
    weight: str = "normal",
    ha: str = "left",
) -> None:
    """Write a line, shortened to the room it has."""
    # Names are the user's: a dollar sign in them starts no formula.
    line = slide.text(*position, text, size=size, color=color, weight=weight, ha=ha, va="center", parse_math=False)
    while len(text) > 1 and line.get_window_extent().width > room * DPI:
        text = text[:-1].rstrip()
        line.set_text(text + "…")
