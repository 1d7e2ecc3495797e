"""Promises of the command line: quick help, one clear message for what one can mend."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from absl import logging
from PIL import Image

from tfusion import arguments, checkpoint, cli, commands, config_file
from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.data import pipeline

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = str(ROOT / "experiments" / "folder.py")
DIGITS = str(ROOT / "experiments" / "digits.py")
COMMANDS = (
  *("train", "autoencoder", "prepare", "sample", "eval", "report", "inspect", "bench"),
  *("compile", "scaling", "export", "ablate", "serve"),
)
# Importing one of these takes from a tenth of a second to seconds.
HEAVY = (
  "jax jaxlib flax optax orbax tensorstore grain chex einops sentencepiece sklearn"
  " scipy matplotlib PIL numpy pandas torch tensorboardX wandb apache_beam pyarrow"
  " tensorflow_datasets array_record safetensors aiohttp"
).split()
LIGHT = (
  "tfusion",
  "tfusion.arguments",
  "tfusion.cli",
  "tfusion.commands",
  "tfusion.autoencoder_config",
  "tfusion.config",
  "tfusion.buckets",
  "tfusion.errors",
  "tfusion.kinds",
  "tfusion.files",
  "tfusion.parsing",
  "tfusion.config_file",
  "tfusion.numerals",
  "tfusion.progress",
  "tfusion.serve",
  "tfusion.serve.address",
  "tfusion.startup",
  "tfusion.version",
  "tfusion.workdir",
)


@pytest.fixture(autouse=True)
def same_verbosity_afterwards():
  before = logging.get_verbosity()
  yield
  logging.set_verbosity(before)


def python(*args: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *args],
    env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


def refusal(capsys, *args: str) -> str:
  """What the command writes to stderr when it ends with status 2."""
  assert cli.main(list(args)) == 2
  out, err = capsys.readouterr()
  assert out == "" and "Traceback" not in err
  return err


# Help.


def test_help_of_every_command_imports_nothing_heavy():
  code = f"""
import runpy, sys
for command in {("", *COMMANDS)}:
  sys.argv[1:] = [*filter(None, [command]), "--help"]
  try:
    runpy.run_module("tfusion", run_name="__main__", alter_sys=True)
  except SystemExit as stop:
    assert stop.code == 0
  heavy = [name for name in {HEAVY} if name in sys.modules]
  own = [name for name in sys.modules if name.partition(".")[0] == "tfusion"]
  assert not heavy and set(own) <= {set(LIGHT)}, (command, heavy, own)
