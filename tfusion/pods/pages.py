"""What a study found, as lines for a terminal and rows of a table.

Owns: the words. Not: the numbers (study.py).
"""

from collections.abc import Iterator, Sequence

from tfusion.pods.chips import GIB, GPUS
from tfusion.pods.study import RUNS, Study

COLUMNS = [
  *("topology", "mesh", "remat", "parts", "GiB", "ms", "MFU", "MFU square", "exposed"),
  *(f"days for {run}" for run in RUNS),
]


def lines(study: Study) -> Iterator[str]:
  """Says whether it fits, what a step takes, and what to change where it does not."""
  config, topology = study.config, study.topology
  axes = " x ".join(f"{name} {n}" for name, n in study.mesh.items() if n > 1) or "one"
  work = (
    f"{config.train.batch_rows} rows of {config.data.row_length} elements in"
    f" {config.train.accumulate} parts; remat {config.model.remat}"
  )
  if study.program != "step":
    work = f"{config.eval.batch} images in {config.sample.steps} steps of denoising"
  yield (
    f"{study.parameters:,} parameters on {topology} ({topology.devices} devices): mesh"
    f" {axes}; {work}"
  )
  yield from _memory(study)
  if study.compiled.error:
    yield f"the compiler refuses: {study.compiled.error}"
  if not study.fits:
    yield f"does not fit. {_remedy(study)}"
  if study.program == "step":
    yield from _operations(study)
  if study.seconds:
    yield from _time(study)


def row(study: Study) -> list[str]:
  """The cells of COLUMNS."""
  config = study.config
  mesh = " ".join(f"{name} {n}" for name, n in study.mesh.items() if n > 1)
  cells = [str(study.topology), mesh or "one", config.model.remat]
  cells += [str(config.train.accumulate)]
  needs = study.needs["all"] / GIB
  if study.compiled.error:
    return [*cells, "does not fit", *[""] * (len(COLUMNS) - len(cells) - 1)]
  cells.append(f"{needs:.1f}" + ("" if study.fits else " (does not fit)"))
  if not study.seconds:
    return [*cells, *[""] * (len(COLUMNS) - len(cells))]
  exposed = sum(study.exposed.values()) / study.seconds
  return [
    *cells,
    f"{1e3 * study.seconds:,.0f}",
    f"{study.mfu(study.counts.exact):.0%}",
    f"{study.mfu(study.counts.square):.0%}",
    f"{exposed:.0%}",
    *(f"{elements / study.elements_per_day:,.1f}" for elements in RUNS.values()),
  ]


def table(studies: Sequence[Study]) -> Iterator[str]:
  """A table in Markdown, the fastest first."""
  yield "| " + " | ".join(COLUMNS) + " |"
  yield "|" + "---|" * len(COLUMNS)
  for study in sorted(studies, key=lambda s: s.seconds if s.fits else float("inf")):
    yield "| " + " | ".join(row(study)) + " |"


def _memory(study: Study) -> Iterator[str]:
  needs, limit = study.needs, study.topology.chip.hbm_bytes
  estimate = study.topology.generation in GPUS
  head = "estimate of a device's memory" if estimate else "HBM of a device"
  if study.compiled.error:
    needs = {name: n for name, n in needs.items() if name not in ("temporaries", "all")}
  parts = ", ".join(
    f"{name} {size / GIB:.2f}" for name, size in needs.items() if size and name != "all"
  )
  total = f" = {needs['all'] / GIB:.2f}" if estimate else ""
  yield f"{head}, GiB: {parts}{total}"
  if not estimate and "all" in needs:
    yield (
      f"at the fullest moment, what is donated counted once: {needs['all'] / GIB:.2f}"
      f" of {limit / GIB:.2f} GiB ({needs['all'] / limit:.0%})"
    )
  elif estimate:
    yield f"a device has {limit / GIB:.2f} GiB ({needs['all'] / limit:.0%})"


def _remedy(study: Study) -> str:
  """What to change, the cheapest first."""
  config, mesh = study.config, study.mesh
  rows = config.train.batch_rows // (mesh["data"] * mesh["fsdp"])
  ways = []
  if rows // config.train.accumulate > 1:
    ways.append(
      f"--config.train.accumulate={2 * config.train.accumulate} (fewer rows at once)"
    )
  if config.model.remat != "full":
    ways.append("--config.model.remat=full (less is kept for the backward pass)")
  if mesh["data"] > study.topology.slices:
    ways.append("--config.mesh.data=1 --config.mesh.fsdp=-1 (parameters in more parts)")
  ways.append("a larger topology")
  return "Try " + ", or ".join(ways)


def _operations(study: Study) -> Iterator[str]:
  counts = study.counts
  own = study.compiled.cost.get("flops", 0.0) * study.topology.devices
  yield (
    f"operations of a step, in TFLOP: {counts.exact / 1e12:,.4g} of pairs that see each"
    f" other; {counts.tiles / 1e12:,.4g} with whole tiles of attention;"
    f" {counts.square / 1e12:,.4g} as 6 N T with all pairs; {own / 1e12:,.4g} in the"
    " compiled matmuls, recomputation included, attention not"
  )


def _time(study: Study) -> Iterator[str]:
  cost, layer = study.compiled.cost, study.compiled.layer
  for key, count in sorted(layer.get("count", {}).items()):
    size = layer["bytes"][key] / 2**20
    yield f"in a layer, forward and backward: {count} {key}, {size:,.1f} MiB"
  whole = "a step" if study.program == "step" else "all"
  for key, count in sorted(cost["count"].items()):
    size = cost["bytes"][key] / 2**20
    yield (
      f"in {whole}: {count} {key}, {size:,.0f} MiB,"
      f" {1e3 * cost['busy'][key]:.1f} ms on the links,"
      f" {1e3 * cost['exposed'][key]:.1f} ms of it exposed"
    )
  yield (
    f"predicted: {1e3 * study.seconds:,.1f} ms for"
    f" {'a step' if study.program == 'step' else 'the images'}, of which attention"
    f" {1e3 * cost['kernels']:.1f} ms and exposed communication"
    f" {1e3 * sum(study.exposed.values()):.1f} ms"
  )
  if study.note:
    yield study.note
  if study.program != "step":
    return
  yield (
    f"predicted MFU: {study.mfu(study.counts.exact):.1%}"
    f" ({study.mfu(study.counts.square):.1%} as 6 N T with all pairs)"
  )
  days = ", ".join(
    f"{name} in {n / study.elements_per_day:,.1f} days" for name, n in RUNS.items()
  )
  yield f"predicted speed: {study.elements_per_day / 1e9:,.1f}G elements a day; {days}"
