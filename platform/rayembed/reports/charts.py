"""Charts as small inline SVG: curves, maps of vectors, bars and radars.

Colours and type come from the page's style sheet through classes, so a chart is readable on dark and light
pages and needs nothing from outside.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from rayembed.reports.metrics import Points, StageSpan


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """First two principal components, each axis stretched to [-1, 1]; (N, D) -> (N, 2).

    The sign of each axis is chosen so that its largest coordinate is positive: the picture is repeatable.
    """
    centred = np.asarray(vectors, dtype=np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = np.zeros((len(centred), 2))
    width = min(2, len(singular))
    coordinates[:, :width] = left[:, :width] * singular[:width]
    largest = coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]]
    coordinates *= np.where(largest < 0, -1.0, 1.0)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    half_width = (high - low) / 2
    # An axis without any spread is rounding noise and stays a line.
    return (coordinates - (low + high) / 2) / np.maximum(half_width, max(half_width.max() * 1e-6, 1e-12))


_WIDTH, _HEIGHT = 600, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 34
_MAX_POINTS = 600
PALETTE_SIZE = 8

_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """A curve; `color` is an index into the palette, `faint` marks the raw values behind a smooth one."""

    points: Points
    color: int = 0
    faint: bool = False


def line_chart(title: str, lines: Sequence[Line], spans: Sequence[StageSpan]) -> Markup:
    """Curves over training steps, with the stages marked.

    Args:
        title: read out by screen readers.
        lines: at least one with points.
        spans: stages; each gets a label and a dividing line.
    """
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    low, high = min(0.0, min(values)), max(values)
    y_ticks = _ticks(low, high if high > low else low + 1.0)
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(step: float) -> float:
        return _LEFT + (step - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_grid(x, y, [tick for tick in _ticks(x_low, x_high) if x_low <= tick <= x_high], y_ticks)]
    for position, span in enumerate(spans):
        left, right = x(span.first), x(span.last)
        if position:
            parts.append(element("line", cls="stage", x1=left, x2=left, y1=_TOP - 8, y2=_HEIGHT - _BOTTOM))
        label = escape(span.name)
        parts.append(
            Markup('<text class="stage-name" x="{:.1f}" y="14">{}</text>').format((left + right) / 2, label)
        )
    for line in lines:
        stride = max(1, len(line.points) // _MAX_POINTS)
        path = " ".join(
            f"{x(step):.1f},{y(value):.1f}" for step, value in line.points[::stride] if math.isfinite(value)
        )
        kind = "curve faint" if line.faint else "curve"
        parts.append(element("polyline", cls=f"{kind} c{line.color % PALETTE_SIZE}", points=path))
        if len(line.points) == 1 and path:  # a line of one point has no length to be seen
            [(step, value)] = line.points
            parts.append(
                element("circle", cls=f"dot c{line.color % PALETTE_SIZE}", cx=x(step), cy=y(value), r=3.2)
            )
    return svg(title, _WIDTH, _HEIGHT, parts)


def scatter(title: str, coordinates: np.ndarray, labels: Sequence[str], order: Sequence[str]) -> Markup:
    """Points in [-1, 1]², coloured by label; `order` gives each label its colour. coordinates: (N, 2)."""
    side, margin = 420, 14
    color = {label: position % PALETTE_SIZE for position, label in enumerate(order)}
    scale = side / 2 - margin
    parts = [element("rect", cls="frame", x=0.5, y=0.5, width=side - 1, height=side - 1, rx=8)]
    for (horizontal, vertical), label in zip(coordinates.tolist(), labels, strict=True):
        circle = '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>'
        x, y = side / 2 + horizontal * scale, side / 2 - vertical * scale
        parts.append(Markup(circle).format(color[label], x, y, label))
    return svg(title, side, side, parts)


def _grid(x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Markup:
    parts = []
    for tick in y_ticks:
        parts.append(element("line", cls="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(tick), y2=y(tick)))
        text = '<text class="tick" text-anchor="end" x="{}" y="{:.1f}">{}</text>'
        parts.append(Markup(text).format(_LEFT - 7, y(tick) + 4, _number(tick)))
    for tick in x_ticks:
        text = '<text class="tick" text-anchor="middle" x="{:.1f}" y="{}">{}</text>'
        parts.append(Markup(text).format(x(tick), _HEIGHT - _BOTTOM + 18, _number(tick)))
    return Markup("").join(parts)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(position * step, 12) for position in range(first, last + 1)]


def _number(value: float) -> str:
    if value and abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.10g}"


def element(name: str, *, cls: str, **attributes: float | str) -> Markup:
    """One SVG element; numbers are written with one decimal, texts are escaped."""
    written = [
        f'{key}="{value:.1f}"' if isinstance(value, float) else f'{key}="{escape(value)}"'
        for key, value in attributes.items()
    ]
    return Markup(f'<{name} class="{cls}" {" ".join(written)}/>')


def svg(title: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    """A picture of the given size; `title` is read out by screen readers."""
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)
    return opening + Markup("").join(parts) + Markup("</svg>")


_BARS_WIDTH, _LABEL, _BAR, _GAP = 720, 230, 13, 9
_RADIUS, _SIDE = 150, 460


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> Markup:
    """Horizontal bars from 0 to 1, one group a name and one bar a series; None leaves a gap.

    Args:
        title: read out by screen readers.
        names: labels of the groups.
        series: name of the series -> one value a group.
    """
    group = _BAR * len(series) + _GAP
    height = group * len(names) + _GAP
    scale = _BARS_WIDTH - _LABEL - 60
    parts = []
    for position, name in enumerate(names):
        top = _GAP + position * group
        label = '<text class="tick" text-anchor="end" x="{}" y="{:.1f}">{}</text>'
        middle = top + _BAR * len(series) / 2 + 4
        parts.append(Markup(label).format(_LABEL - 8, middle, name))
        for color, values in enumerate(series.values()):
            value = values[position]
            if value is None:
                continue
            y = top + color * _BAR
            width = max(0.0, min(1.0, value)) * scale
            parts.append(
                element(
                    "rect", cls=f"bar c{color % PALETTE_SIZE}", x=_LABEL, y=y, width=width, height=_BAR - 2
                )
            )
            text = '<text class="tick" x="{:.1f}" y="{:.1f}">{:.3f}</text>'
            parts.append(Markup(text).format(_LABEL + width + 5, y + _BAR - 3, value))
    return svg(title, _BARS_WIDTH, height, parts)


def radar(title: str, axes: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> Markup:
    """One axis from 0 (centre) to 1 for each name; a series without a value on some axis is left out.

    Args:
        title: read out by screen readers.
        axes: at least three names.
        series: name of the series -> one value an axis.
    """
    centre_x, centre_y = _BARS_WIDTH / 2, _SIDE / 2
    angles = [2 * math.pi * position / len(axes) - math.pi / 2 for position in range(len(axes))]

    def points(values: Sequence[float]) -> str:
        lengths = [_RADIUS * value for value in values]
        places = [
            (centre_x + length * math.cos(angle), centre_y + length * math.sin(angle))
            for angle, length in zip(angles, lengths, strict=True)
        ]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    rings = [
        element("polygon", cls="frame", points=points([share] * len(axes))) for share in (0.25, 0.5, 0.75, 1)
    ]
    labels = []
    for angle, name in zip(angles, axes, strict=True):
        x = centre_x + (_RADIUS + 16) * math.cos(angle)
        y = centre_y + (_RADIUS + 16) * math.sin(angle)
        anchor = "middle" if abs(math.cos(angle)) < 0.2 else "start" if math.cos(angle) > 0 else "end"
        label = '<text class="tick" text-anchor="{}" x="{:.1f}" y="{:.1f}">{}</text>'
        labels.append(Markup(label).format(anchor, x, y + 4, name))
    shapes = []
    for color, values in enumerate(series.values()):
        present = [max(0.0, min(1.0, value)) for value in values if value is not None]
        if len(present) == len(axes):
            shapes.append(element("polygon", cls=f"shape c{color % PALETTE_SIZE}", points=points(present)))
    return svg(title, _BARS_WIDTH, _SIDE, [*rings, *labels, *shapes])
