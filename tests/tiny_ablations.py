"""Results of runs that nobody ran, for boards and pages of them."""

from tfusion.ablations import board, code, results
from tfusion.ablations.results import Result


def result(spec, version="", **values):
  """What a run would have left, with these numbers."""
  numbers = {"loss_text": 1.0, "loss_image": 0.1} | values
  about = {"flops_6nd": 1e12, "flops_exact": 2e12, "seconds": 60.0, "commit": "abc1234"}
  return Result(
    spec.judged,
    version or code.version(),
    numbers,
    about | {"device": "cpu", "devices": 1, "cores": 2, "cpu": "a CPU", "jax": "0"},
    {"loss_text": [[1.0, 3.0], [2.0, 2.0]]},
    spec.depends(),
  )


def put(place, spec, version="", *, flops=1e12, **values):
  """Writes it where a board looks."""
  found = result(spec, version, **values)
  found.about["flops_6nd"] = flops
  results.write(place.results, found)
  return found


def put_searches(place, arm, version="", *, best=1.0):
  """Writes the searches of an arm, of which one rate is best."""
  for spec in board.searches(place, arm, version):
    put(place, spec, version, loss_text=1.0 if spec.rate == best else 2.0)
