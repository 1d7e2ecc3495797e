"""A run's workdir -> one self-contained HTML page; the curve of a known-good run.

Owns: the page, its plots and words. Not: any number in it; train/ and evaluate/ write
those into the files that this one reads. Beside it: samples.py and what was asked for,
facts.py of the data, the machine and the config.
"""

import base64
import collections
import contextlib
import io
import json
import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tfusion.report import facts, samples

# The page and its plots share these colours; `known` is the reference run.
NAMES = "page    card    rule    ink     muted   text    image   known".split()
LIGHT = "#ffffff #f5f6f8 #dde1e6 #1a1d21 #5f6873 #2160d8 #c75700 #c3c9d1".split()
DARK = "#14161a #1d2026 #343a44 #e9ebee #9aa4b0 #73abff #ffa14f #555d69".split()
THEME = "".join(
  f"@media {when}{{:root{{{';'.join(map('--{}:{}'.format, NAMES, colours))}}}}}"
  for when, colours in (("all", LIGHT), ("(prefers-color-scheme:dark)", DARK))
)
PAINT = {name: f"#0000{i:02x}" for i, name in enumerate(NAMES, 1)}  # stand-ins
STYLES = {
  "known": {"linewidth": 4.5, "solid_capstyle": "round"},
  "faint": {"linewidth": 0.9, "alpha": 0.45},
  "line": {"linewidth": 1.8},
  "dots": {"linewidth": 1.8, "marker": "o", "markersize": 4},
}
CURVES = {  # section: its sentence; then file, key, title, unit, colour of each plot
  "Training loss": (
    "The loss is text + image_weight x image. Strong: smoothed; faint: every logged"
    " update. The highest values, those of the first updates, lie above the axes.",
    ("metrics", "loss_text", "Text loss", "nats per token", "text"),
    ("metrics", "loss_image", "Image loss", "squared error", "image"),
    ("metrics", "loss", "Loss", "what training lowers", "ink"),
  ),
  "Held-out loss": (
    "Rows the run never trains on, always with the same noise. Faint: the training"
    " loss; where it falls while the dots rise, the model memorises. By noise: t = 0"
    " is the clean image, t = T noise alone, 1 a blind guess; faint: earlier ones.",
    ("validation", "loss_text", "Text loss", "nats per token", "text"),
    ("validation", "loss_image", "Image loss", "squared error", "image"),
    ("validation", "loss_image_bins", "By noise", "squared error", "image"),
  ),
  "Optimiser and speed": (
    "A healthy gradient settles; waiting for data stays near 0.",
    ("metrics", "grad_norm", "Gradient", "norm before clipping", "ink"),
    ("metrics", "lr", "Learning rate", "per update", "ink"),
    ("speed", "elements_per_s", "Speed", "elements per second", "ink"),
    ("speed", "pictures_per_s", "Speed", "pictures per second", "ink"),
    ("speed", "step_ms", "Time", "ms per update", "ink"),
    ("speed", "mfu", "Use", "share of the matmul rate", "ink"),
    ("speed", "data_wait_share", "Data wait", "share of the time", "ink"),
  ),
}
CODEC_CURVES = {  # of runs of `tfusion autoencoder`
  "Training loss": (
    "The loss is the sum of these terms, weighed. Strong: smoothed; faint: every one.",
    ("metrics", "loss", "Loss", "what training lowers", "ink"),
    ("metrics", "loss_pixel", "L1", "of pixels from -1 to 1", "image"),
    ("metrics", "loss_perceptual", "Perceptual", "distance of features", "image"),
    ("metrics", "kl_nats", "KL", "nats per picture", "text"),
    ("metrics", "loss_codebook", "Codebook", "squared distance to it", "text"),
    ("metrics", "loss_discriminator", "Discriminator", "1: a blind guess", "ink"),
  ),
  "Held-out pictures": (
    "Faint: in training, with latents drawn. A rate of codes is what they can carry.",
    ("validation", "psnr", "Held-out PSNR", "dB", "image"),
    ("validation", "bits_per_pixel", "Rate", "bits per pixel", "text"),
    ("validation", "codes_used", "Codes used", "share of the codebook", "text"),
  ),
  "Optimiser and speed": CURVES["Optimiser and speed"],
}
MEASURES = {  # key of eval.json: name | what stands behind it | how to read it
  "caption_accuracy": "Captions right | {captions_right:,} of {captions:,} |"
  " Unseen images whose caption, written by the model, names what they show.",
  "image_accuracy": "Images right | {images_right:,} of {images:,} |"
  " Drawn images that a judge, fitted to real ones alone, takes for what was asked.",
  "judge_accuracy": "The judge itself | {judge_right:,} of {judge_scans:,} |"
  " The same judge on real unseen images: how far to trust the row above.",
  "nearest_distance_drawn": "Distance to training | real: {nearest_distance_unseen:.3f}"
  " | Of drawn images to the nearest training image; copies lie far nearer than real.",
  "text_perplexity": "Text perplexity | {text_tokens:,} tokens |"
  " Among how many next tokens the model wavers on held-out text; 1 is certainty.",
  "text_perplexity_per_byte": "The same per byte | {text_bytes:,} bytes | Perplexity"
  " by bytes of the text, which do not depend on the tokenizer.",
}
PAGES = {  # command of a run: its curves, title and sentence of its pictures
  "train": (CURVES, "Samples", "The same prompts and noise"),
  "autoencoder": (CODEC_CURVES, "Reconstructions", "Pictures above what came back"),
}
CSS = """
:root{color-scheme:light dark} *{box-sizing:border-box} h1{font-size:30px;margin:0}
body{background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:26px auto;padding:0 12px} p{margin:0 0 12px;max-width:80ch}
h1,p,dd,dt{overflow-wrap:anywhere} h2{font-size:20px;margin:44px 0 2px} h3{margin:0}
p,small,dt,th,span{color:var(--muted)} h3,small,dl,th,span{font-size:13px}
img{display:block;height:auto;max-width:100%;border-radius:5px} figure img{width:100%}
.grid{display:grid;gap:14px;align-items:start;
  grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
.grid.tiles{grid-template-columns:repeat(auto-fit,minmax(146px,1fr))}
figure,.card{margin:0;padding:12px 14px;background:var(--card);border-radius:10px}
figure,.card,dd{min-width:0} .card b{font-size:25px;line-height:1.3} b{display:block}
figcaption{display:flex;gap:8px;align-items:baseline} figcaption span{flex:1}
.text{color:var(--text)} .image{color:var(--image)} .pixel{image-rendering:pixelated}
.bar,.bar i{display:block;height:6px;border-radius:3px} .bar i{background:var(--text)}
.bar{background:var(--rule);margin:8px 0 18px} .strip div{flex:none}
.strip{display:flex;gap:14px;overflow-x:auto;padding:4px 0 12px} td b{font-size:19px}
table{border-collapse:collapse;width:100%;margin:0 0 12px} td small{display:block}
td,th{padding:9px 14px 9px 0;text-align:left;vertical-align:top}
td+td{white-space:nowrap} td,dl div{border-top:1px solid var(--rule)} dl{margin:6px 0}
dl div{display:flex;gap:14px;justify-content:space-between;padding:3px 0}
dt{flex:none;max-width:65%} dd{text-align:right;margin:0}
summary{cursor:pointer;padding:8px 0;font-weight:600}
.grid.samples{grid-template-columns:repeat(auto-fill,minmax(min(100%,190px),1fr))}
.samples figcaption{display:block;overflow-wrap:anywhere;margin-top:8px}
.samples small{white-space:pre-wrap} .wide{overflow-x:auto}
.wide td.why{white-space:normal}
[title]{text-decoration:underline dotted;cursor:help}
td span{color:var(--ink);font-size:15px}
.wide td+td,.wide th+th{text-align:right} .wide .why{text-align:left!important}
"""


