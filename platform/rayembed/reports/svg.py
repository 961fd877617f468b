"""Small inline SVG charts; colours and type come from the page's style sheet through classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from rayembed.reports.metrics import Points, StageSpan

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