"""
  done = python("-c", code)
  assert done.returncode == 0, done.stderr
  assert "usage: tfusion [-h]" in done.stdout
  for command in COMMANDS:
    assert f"usage: tfusion {command} " in done.stdout


def test_python_m_tfusion_is_the_command():
  done = python("-m", "tfusion", "--help")
  assert done.returncode == 0 and done.stdout.startswith("usage: tfusion ")
  listed = re.findall(r"^    (\w+)\b", done.stdout, re.MULTILINE)
  assert set(listed) == set(COMMANDS)
  done = python("-m", "tfusion", "train", "--config", "none.py", "--workdir", "x")
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr == "tfusion train: --config=none.py: there is no file none.py\n"


def test_a_command_that_does_not_exist_lists_those_that_do(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(["trane"])
  assert stop.value.code == 2
  err = capsys.readouterr().err
  assert all(f"'{command}'" in err for command in COMMANDS)


# Configs.


def test_overrides_change_values_of_every_type():
  overrides = [
    "--config.train.steps=7",
    "--config.optim.peak_lr=1e-3",
    "--config.optim.end_lr",
    "1e-4",
    "--config.model.image_shape=(16,16,3)",
    "--config.data.sources=('digits',)",
    "--config.sample.sampler=ddim",
  ]
  config = config_file.read_config(DIGITS, overrides)
  plain = config_file.read_config(DIGITS, [])
  assert config.train.steps == 7 and plain.train.steps != 7
  assert (config.optim.peak_lr, config.optim.end_lr) == (1e-3, 1e-4)
  assert config.model.image_shape == (16, 16, 3)
  assert config.data.sources == ("digits",)
  assert config.sample.sampler == "ddim"
  assert config.model.width == plain.model.width


def test_overrides_reach_the_program_from_the_real_command_line(tmp_path):
  # With the order turned round too: the override before --config.
  done = python(
    *("-m", "tfusion", "train", "--config.train.batch_rows=3"),
    *("--config", DIGITS, "--workdir", str(tmp_path / "w"), "--config.data.lanes=2"),
  )
  assert done.returncode == 2
  assert done.stderr == (
    "tfusion train: train.batch_rows=3: must divide by data.lanes=2\n"
  )
  assert not (tmp_path / "w").exists()


def test_the_argument_behind_the_colon_reaches_the_experiment(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "from tfusion import config as config_lib\n"
    "def get_config(arg=''):\n"
    "  arg = config_lib.parse_arg(arg, rows=16, big=False)\n"
    "  c = config_lib.defaults()\n"
    "  c.train.batch_rows = arg.rows\n"
    "  c.model.layers = 9 if arg.big else 1\n"
    "  return c\n"
  )
  config = config_file.read_config(f"{file}:rows=32,big", ["--config.train.steps=3"])
  assert (config.train.batch_rows, config.model.layers) == (32, 9)
  assert config.train.steps == 3
  assert config_file.read_config(str(file), []).model.layers == 1


@pytest.mark.parametrize(
  "config, overrides, says",
  [
    (DIGITS, ["--config.train.stepz=3"], "did you mean train.steps"),
    (DIGITS, ["--config.train=3"], "did you mean train.steps"),
    (DIGITS, ["--config.model.image_shape[0]=4"], "did you mean model.image_shape"),
    (DIGITS, ["--config.train.steps=many"], "config.train.steps=many: invalid"),
    (DIGITS, ["--config.train.steps=2.5"], "config.train.steps=2.5: invalid"),
    (DIGITS, ["--config.train.steps"], "Missing value for flag --config.train.steps"),
    (DIGITS, ["--config.optim.peak_lr=fast"], "config.optim.peak_lr=fast: could not"),
    (DIGITS, ["--config.model.image_shape=abc"], "image_shape[0]='abc': expected int"),
    (DIGITS, ["--config.train.batch_rows=18"], "train.batch_rows=18: must divide by"),
    (DIGITS, ["--frobnicate"], "'frobnicate'"),
    (DIGITS, ["more"], "unknown arguments: more"),
    (f"{DIGITS}:smok", [], "'smok' is not known; known: ['smoke']"),
    (f"{DIGITS}:smoke=x", [], "smoke='x': expected bool"),
    (DIGITS, [f"--config.train.steps={10**20}"], f"train.steps={10**20}: too large"),
    (DIGITS, [f"--config.seed={2**70}"], f"seed={2**70}: too large"),
    (
      DIGITS,
      [f"--config.seed={2**32}"],
      "seed=4294967296: too large; at most 42949672",
    ),
    (DIGITS, [f"--config.model.vocab_size={2**31}"], "too large; at most 2147483647"),
    (DIGITS, ["--config.optim.peak_lr=nan"], "peak_lr=nan: expected a finite float"),
    (
      f"{FOLDER}:data=a,b",
      [],
      "'b' is not known; known: ['aspects', 'data', 'smoke']; a comma",
    ),
    (DIGITS, [f"--config.optim.peak_lr={'9' * 400}"], "optim.peak_lr=inf"),
    ("none.py", [], "--config=none.py: there is no file none.py"),
    (str(ROOT), [], "there is no file"),
    (str(ROOT / "setup.cfg"), [], "there is no file"),
    (str(ROOT / "pyproject.toml"), [], "not a Python file"),
    (config_lib.__file__, [], "no function get_config"),
  ],
)
def test_a_config_that_cannot_be_is_one_message_and_no_work(
  capsys, tmp_path, config, overrides, says
):
  workdir = tmp_path / "w"
  args = ["train", "--config", config, "--workdir", str(workdir), *overrides]
  err = refusal(capsys, *args)
  assert err.startswith("tfusion train: ") and says in err
  assert err.count("\n") == 1
  assert not workdir.exists()


def test_a_tilde_is_the_home_folder_where_no_shell_has_put_it_there(
  capsys, tmp_path, monkeypatch
):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "photos").mkdir()
  where, none = str(tmp_path / "photos"), "holds no images"
  for args, says in (
    (["train", "--config", f"{FOLDER}:data=~/photos", "--workdir=~/w"], none),
    (["prepare", "--source", "folder:~/photos", "--out=~/out"], none),
    (["prepare", "--source", "folder:~/photos", "--out=~/photos/out"], "lies in the s"),
    (["prepare", "--source=pydoc", "--out=~/o", "--tokenizer=~/t.model"], "t.model"),
    (["sample", "--workdir=~/photos", "--prompt=a"], f"{where}: holds no config.json"),
    (["inspect", "shards", "~/photos"], where),
  ):
    err = refusal(capsys, *args)
    assert says in err and str(tmp_path) in err and "~" not in err, err


def test_a_wrong_folder_of_images_is_one_message(capsys, tmp_path):
  folder = ROOT / "experiments" / "folder.py"
  for arg, says in (("", "which folder?"), (":data=/none/such", "no such folder")):
    args = ("--config", f"{folder}{arg}", "--workdir", str(tmp_path / "w"))
    err = refusal(capsys, "train", *args)
    assert says in err and err.count("\n") == 1


def test_a_workdir_that_cannot_be_written_is_one_message(capsys, tmp_path):
  (tmp_path / "file").write_text("")
  args = ("--config", DIGITS, "--workdir", str(tmp_path / "file"))
  err = refusal(capsys, "train", *args)
  assert "choose another directory" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["eval", "inspect run", "sample"])
def test_a_workdir_without_a_run_is_one_message(capsys, tmp_path, command):
  prompt = ("--prompt", "x") if command == "sample" else ()
  err = refusal(capsys, *command.split(), "--workdir", str(tmp_path), *prompt)
  assert (
    err.startswith(f"tfusion {command.split()[0]}: ")
    and "tfusion train --config" in err
  )
  assert err.count("\n") == 1


def test_an_unknown_evaluation_is_one_message_with_those_that_are_known(
  capsys, tmp_path
):
  workdir_lib.save_config(config_file.read_config(DIGITS, []), tmp_path)
  err = refusal(capsys, "eval", "--workdir", str(tmp_path), "--suite", "loss,fif:5000")
  assert "--suite=loss,fif:5000: 'fif:5000' is unknown; known: the suites own," in err
  assert "fid:N" in err and err.count("\n") == 1


def test_a_saved_config_takes_overrides_too(tmp_path):
  workdir_lib.save_config(config_file.read_config(DIGITS, []), tmp_path)
  config = config_file.read_saved_config(str(tmp_path), ["--config.sample.steps=5"])
  assert config.sample.steps == 5
  with pytest.raises(ValueError, match="did you mean sample.steps"):
    config_file.read_saved_config(str(tmp_path), ["--config.sample.stepz=5"])


def test_a_workdir_of_another_model_is_refused_before_any_work(capsys, tmp_path):
  experiment, workdir = tmp_path / "digits.py", tmp_path / "w"
  experiment.write_text(pathlib.Path(DIGITS).read_text())
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "digits.json").write_text("{}")
  workdir.mkdir()
  old = config_file.read_config(DIGITS, [])
  workdir_lib.save_config(old, workdir)
  args = ("--config", str(experiment), "--workdir", str(workdir))
  err = refusal(capsys, "train", *args, "--config.model.layers=7")
  assert f"model.layers: {old.model.layers} -> 7" in err
  assert [p.name for p in workdir.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  "text, says",
  [
    (
      "def get_config(arg=''):\n  return (\n",
      "line 2 of {}: SyntaxError: '(' was never",
    ),
    ("import no_such_thing\n", "line 1 of {}: ModuleNotFoundError: No module named"),
    (
      "from tfusion import config\ndef get_config(arg=''):\n  c = config.defaults()\n"
      "  c.modle.width = 3\n  return c\n",
      "line 4 of {}: AttributeError: ",
    ),
    ("def get_config(arg=''):\n  pass\n", "get_config returned NoneType, not the Conf"),
    ("def get_config():\n  pass\n", "TypeError: get_config() takes 0 positional"),
  ],
)
def test_a_fault_of_an_experiment_is_named_with_its_line(capsys, tmp_path, text, says):
  (file := tmp_path / "mine.py").write_text(text)
  err = refusal(
    capsys, "train", "--config", str(file), "--workdir", str(tmp_path / "w")
  )
  assert f"--config={file}: " in err and says.format(file) in err


NUMBERS = {  # argument: the rest of the command
  "--seed": "sample --workdir w --prompt a",
  "--count": "sample --workdir w --prompt a",
  "--step": "inspect run --workdir w",
  "--port": "serve --workdir w",
  "--record": "inspect shards w",
  "--steps": f"bench step --config {DIGITS}",
  "--seeds": "ablate table5",
  "--slices": f"compile --config {DIGITS} --topology v5e-8",
  "--width": "bench generate",
  "--layers": "bench generate",
  "--rounds": "bench generate",
  "--lengths": "bench attention",
  "--heads": "bench attention",
  "--kv-heads": "bench attention",
  "--head-dim": "bench attention",
  "--documents": "bench data",
  "--workers": "bench data",
  "--seconds": "bench data",
  "--image-px": "prepare --source digits --out w",
  "--aspects": "prepare --source digits --out w",
  "--vocab-size": "prepare --source digits --out w",
  "--shard-documents": "prepare --source digits --out w",
  "--batch": "prepare --source digits --out w",
}


@pytest.mark.parametrize("argument", NUMBERS)
def test_a_number_that_no_program_can_use_is_refused_by_its_argument(capsys, argument):
  for number in ("-1", "99999999999999999999", "9" * 5000, "1e400", "two", ""):
    with pytest.raises(SystemExit) as stop:
      cli.main([*NUMBERS[argument].split(), f"{argument}={number}"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    last = err.splitlines()[-1]
    assert f"argument {argument}: {number[:40]!r}: give " in last


def test_every_number_of_the_command_line_is_held_to_bounds():
  commands, numbers = [arguments.parser()], set()
  while commands:
    for action in commands.pop()._actions:
      if isinstance(action.choices, dict):
        commands += action.choices.values()
      elif isinstance(action.default, bool):
        continue
      elif isinstance(action.default, int | float) or action.type in (int, float):
        numbers.add(action.option_strings[0])
        assert action.type not in (int, float), action.option_strings
  assert {"--seed", "--count", "--seconds"} <= numbers <= set(NUMBERS)


def test_the_largest_seed_is_a_seed(capsys, tmp_path):
  args = ["sample", "--workdir", str(tmp_path), "--prompt", "a"]
  assert "config.json" in refusal(capsys, *args, f"--seed={2**32 - 1}")


def test_verbose_shows_the_whole_traceback():
  with pytest.raises(ValueError, match="there is no file"):
    cli.main(["train", "-v", "--config", "none.py", "--workdir", "x"])


def test_ctrl_c_outside_the_loop_ends_quietly(capsys, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(commands, "read_config", interrupted)
  assert cli.main(["train", "--config", DIGITS, "--workdir", "x"]) == 130
  assert capsys.readouterr().err == "tfusion train: interrupted\n"


# Real runs.


@pytest.fixture
def tiny_run(tmp_path):
  """Arguments of a run of three updates on four pictures, each update saved."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for number in range(4):
    Image.new("L", (8, 8), 60 * number).save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text(f"picture {number}")
  experiment = tmp_path / "tiny.py"
  experiment.write_text(f"""
from tfusion import config as config_lib

def get_config(arg=""):
  c = config_lib.defaults()
  c.model.update(layers=1, width=16, heads=1, kv_heads=1, mlp=16, vocab_size=320)
  c.data.update(sources=("folder:{folder}",), row_length=64, lanes=1, workers=0)
  c.train.update(steps=3, batch_rows=2, eval_rows=2, log_every_steps=1)
  c.train.update(save_every_steps=1)
  return c
""")
  return ["train", "--config", str(experiment), "--workdir", str(tmp_path / "run")]