def write_report(workdir: str | Path, *, reference: str | Path | None = None) -> Path:
  """Writes workdir/report.html from whatever the workdir holds, and returns its path.

  The page is under 3 MB, needs nothing beside it and runs no script; of what is missing
  or half written it says so. A `reference`, a file of `save_reference` (by default the
  workdir's reference.json), is drawn in grey behind the run's own curves, unless it
  does not exist or is of another model.

  Raises:
    OSError: the page itself cannot be written.
  """
  workdir = Path(workdir).resolve()
  run = _read_run(workdir)
  known = _read(Path(reference or workdir / "reference.json"))
  if known and known.get("model") != run["config"].get("model"):
    known = {}
  drawn = sorted((workdir / "eval").glob("*.png"))
  curves, pictures, sentence = _page(run)
  first, second, last = curves
  body = ""
  for title, build in {
    "": lambda: _header(workdir.name, run, known),
    first: lambda: _curves(first, run, known),
    pictures: lambda: samples.show(workdir / "samples", sentence),
    "Evaluation": lambda: _evaluation(run, known, drawn) if run["eval"] else "",
    second: lambda: _curves(second, run, known),
    last: lambda: _curves(last, run, {}),
    "Data": lambda: facts.data(run),
    "Machine and config": lambda: facts.machine(run),
  }.items():
    body += f"<h2>{title}</h2>" if title else ""
    try:
      body += build() or "<p>Nothing yet, or only half written.</p>"
    except Exception as error:  # whatever stands in these files must not stop a run
      body += f"<p>Cannot be shown: {escape(repr(error)[:300])}</p>"
  page = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport"'
    f' content="width=device-width,initial-scale=1"><title>{escape(workdir.name)}'
    f"</title><style>{THEME}{CSS}</style><main>{body}</main></html>\n"
  )
  path, aside = workdir / "report.html", workdir / "report.html.tmp"
  aside.write_text(page, encoding="utf-8", errors="replace")  # odd file names are in it
  os.replace(aside, path)
  return path


