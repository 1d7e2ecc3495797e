"""What the page of a run says of its time, its spikes and its hosts."""

import json
import re
import shlex

import pytest
from tiny_pages import STEPS, Page, write_lines, write_run

from tfusion import arguments, cli, report
from tfusion import commands as commands_lib
from tfusion.report import goodput, hosts, plot, spikes
from tfusion.report.run import read_run


@pytest.fixture
def no_plots(monkeypatch):
  """Plots take most of the time of a page."""
  monkeypatch.setattr("tfusion.report.curves.plot", lambda *_, **__: "data:image/x,")


def words(page: Page) -> str:
  return " ".join(page.text.split())


# Time.


def test_the_time_is_a_bar_whose_parts_fill_it_and_a_table(tmp_path, no_plots):
  page = Page(report.write_report(write_run(tmp_path / "run")))
  assert "100.0 s over 2 starts, 60 % of it updates" in words(page)
  for text in ("Updates training itself 60.0 60 %", "Compiling", "10.0 10 %"):
    assert text in words(page)
  assert "Done again updates lost in a kill, and repeated 7.5 7.5 %" in words(page)
  assert "Evaluation held-out rows" not in words(page)  # none was spent there
  widths = [attrs.get("style", "") for tag, attrs in page.tags if tag == "i"]
  widths = [float(re.findall(r"[\d.]+", x)[0]) for x in widths if x.startswith("width")]
  assert widths[0] == 100.0 and sum(widths[1:]) == pytest.approx(
    100.0
  )  # after the head
  assert sorted(widths[1:]) == [2.5, 7.5, 10.0, 20.0, 60.0]


def test_causes_stand_in_one_order_and_one_of_another_version_is_shown():
  account = {"seconds": {"waking": 1.0, "save": 0.0, "down": 2.0, "step": 1.0}}
  found = goodput.parts(account)
  assert [part.cause.name for part in found] == ["Updates", "Between starts", "waking"]
  assert [part.share for part in found] == [0.25, 0.5, 0.25]
  assert goodput.parts({}) == [] and goodput.lines({}) == []


def test_inspect_run_says_what_the_time_went_into(tmp_path, capsys):
  from tfusion import workdir as workdir_lib
  from tfusion.config import Config

  workdir = write_run(tmp_path / "run", lines=4)
  workdir_lib.save_config(Config(), workdir)
  assert cli.main(["inspect", "run", "--workdir", str(workdir)]) == 0
  said = capsys.readouterr().out.splitlines()
  first = said.index("time: 100.0 s over 2 starts, 60 % of it updates")
  assert [line.split()[:4] for line in said[first + 1 : first + 3]] == [
    ["Updates", "60.0", "s", "60"],
    ["Start", "20.0", "s", "20"],
  ]
  (workdir / "goodput.json").unlink()
  assert cli.main(["inspect", "run", "--workdir", str(workdir)]) == 0
  assert "time:" not in capsys.readouterr().out


# Spikes.

SPIKES = [
  {"step": 60, "key": "loss", "value": 30.0, "median": 6.0},
  {"step": 60, "key": "grad_norm", "value": 8.0, "median": 1.0},
  {"step": 63, "key": "grad_norm", "value": 3.0, "median": 1.0},
]


def test_spikes_are_listed_with_the_command_that_shows_their_documents(tmp_path):
  workdir = write_run(tmp_path / "a run")  # a name that a shell would cut
  write_lines(workdir / "spikes.jsonl", SPIKES)
  page = Page(report.write_report(workdir))
  assert "2 updates whose loss or gradient norm was far above" in words(page)
  assert "60 Loss 30.0 6.00 5.0" in words(page)
  assert "Gradient norm 8.00 1.00 8.0 63 Gradient norm 3.00 1.00 3.0" in words(page)
  assert len([tag for tag, _ in page.tags if tag == "code"]) == 2
  commands = re.findall(r"<code>(.*?)</code>", page.source)
  for command, step in zip(commands, (60, 63)):
    words_of = shlex.split(command.replace("&#39;", "'"))
    args, rest = arguments.parser().parse_known_args(words_of[1:])
    assert not rest and args.run is commands_lib.inspect_data
    assert (args.workdir, args.step) == (str(workdir.resolve()), step)
  # Marked in their own curves alone.
  marked = {n for n, (_, data) in page.images.items() if b"var(--hue7)" in data}
  assert marked == {
    "Training loss: Loss, what training lowers",
    "Optimiser and speed: Gradient, norm before clipping",
  }
  assert words(page).count("1 spike ") == 1 and words(page).count("2 spikes") == 1