@pytest.mark.long
@pytest.mark.slow
def test_a_known_good_run_beside_the_experiment_stands_behind_the_report(
  tiny_run, tmp_path
):
  (tmp_path / "results").mkdir()
  model = config_file.read_config(str(tmp_path / "tiny.py"), []).model
  line = {"step": 1, "loss": 9.0, "loss_text": 6.0, "loss_image": 0.6}
  values = {"name": "of old", "model": dataclasses.asdict(model), "metrics": [line]}
  (tmp_path / "results" / "tiny.json").write_text(json.dumps(values))
  (tmp_path / "results" / "another.json").write_text("{}")
  assert cli.main(tiny_run) == 0
  page = (tmp_path / "run" / "report.html").read_text()
  assert "Finished: update 3 of 3" in page
  assert "In grey: the reference run of old" in page


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
  "what", ["checkpoints", pytest.param("metrics.jsonl", marks=pytest.mark.long)]
)
def test_a_full_disk_is_one_line_that_names_the_place_and_the_next_start_goes_on(
  tiny_run, tmp_path, capsys, what
):
  opened, measure, run = pathlib.Path.open, checkpoint._size_and_crc, tmp_path / "run"

  def open_on_full(path, mode="r", **options):
    second = path == run / what and mode == "a" and path.stat().st_size
    return opened(pathlib.Path("/dev/full") if second else path, mode, **options)

  def measure_on_full(path):
    if what in path.parts and "2" in path.parts:
      raise OSError(28, "No space left on device")
    return measure(path)

  with pytest.MonkeyPatch.context() as full:
    full.setattr(pathlib.Path, "open", open_on_full)
    full.setattr(checkpoint, "_size_and_crc", measure_on_full)
    assert cli.main(tiny_run) == 2
  err = capsys.readouterr().err
  (line,) = [x for x in err.splitlines() if x.startswith("tfusion train: ")]
  assert str(run / what) in line and "No space left on device" in line
  assert re.search("make room( there)?, .*start again", line)
  assert "Traceback" not in err
  assert cli.main(tiny_run) == 0
  assert "goes on after step 1 of" in capsys.readouterr().out
  lines = (run / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["step"] for x in lines] == [1, 2, 3]


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_data_worker_ends_a_run_that_is_saved_in_one_line(
  tiny_run, tmp_path, capsys, monkeypatch
):
  before = set(multiprocessing.active_children())
  take, taken = pipeline.HostBatches.__next__, []

  def take_and_kill(self):
    taken.append(take(self))
    for worker in set(multiprocessing.active_children()) - before:
      os.kill(worker.pid, signal.SIGKILL)
    return taken[-1]

  late = ["--config.train.steps=20", "--config.train.save_every_steps=20"]
  late += ["--config.train.eval_every_steps=20"]
  with monkeypatch.context() as killing:
    killing.setattr(pipeline.HostBatches, "__next__", take_and_kill)
    assert cli.main([*tiny_run, *late, "--config.data.workers=1"]) == 2
  out, err = capsys.readouterr()
  (line,) = [x for x in err.splitlines() if x.startswith("tfusion train: ")]
  assert "data worker process died (killed by SIGKILL)" in line
  assert "lower data.workers=1, or set it to 0" in line and "Traceback" not in err
  (step,) = map(int, re.findall("saved after step ([0-9]+)", out))
  assert 0 < step < 20
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [str(step)]
  assert cli.main([*tiny_run, *late]) == 0
  assert f"goes on after step {step} of" in capsys.readouterr().out
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["step"] for x in lines] == list(range(1, 21))