def save_reference(workdir: str | Path, path: str | Path, *, commit: str = "") -> None:
  """Writes a finished run's curves for `write_report(reference=...)`.

  At most 400 points a curve and 5 significant digits. `commit` names the code it ran.

  Raises:
    ValueError: the run is not finished.
  """
  run = _read_run(Path(workdir))
  step, steps = _progress(run)
  if not 0 < steps <= step:
    raise ValueError(
      f"workdir={workdir}: is at update {step} of {steps}; train it to its end first"
    )
  machine = collections.defaultdict(str, run["run"])
  hardware = "{devices} x {device}, {cores} cores of {cpu}".format_map(machine)
  losses = ("step", "loss", "loss_text", "loss_image")
  values = {
    "name": Path(workdir).resolve().name,
    "command": machine["command"],
    "hardware": machine["hardware"] or hardware,
    "commit": commit,
    "model": run["config"].get("model"),
    "metrics": [
      {k: x.get(k) for k in losses} for x in samples.spread(run["metrics"], 400)
    ],
    "validation": samples.spread(run["validation"], 400),
    "eval": run["eval"],
  }
  short = json.loads(json.dumps(values), parse_float=lambda x: float(f"{float(x):.5g}"))
  Path(path).write_text(json.dumps(short) + "\n", encoding="utf-8")


def _page(run: dict) -> tuple[dict[str, tuple], str, str]:
  return PAGES.get(run["config"].get("command"), PAGES["train"])


def _header(name: str, run: dict, known: dict) -> str:
  step, steps = _progress(run)
  state = "Finished: update " if 0 < steps <= step else "Update "
  state += f"{step:,} of {steps:,}" if steps else f"{step:,}"
  seconds, rest = (_series(run["speed"], k)[1] for k in ("seconds", "eta_seconds"))
  if seconds.size:  # they begin again where a run was restarted
    total = seconds[:-1][np.diff(seconds) < 0].sum() + seconds[-1]
    state += f", {total / 60:,.1f} minutes"
    state += f", {rest[-1] / 60:,.1f} to go" if step < steps and rest.size else ""
  for skipped in filter(None, _series(run["metrics"], "skipped_total")[1][-1:]):
    state += f". {skipped:.0f} updates skipped: loss or gradient not finite"
  if known:
    about = [known.get(key) for key in ("name", "hardware", "commit")]
    state += ". In grey: the reference run " + ", ".join(str(x) for x in about if x)
  tiles = [
    (title, _number(value), unit, colour)
    for file, key, title, unit, colour in _page(run)[0]["Training loss"][1:]
    for value in _smooth(_series(run[file], key)[1])[-1:]
  ]
  for key in ("caption_accuracy", "image_accuracy", "text_perplexity"):
    tiles += [(*_measure(run["eval"], key)[:3], "ink")] * (key in run["eval"])
  cards = "".join(
    f'<div class="card">{title}<b class="{colour}">{x}</b><small>{note}</small></div>'
    for title, x, note, colour in tiles
  )
  return (
    f'<h1>{escape(name)}</h1><p>{escape(state)}.</p><div class="bar"><i style="width:'
    f'{step / max(step, steps, 1):.1%}"></i></div><div class="grid tiles">{cards}</div>'
  )


