"""A plot of a page: an SVG whose colours follow the reader's theme.

Owns: its axes and lines, in matplotlib. Not: what is plotted (curves.py), the colours
(theme.css).
"""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfusion.report.run import spread

THEME = Path(__file__).with_name("theme.css")
HUES = tuple(f"hue{i}" for i in range(1, 9))  # of things beside each other
COLOURS = ("rule", "ink", "muted", "text", "image", "known", *HUES)  # of theme.css
# A name is no colour to matplotlib. It draws with these, which the SVG has no more.
STAND_INS = {name: f"#0000{i:02x}" for i, name in enumerate(COLOURS, 1)}
STYLES: dict[str, dict[str, Any]] = {
  "known": {"linewidth": 4.5, "solid_capstyle": "round"},
  "faint": {"linewidth": 0.9, "alpha": 0.45},
  "line": {"linewidth": 1.8},
  "points": {"linestyle": "none", "marker": "o", "markersize": 5},
  "dots": {"linewidth": 1.8, "marker": "o", "markersize": 4},
  "marks": {"linestyle": "none", "marker": "v", "markersize": 6, "clip_on": False},
}
MOST = 800  # points of a line


class Layer(NamedTuple):
  """A line of a plot."""

  x: np.ndarray  # f64[n], increasing
  y: np.ndarray  # f64[n]
  colour: str  # of COLOURS
  style: str  # of STYLES


def plot(layers: list[Layer], *, x_label: str, x_max: float, from_zero: bool) -> str:
  """Plots layers, the first behind the others.

  Args:
    layers: one at least, each with a point at least. Those of style `marks` do not
      move the axes: where they lie above, they stand at the top.
    x_label: what x is.
    x_max: where the axis ends, unless a line of the run itself goes on.
    from_zero: the other axis begins at 0, not at the lowest value.

  Returns:
    The SVG as a data URI.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator, StrMethodFormatter

  figure = Figure(figsize=(320 / 72, 185 / 72))  # 1 pt is about 1 px on the page
  axes = figure.add_axes((0.15, 0.185, 0.785, 0.785))
  x_max = max([x_max] + [each.x[-1] for each in layers if each.colour != "known"])
  low, high = _limits([each for each in layers if each.style != "marks"], x_max)
  low = 0.0 if from_zero else low
  margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  below = 0.0 if from_zero else margin
  axes.set(xlim=(0, x_max), ylim=(low - below, high + margin))
  for x, y, colour, style in layers:
    y = np.minimum(y, high + margin) if style == "marks" else y
    points = spread(x, MOST), spread(y, MOST)
    axes.plot(*points, color=STAND_INS[colour], **STYLES[style])
  for axis, ticks in ((axes.xaxis, 5), (axes.yaxis, 4)):
    axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
  return _drawn(figure, axes, x_label)


def log_plot(layers: list[Layer], *, x_label: str) -> str:
  """Plots layers over axes that are both logarithmic, the first behind the others.

  Args:
    layers: one at least, each with a point at least, all above 0.
    x_label: what x is.

  Returns:
    The SVG as a data URI.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

  figure = Figure(figsize=(320 / 72, 185 / 72))
  axes = figure.add_axes((0.15, 0.185, 0.785, 0.785))
  axes.set(xscale="log", yscale="log")
  for x, y, colour, style in layers:
    axes.plot(x, y, color=STAND_INS[colour], **STYLES[style])
  low, high = axes.get_ylim()
  axes.set_ylim(low / 1.05, high * 1.05)  # a metric may hardly change
  # Losses seldom fall by a factor of ten, so 1, 2 and 5 have numbers.
  axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
  if high / low < 2:
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:.3g}"))
    axes.tick_params(which="minor", axis="y", labelsize=11)
  else:
    axes.yaxis.set_minor_formatter(NullFormatter())
  axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
  axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0e}"))
  axes.xaxis.set_minor_formatter(NullFormatter())
  return _drawn(figure, axes, x_label)


def _drawn(figure: Any, axes: Any, x_label: str) -> str:
  """The SVG of a figure as a data URI, in the style of the page."""
  import matplotlib

  muted = STAND_INS["muted"]
  axes.set_xlabel(x_label, fontsize=11, color=muted, loc="right", labelpad=2)
  axes.tick_params(which="both", length=0, labelsize=11, labelcolor=muted)
  axes.grid(axis="y", color=STAND_INS["rule"], linewidth=0.8)
  axes.set_frame_on(False)
  file = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tfusion"}):
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
  return _embedded(file.getvalue())


def _limits(layers: list[Layer], x_max: float) -> tuple[float, float]:
  """The lowest and highest values but for the few at the very ends."""
  seen = [each.y[each.x <= x_max] for each in layers if each.x[0] <= x_max]
  low = min(np.percentile(y, 1) for y in seen)
  high = max(np.percentile(y, 95 if y.size > 30 else 100) for y in seen)
  return float(low), float(high)


def _embedded(svg: str) -> str:
  """A data URI of the drawing alone, with the page's colours and font in it."""
  for name, stand_in in STAND_INS.items():
    svg = svg.replace(stand_in, f"var(--{name})")
  head, _, rest = svg[svg.index("<svg") :].partition(">")
  font = "text{font-family:system-ui,sans-serif!important}"
  svg = f"{head}><style>{THEME.read_text()}{font}</style>{rest}"
  return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