PIPED = """
import sys
from tfusion import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_nobody_reads_any_more_saves_and_stops(
  tiny_run, tmp_path, interrupted
):
  long = ["--config.train.steps=100000", "--config.train.save_every_steps=100000"]
  long += ["--config.train.eval_every_steps=100000"]
  run = subprocess.Popen(
    [sys.executable, "-c", PIPED, *tiny_run, *long],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    while not run.stdout.readline().startswith("step 2/"):
      assert run.poll() is None, run.stderr.read()
    if interrupted:
      os.kill(run.pid, signal.SIGINT)
    run.stdout.close()
    status = run.wait(timeout=60)
    err = run.stderr.read()
  finally:
    run.kill()
  assert "Traceback" not in err and "Broken pipe" not in err
  assert status == 141 or interrupted
  (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
  assert int(saved.name) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "inspect run --workdir {}"])
def test_output_that_nobody_reads_ends_a_command_quietly(tmp_path, command, unbuffered):
  workdir_lib.save_config(config_file.read_config(DIGITS, []), tmp_path)
  run = subprocess.Popen(
    [sys.executable, "-m", "tfusion", *command.format(tmp_path).split()],
    env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  run.stdout.close()
  err = run.stderr.read()
  # argparse itself takes no notice where it writes directly.
  assert run.wait(timeout=60) == 141 or (unbuffered and command == "--help")
  assert err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_onto_a_full_disk_is_one_line():
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-m", "tfusion", "--help"],
      env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert done.returncode == 2
  assert done.stderr.startswith("tfusion: standard output: the disk is full")
  assert done.stderr.count("\n") == 1


# Memory.


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a tunable of glibc")
def test_the_command_starts_anew_with_huge_pages_once_and_keeps_its_arguments():
  code = """
import os, sys
from tfusion import cli
started = []
os.execv = lambda path, argv: started.append(argv) or sys.exit(0)
sys.argv[1:] = ["inspect", "run", "--workdir", "none"]
sys.exit(cli.main())
"""
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  run = functools.partial(
    subprocess.run, [sys.executable, "-c", code], cwd=ROOT, capture_output=True
  )
  assert run(env=environment | {"PYTHONPATH": str(ROOT)}).returncode == 0
  again = environment | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "x=1"}
  assert run(env=again).returncode != 0  # went on to the missing workdir
  done = subprocess.run(
    [sys.executable, "-m", "tfusion", "inspect", "run", "--workdir", "no such"],
    env=environment | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and "no such" in done.stderr