def _curves(section: str, run: dict, known: dict) -> str:
  sentence, *plots = _page(run)[0][section]
  figures = ""
  for file, key, title, unit, colour in plots:
    layers = _layers(file, key, colour, run, known)
    if not layers:
      continue
    x_label, x_max, now = "t / T", 1, ""
    if key != "loss_image_bins":
      (old_x, old_y, kind, _), (x, y, *_) = layers[0], layers[-1]
      x_label, x_max, now = "update", _progress(run)[1], f"<b>{_number(y[-1])}</b>"
      if kind == "known" and old_x[0] <= x[-1] <= old_x[-1]:
        now += f"<small>ref {_number(np.interp(x[-1], old_x, old_y))}</small>"
    image = _plot(layers, x_label=x_label, x_max=x_max, from_zero=file == "speed")
    figures += (
      f'<figure><figcaption><b class="{colour}">{title}</b><span>{unit}</span>{now}'
      f'</figcaption><img alt="{section}: {title}, {unit}" src="{image}"></figure>'
    )
  return figures and f'<p>{sentence}</p><div class="grid">{figures}</div>'


def _layers(file: str, key: str, colour: str, run: dict, known: dict) -> list[tuple]:
  """What to draw, from the back to the front: (x, y, colour, style) with points."""
  lines, old = run[file], known.get(file, [])
  (x, y), (old_x, old_y) = _series(lines, key), _series(old, key)
  if key == "loss_image_bins":
    layers = [(*_bins(line), "known", "known") for line in old[-1:]]
    layers += [(*_bins(line), colour, "faint") for line in lines[-5:-1]]
    layers += [(*_bins(line), colour, "dots") for line in lines[-1:]]
  elif file == "validation":
    train_x, train_y = _series(run["metrics"], key)
    layers = [(old_x, old_y, "known", "known"), (x, y, colour, "dots")]
    layers.insert(1, (train_x, _smooth(train_y), colour, "faint"))
  else:
    layers = [(old_x, _smooth(old_y), "known", "known"), (x, y, colour, "faint")]
    layers += [(x, y if key == "lr" else _smooth(y), colour, "line")]
  own = lines and layers[-1][0].size  # a plot of the reference alone says nothing
  return [layer for layer in layers if layer[0].size] if own else []


def _plot(layers: list[tuple], *, x_label: str, x_max: float, from_zero: bool) -> str:
  """Draws layers as an SVG in a data URI; its colours follow the reader's theme."""
  import matplotlib
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator, StrMethodFormatter

  figure = Figure(figsize=(320 / 72, 185 / 72))  # 1 pt is about 1 px on the page
  axes = figure.add_axes((0.15, 0.185, 0.785, 0.785))
  x_max = max([x_max] + [x[-1] for x, _, colour, _ in layers if colour != "known"])
  for x, y, colour, style in layers:
    x, y = samples.spread(x, 800), samples.spread(y, 800)
    axes.plot(x, y, color=PAINT[colour], **STYLES[style])
  seen = [y[x <= x_max] for x, y, *_ in layers if x[0] <= x_max]
  low = 0.0 if from_zero else min(np.percentile(y, 1) for y in seen)
  high = max(np.percentile(y, 95 if y.size > 30 else 100) for y in seen)
  margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  axes.set(xlim=(0, x_max), ylim=(low - margin * (not from_zero), high + margin))
  for axis, ticks in ((axes.xaxis, 5), (axes.yaxis, 4)):
    axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
  axes.set_xlabel(x_label, fontsize=11, color=PAINT["muted"], loc="right", labelpad=2)
  axes.tick_params(length=0, labelsize=11, labelcolor=PAINT["muted"])
  axes.grid(axis="y", color=PAINT["rule"], linewidth=0.8)
  axes.set_frame_on(False)
  file = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tfusion"}):
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
  svg = file.getvalue()
  for name, code in PAINT.items():
    svg = svg.replace(code, f"var(--{name})")
  head, _, rest = svg[svg.index("<svg") :].partition(">")
  style = f"<style>{THEME}text{{font-family:system-ui,sans-serif!important}}</style>"
  svg = base64.b64encode(f"{head}>{style}{rest}".encode()).decode()
  return f"data:image/svg+xml;base64,{svg}"