def test_a_spike_moves_no_axis_and_is_marked_at_the_top(monkeypatch):
  import numpy as np
  from matplotlib import axes as axes_lib

  drawn, limits = [], []
  monkeypatch.setattr(
    axes_lib.Axes, "plot", lambda self, x, y, **_: drawn.append(list(y))
  )
  monkeypatch.setattr(
    axes_lib.Axes, "set", lambda self, **given: limits.append(given["ylim"])
  )
  x = np.arange(1.0, 11.0)
  line = plot.Layer(x, x / 10, "ink", "line")
  marks = plot.Layer(np.array([5.0]), np.array([1e6]), "hue7", "marks")
  for layers in ([line], [line, marks]):
    plot.plot(layers, x_label="update", x_max=10, from_zero=False)
  assert limits[0] == limits[1] and limits[0][1] < 1.2
  assert drawn[-1] == [limits[0][1]]


def test_of_many_spikes_the_highest_are_listed(tmp_path):
  lines = [
    {"step": step, "key": "loss", "value": float(step % 97 + 9), "median": 1.0}
    for step in range(1, 401)
  ]
  workdir = write_run(tmp_path / "run", lines=4)
  write_lines(workdir / "spikes.jsonl", lines)
  shown = spikes.table(workdir, read_run(workdir))
  assert (shown["count"], shown["listed"]) == (400, 20)
  steps = [int(update["step"]) for update in shown["updates"]]
  values = [line["value"] for line in lines]
  least = min(values[step - 1] for step in steps)
  assert steps == sorted(steps) and sum(x > least for x in values) <= 20


def test_an_autoencoder_has_spikes_and_no_rows(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  (workdir / "config.json").write_text('{"command": "autoencoder"}')
  write_lines(workdir / "spikes.jsonl", SPIKES)
  shown = spikes.table(workdir, read_run(workdir))
  assert [update["command"] for update in shown["updates"]] == ["", ""]


def test_a_run_without_spikes_says_so(tmp_path, no_plots):
  page = Page(report.write_report(write_run(tmp_path / "run", lines=4)))
  assert "No loss or gradient norm was far above" in words(page)


# Hosts.


def write_hosts(workdir, *host_ms, names=("a", "b", "c")) -> None:
  run = json.loads((workdir / "run.json").read_text())
  run |= {"hosts": len(host_ms[-1]), "host_names": list(names)}
  (workdir / "run.json").write_text(json.dumps(run))
  every = STEPS // len(host_ms)
  lines = [
    {"step": (i + 1) * every, "step_ms": 200.0, "host_ms": each}
    for i, each in enumerate(host_ms)
  ]
  write_lines(workdir / "speed.jsonl", lines)


def test_the_slowest_host_is_named_with_what_it_needs_more(tmp_path, no_plots):
  workdir = write_run(tmp_path / "run", lines=4)
  # Another number of hosts before; one that was not heard of yet; a slow moment of c.
  write_hosts(
    workdir, [500.0, 1.0], [10.0, None, 900.0], [10.0, 150.0, 20.0], [10.0, 150.0, 20.0]
  )
  page = Page(report.write_report(workdir))
  assert "The slowest of 3 hosts is 1 (b): of the 200.0 ms of an update it needs" in (
    words(page)
  )
  assert "needs 150.0 for itself" in words(page)
  assert "The median of the others is 15.0, 135.0 less" in words(page)
  assert "1 (b) 150.0 75 % 2 (c) 20.0 10 % 0 (a) 10.0 5 %" in words(page)
  assert "host_names" not in words(page)


def test_a_single_host_has_no_section_of_hosts(tmp_path, no_plots):
  page = Page(report.write_report(write_run(tmp_path / "run", lines=4)))
  assert "Hosts" not in page.text.split("\n")


def test_of_a_thousand_hosts_the_slowest_are_listed(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  write_hosts(workdir, [float(i % 997) for i in range(1000)], names=())
  shown = hosts.table(read_run(workdir))
  assert shown["count"] == 1000 and len(shown["hosts"]) == hosts.LISTED
  assert [one["name"] for one in shown["hosts"]][:3] == ["996", "995", "994"]
