"""Drawings as SVG whose colours are the page's: every mark has a class, and the style sheet says how it looks.

Lengths are in the drawing's own units, one for a pixel where it is shown in full size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from frostline.core.shown import visible

SHAPES = 6
COLOURS = 8
LINES = 4
CHARACTER = 7.2
"""The mean width of a character of text."""


def tag(name: str, *inner: str, **attributes: str | float | None) -> Markup:
    """An element. Text in it is escaped; `class_` stands for `class`, and `_` in other names for `-`.

    Attributes that are None are left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    content = "".join(part if isinstance(part, Markup) else escape(visible(part)) for part in inner)
    return Markup(f"<{name}{given}>{content}</{name}>")


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escape(visible(value))
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Axis:
    """A line of numbers from `low` to `high` that is drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, zero: bool = False, whole: bool = False) -> Axis:
        """An axis with room for all values, with round ticks.

        Args:
            values: what it has to hold.
            start: where its low end is drawn.
            end: where its high end is drawn.
            zero: it begins at 0 (where no value is below).
            whole: its ticks are whole numbers.
        """
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        if zero:
            low, high = min(0.0, low), max(0.0, high)
        if high - low <= abs(high) * 1e-9:
            low, high = (low, high + 1.0) if zero and low == 0 else (low - 0.5, high + 0.5)
        margin = 0.06 * (high - low)
        bottom = low if zero and low == 0 else low - margin
        if low >= 0:
            bottom = max(0.0, bottom)
        top = high + margin
        step = _round_step((top - bottom) / 6, whole)
        first, last = math.ceil(bottom / step), math.floor(top / step)
        return cls(bottom, top, start, end, tuple(number * step for number in range(first, last + 1)))

    def text(self, tick: float) -> str:
        """A tick as text, with as many figures as tell it from the next."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        decimals = next((places for places in range(9) if abs(round(step, places) - step) < step * 1e-6), 9)
        return f"{tick:,.{decimals}f}"


def _round_step(rough: float, whole: bool) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (factor * scale for scale in (power, 10 * power) for factor in (1, 2, 2.5, 5))
    step = next(step for step in steps if step >= rough * 0.999)
    if whole and step % 1:
        return 1.0 if step < 1 else 5.0  # 2.5 is the only other one that is not whole
    return step


@dataclass
class Plot:
    """A drawing with two axes.

    Attributes:
        title: what it shows, for those who do not see it.
        x: the horizontal axis; its name is `x_name`.
        y: the vertical axis; its name is `y_name`.
        marks: what is drawn, from the back to the front.
    """

    title: str
    x: Axis
    x_name: str
    y: Axis
    y_name: str
    marks: list[Markup] = field(default_factory=list)
    width: float = 560
    height: float = 340

    def add(self, name: str, *inner: str, **attributes: str | float | None) -> None:
        """Draw an element in front of all others."""
        self.marks.append(tag(name, *inner, **attributes))

    def svg(self) -> Markup:
        """The drawing."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        frame = []
        for tick in self.y.ticks:
            frame.append(tag("line", class_="grid", x1=left, x2=right, y1=self.y(tick), y2=self.y(tick)))
            frame.append(tag("text", self.y.text(tick), class_="tick end", x=left - 8, y=self.y(tick) + 4))
        for tick in self.x.ticks:
            frame.append(tag("line", class_="grid", x1=self.x(tick), x2=self.x(tick), y1=top, y2=bottom))
            frame.append(tag("text", self.x.text(tick), class_="tick mid", x=self.x(tick), y=bottom + 18))
        frame.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
        frame.append(tag("text", self.x_name, class_="name mid", x=(left + right) / 2, y=bottom + 38))
        frame.append(tag("text", self.y_name, class_="name", x=8, y=top - 10))
        return drawing(self.title, self.width, self.height, [*frame, *self.marks])


def plot(
    title: str,
    x: tuple[str, Iterable[float]],
    y: tuple[str, Iterable[float]],
    *,
    x_zero: bool = False,
    x_whole: bool = False,
    width: float = 560,
    height: float = 340,
) -> Plot:
    """An empty plot.

    Args:
        title: what it shows.
        x: the name of the horizontal axis, and all values on it.
        y: the same of the vertical axis.
        x_zero: the horizontal axis begins at 0.
        x_whole: its ticks are whole numbers.
        width: of the drawing.
        height: of the drawing.
    """
    up = Axis.over(y[1], height - 48, 28)
    left = 20 + CHARACTER * max(len(up.text(tick)) for tick in up.ticks)
    across = Axis.over(x[1], left, width - 16, x_zero, x_whole)
    return Plot(title, across, x[0], up, y[0], width=width, height=height)


def drawing(title: str, width: float, height: float, marks: Sequence[Markup]) -> Markup:
    """An SVG with a title that screen readers read as an image."""
    return tag("svg", *marks, viewBox=f"0 0 {width:g} {height:g}", width=width, role="img", aria_label=title)


def path(points: Iterable[tuple[float, float]], stairs: bool = False) -> str:
    """The `d` of a line through points; with `stairs` it goes to the right before it goes up or down."""
    text = ""
    for x, y in points:
        text += f"M{x:.1f} {y:.1f}" if not text else f"H{x:.1f}V{y:.1f}" if stairs else f"L{x:.1f} {y:.1f}"
    return text


def marker(number: int, x: float, y: float, title: str = "", size: float = 5.0) -> Markup:
    """The mark of a series: a shape and a colour by its number."""
    label = (tag("title", title),) if title else ()
    name = f"mark c{number % COLOURS}"
    return tag("path", *label, class_=name, d=_SHAPES[number % SHAPES](x, y, size))


def swatch(number: int, line: bool = False) -> Markup:
    """The mark of a series for a legend or a table."""
    stroke = [tag("path", class_=f"line c{number % COLOURS} l{number % LINES}", d="M0 7H28")] if line else []
    width = 28 if line else 14
    return tag(
        "svg",
        *stroke,
        marker(number, width / 2, 7),
        viewBox=f"0 0 {width} 14",
        class_="swatch" + " wide" * line,
        aria_hidden="true",
    )


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float, float], str]:
    def shape(x: float, y: float, size: float) -> str:
        return path((x + a * size, y + b * size) for a, b in corners) + "Z"

    return shape


def _circle(x: float, y: float, size: float) -> str:
    return f"M{x - size:.1f} {y:.1f}a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0Z"


_SHAPES: tuple[Callable[[float, float, float], str], ...] = (
    _circle,
    _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    _polygon((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    _polygon((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    _polygon((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
    _polygon(
        *((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)),
        *((0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
    ),
)
