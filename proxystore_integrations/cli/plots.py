"""Small plots as SVG text: enough for a report in one file that needs nothing else to be looked at."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["COLOURS", "Line", "bars", "lines"]

COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 720, 320, 70, 40, 46, 52
_BAR = 90.0  # wider ones say no more
_FONT = "font-family='system-ui, sans-serif' font-size='12'"


class Line(NamedTuple):
    """One curve.

    Attributes:
        name: for the legend.
        points: x and y, both positive.
    """

    name: str
    points: Sequence[tuple[float, float]]


def lines(
    title: str,
    curves: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Curves on logarithmic axes.

    Args:
        title: above it.
        curves: at least one, with at least one point.
        x_label: below it.
        y_label: unit of the other axis.
        x_ticks: place and text.
        marks: vertical lines, place and text.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_of = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)))
    y_of = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    tick = low
    while tick <= high * 1.001:
        y = y_of(tick)
        parts.append(f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>")
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:g}", "end"))
        tick *= 10
    for place, name in x_ticks:
        parts.append(_text(x_of(place), _HEIGHT - _BOTTOM + 18, name))
    for place, name in marks:
        x = x_of(place)
        ends = f"x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_HEIGHT - _BOTTOM}'"
        parts.append(f"<line {ends} stroke='#555' stroke-dasharray='4'/>")
        parts.append(_text(x + 4, _TOP + 12, name, "start"))
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in curve.points)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts.extend(
            f"<circle cx='{x_of(x):.1f}' cy='{y_of(y):.1f}' r='3' fill='{colour}'/>" for x, y in curve.points
        )
    return _frame(title, parts, [curve.name for curve in curves], x_label, y_label)


def bars(
    title: str,
    names: Sequence[str],
    groups: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    y_label: str,
) -> str:
    """Stacked bars.

    Args:
        title: above it.
        names: below each bar.
        groups: the parts of the bars, from the bottom up, each with a name and a height for each bar.
        x_label: below it.
        y_label: of the heights.
    """
    totals = [sum(heights[i] for _, heights in groups) for i in range(len(names))]
    top = max(totals, default=0) or 1
    step = (_WIDTH - _RIGHT - _LEFT) / max(len(names), 1)
    room = _HEIGHT - _BOTTOM - _TOP
    parts = []
    for part in range(5):
        y = _HEIGHT - _BOTTOM - room * part / 4
        parts.append(f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>")
        parts.append(_text(_LEFT - 6, y + 4, f"{top * part / 4:.3g}", "end"))
    for i, name in enumerate(names):
        x, base = _LEFT + step * i, float(_HEIGHT - _BOTTOM)
        for index, (group, heights) in enumerate(groups):
            height = room * heights[i] / top
            base -= height
            width = min(step * 0.8, _BAR)
            area = (
                f"x='{x + (step - width) / 2:.1f}' y='{base:.1f}' width='{width:.1f}' height='{height:.1f}'"
            )
            told = html.escape(f"{name}, {group}: {heights[i]:.3g}")
            parts.append(f"<rect {area} fill='{COLOURS[index]}'><title>{told}</title></rect>")
        parts.append(_text(x + step / 2, _HEIGHT - _BOTTOM + 18, name))
    return _frame(title, parts, [name for name, _ in groups], x_label, y_label)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    low, high = math.log10(low), math.log10(high)
    width = (high - low) or 1.0
    return lambda value: start + (math.log10(value) - low) / width * (end - start)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='#333'>{html.escape(text)}</text>"


def _frame(title: str, parts: list[str], legend: Sequence[str], x_label: str, y_label: str) -> str:
    entries = []
    x = float(_LEFT)
    for index, name in enumerate(legend):
        entries.append(
            f"<rect x='{x:.0f}' y='28' width='10' height='10' fill='{COLOURS[index % len(COLOURS)]}'/>"
        )
        entries.append(_text(x + 14, 37, name, "start"))
        x += 7.0 * len(name) + 30
    size = f"viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}'"
    name = html.escape(title, quote=True)
    beside = f"transform='translate(14 {_HEIGHT / 2}) rotate(-90)' text-anchor='middle' fill='#333'"
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} {_FONT} role='img' aria-label='{name}'>",
            f"<rect width='{_WIDTH}' height='{_HEIGHT}' fill='white'/>",
            f"<text x='{_LEFT}' y='17' font-weight='bold' fill='#111'>{html.escape(title)}</text>",
            *entries,
            *parts,
            _text((_LEFT + _WIDTH) / 2, _HEIGHT - 8, x_label),
            f"<text {beside}>{html.escape(y_label)}</text>",
            "</svg>",
        ]
    )