def _evaluation(run: dict, known: dict, paths: list[Path]) -> str:
  columns = [x["eval"] for x in (run, known) if x.get("eval")]
  step = escape(str(run["eval"].get("step", "?")))
  rows = f"<tr><th></th><th>update {step}</th>{'<th>reference</th>' * len(columns[1:])}"
  for key in filter(run["eval"].__contains__, MEASURES):
    cells = [_measure(values, key) for values in columns]
    rows += f"<tr><td>{cells[0][0]}<small>{cells[0][3]}</small></td>" + "".join(
      f"<td><b>{shown}</b><small>{note}</small></td>" for _, shown, note, _ in cells
    )
  pictures = "".join(samples.picture(path, 1080) for path in paths[:6])
  return (
    f"<table>{rows}</table>{pictures}<details><summary>All numbers</summary>"
    f"{facts.card('eval.json', run['eval'])}</details>"
  )


def _measure(values: dict, key: str) -> tuple[str, str, str, str]:
  """Name, value, what stands behind it, such as "291 of 297", and how to read it."""
  name, behind, reading = MEASURES[key].split(" | ")
  shown, note = "-", ""
  if isinstance(value := values.get(key), int | float):
    shown = f"{value:.1%}" if key.endswith("accuracy") else _number(value)
  with contextlib.suppress(KeyError, ValueError):
    note = escape(behind.format_map(values))
  return name, shown, note, reading


def _read_run(workdir: Path) -> dict[str, Any]:
  names = "config.json run.json data.json skipped.json eval.json metrics.jsonl"
  names += " speed.jsonl validation.jsonl"
  return {name.partition(".")[0]: _read(workdir / name) for name in names.split()}


def _read(path: Path) -> Any:
  """A .json as a dict, a .jsonl as dicts with a step; without what is half written."""
  text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
  found = []
  for part in [text] if path.suffix == ".json" else text.split("\n"):
    with contextlib.suppress(ValueError):
      found.append(json.loads(part))
  found = [x for x in found if isinstance(x, dict)]
  if path.suffix == ".json":
    return found[0] if found else {}
  return [x for x in found if isinstance(x.get("step"), int | float)]


def _progress(run: dict) -> tuple[int, int]:
  """Updates done, as far as anything says so, and updates wanted (0: not known)."""
  step = max([x["step"] for x in run["metrics"] + run["validation"]], default=0)
  return step, run["config"].get("train", {}).get("steps", 0)


def _series(lines: list[dict], key: str) -> np.ndarray:
  """The finite values of a key: f64[2, n], steps and values."""
  pairs = [(x["step"], x[key]) for x in lines if isinstance(x.get(key), int | float)]
  pairs = np.array(pairs, float).reshape(-1, 2).T
  return pairs[:, np.isfinite(pairs[1])]


def _bins(line: dict) -> np.ndarray:
  """Middles of the noise bins and the loss in those that were measured: f64[2, n]."""
  y = np.array(line.get("loss_image_bins", []), float)
  return np.stack([(np.arange(y.size) + 0.5) / max(y.size, 1), y])[:, np.isfinite(y)]


def _smooth(y: np.ndarray) -> np.ndarray:
  """Means over a twelfth of the run; symmetric where the curve begins to fall."""
  i, half = np.arange(y.size), max(1, y.size // 24)
  low, high = np.maximum(i - half, 0), np.minimum(i + np.minimum(half, i) + 1, y.size)
  sums = np.append(0.0, np.cumsum(y))
  return (sums[high] - sums[low]) / (high - low)


def _number(value: float) -> str:
  return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
