"""Bar and radar plots of scores as inline SVG, in the style of `svg`."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from rayembed.reports.svg import PALETTE_SIZE, element, svg

_WIDTH, _LABEL, _BAR, _GAP = 720, 230, 13, 9
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
    scale = _WIDTH - _LABEL - 60
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
    return svg(title, _WIDTH, height, parts)


def radar(title: str, axes: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> Markup:
    """One axis from 0 (centre) to 1 for each name; a series without a value on some axis is left out.

    Args:
        title: read out by screen readers.
        axes: at least three names.
        series: name of the series -> one value an axis.
    """
    centre_x, centre_y = _WIDTH / 2, _SIDE / 2
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
    return svg(title, _WIDTH, _SIDE, [*rings, *labels, *shapes])
