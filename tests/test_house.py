"""The house keeps its order: floors, files, sizes, docstrings, entry points."""

import ast
import graphlib
import importlib.util
import pathlib
import re
import sys

import pytest
import tiny_weights
from PIL import Image

from tfusion import autoencoder_config
from tfusion import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "tfusion", ROOT / "tests"
# From the ground up: a file imports only from floors below its own, or from beside it
# in its own directory.
FLOORS = (
  "version buckets kinds paper parsing templates",
  "files",
  "config errors lock muster numerals startup",
  "autoencoder_config",
  "workdir sharding checkpoint report progress",
  "config_file together",
  "sequence attention diffusion",
  "data model",  # neither knows the other
  "training",
  "autoencoder",
  "generate interop",
  "prepare inspect sizing warmstart",  # none knows another
  "evaluate bench",
  "pods ablations serve",
  "own_loop run",  # neither knows the other
  "commands",
  "arguments",
  "cli",
  "__main__",
)
# Every file, so that a new one is put where a newcomer would look for it.
FILES = {
  "": "__main__ arguments autoencoder_config buckets checkpoint cli commands"
  " config config_file errors files kinds lock muster numerals own_loop paper"
  " parsing progress run sequence sharding sizing startup templates together"
  " version warmstart workdir",
  "ablations": "ablate assets board code full pages plan results runner statistics"
  " suites tables",
  "attention": "chunked dense gradient intervals ring",
  "autoencoder": "adversary codec images loop network perceptual step validate",
  "attention/gpu": "kernels ranges",
  "attention/tpu": "backward_kernel forward_kernel layout lists tiling",
  "bench": "attention data llama sampling training",
  "bench/tpu": "aot bundles rivals static",
  "data": "aspects balance branches bytepairs census collection contents digits emoji"
  " folder forms heldout identity images lane_state lanes mixed mixture"
  " notices numbers packing pairs pieces pipeline prepared prose"
  " sentencepieces source sources tally text tokenizer",
  "data/scenes": "captions outlines render scene source",
  "data/shards": "fetch manifest records source",
  "diffusion": "objective process samplers",
  "evaluate": "answers cider clip_score coco compositions digits emoji evaluation"
  " families frechet gallery grids likelihood loss marks mixed pictured published"
  " reconstructions record scaling scene_scores scenes shapes suite tasks text trials",
  "evaluate/adapters": "generator harness multimodal vlmeval",
  "evaluate/benchmarks": "benchmark dpg edits geneval wise",
  "evaluate/networks": "clip inception network weights",
  "generate": "blocks canvas choices coding drawing events feeding figures interleaved"
  " png prompt rows samples store stream trained writing",
  "inspect": "replay row_page rows runs shards",
  "interop": "bagel card diffusers export layout llama tensors weights",
  "model": "layers linear lora patches transformer transfusion unet untied",
  "pods": "chips counts hlo kernels links pages program search study timeline worker",
  "prepare": "dask_cluster datasets encoder files job learn lists look part plain raw"
  " readers rows runner shapes tables tar worker",
  "training": "clock compiled cross_entropy data_report due events executable feed"
  " flops goodput hold log loggers loop losses lowered machine optim peers profiles"
  " speed spikes start step stop validate watch",
  "prepare/layouts": "bagel conversations energon img2dataset interleaved lance_tables"
  " mds mint mmc4 shaped",
  "serve": "address application body page told turns",
  "report": "comparison curves evaluation facts goodput hosts page plot run samples"
  " spikes summary",
}
# Libraries that only these may import: what moves when the library does.
ONLY = {
  "orbax": "checkpoint",
  "fsspec": "buckets",
  "optax": "training autoencoder",
  "ml_collections": "autoencoder_config config config_file sizing warmstart",
  "aiohttp": "serve",
  "apache_beam": "prepare",
  "distributed": "prepare",
  "pyarrow": "prepare",
  "lance": "prepare",
  "tensorflow_datasets": "prepare",
  "yaml": "prepare",
  "array_record": "data",
  "safetensors": "autoencoder evaluate interop",
  "grain": "data autoencoder",
  "sentencepiece": "data",
  "tokenizers": "data evaluate",
  "einops": "model autoencoder",
  "jinja2": "templates",
  "lm_eval": "evaluate",
  "lmms_eval": "evaluate",
  "tensorboardX": "training",
  "wandb": "training",
}
# A rival is measured where it keeps its kernel; its version is pinned in setup.py.
PRIVATE = {"bench/tpu/rivals.py": "tokamax"}
# No jax: quick to import, to fork.
NUMPY_ONLY = "version autoencoder_config config files lock workdir cli report sequence"
NUMPY_ONLY += " data buckets errors config_file numerals paper parsing progress sizing"
NUMPY_ONLY += " arguments commands startup templates version muster kinds"
# What may ask the clock that people and networks set: for dates, not for seconds.
DATED = ("checkpoint.py", "training/goodput.py")
MAX_FUNCTION_LINES = 90
REQUIREMENT_OF = {
  "absl": "absl-py",
  "apache_beam": "apache-beam",
  "array_record": "array-record",
  "lance": "pylance",
  "ml_collections": "ml-collections",
  "ml_dtypes": "ml-dtypes",
  "orbax": "orbax-checkpoint",
  "PIL": "pillow",
  "sklearn": "scikit-learn",
  "tensorboardX": "tensorboardx",
  "tensorflow_datasets": "tensorflow-datasets",
  "yaml": "pyyaml",
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SOURCES = {
  path.relative_to(PACKAGE).as_posix(): path.read_text()
  for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


def module_of(name: str) -> str:
  parts = ["tfusion", *name.removesuffix(".py").split("/")]
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(name): name for name in SOURCES}


def imports(tree: ast.AST) -> list[str]:
  """Full names of everything imported, wherever in the file."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "imports are absolute"
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return found


def imported_files(name: str) -> set[str]:
  """Files of the package that a file imports."""
  found = set()
  for full in imports(TREES[name]):
    if full.partition(".")[0] == "tfusion":
      # The longest prefix that is a module; the rest is a name in it.
      parts = full.split(".")
      prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
      found.add(MODULES[next(p for p in prefixes if p in MODULES)])
  return found - {"__init__.py", name}


def place(name: str) -> str:
  """The file or directory directly below tfusion/."""
  return name.partition("/")[0].removesuffix(".py")


FLOOR_OF = {place: i for i, floor in enumerate(FLOORS) for place in floor.split()}


def test_every_file_stands_on_a_floor_and_is_known():
  known = {"__init__.py"}
  for directory, names in FILES.items():
    prefix = f"{directory}/" if directory else ""
    known |= {f"{prefix}{file}.py" for file in ["__init__", *names.split()]}
  assert set(SOURCES) == known, "tell test_house.py, and the map in docs/house.md"
  places = {place(name) for name in SOURCES} - {"__init__"}
  assert places == set(FLOOR_OF)


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_imports_only_from_below_or_beside(name):
  for other in imported_files(name):
    # What tfusion/__init__.py names, it imports later: tests/test_init.py.
    if name != "__init__.py" and place(other) != place(name):
      assert FLOOR_OF[place(other)] < FLOOR_OF[place(name)], f"{name} imports {other}"


@pytest.mark.parametrize("start", ["data", "sequence", "report"])
def test_rows_and_pages_are_made_without_a_model_even_by_a_detour(start):
  reached = {name for name in SOURCES if place(name) == start}
  assert reached
  while more := set().union(*map(imported_files, reached)) - reached:
    reached |= more
  for name in reached:
    assert place(name) != "model", f"{start} reaches {name}"
    libraries = {full.partition(".")[0] for full in imports(TREES[name])}
    assert not libraries & {"jax", "flax"}, f"{start} reaches {name}"


# What the program does as a whole, over many rooms.
END_TO_END = "bucket_runs colab damaged_files docs hosts house init kind_runs".split()
END_TO_END += ["python_page", "readme", "resuming", "walk"]

# Top-level folders without Python that have tests.
BESIDE = ("launch",)


def test_tests_stand_in_the_tree_of_what_they_test():
  for path in TESTS.rglob("test_*.py"):
    room = path.parent.relative_to(TESTS)
    there = (PACKAGE / room).is_dir() or room.as_posix() in BESIDE
    assert there, f"{path} is in no room of the package"
    if path.parent == TESTS:
      name = path.stem.removeprefix("test_")
      known = (PACKAGE / f"{name}.py").is_file() or name in END_TO_END
      assert known, f"{path}: a test of a room stands in its directory"
  assert all(list(TESTS.glob(f"test_{name}.py")) for name in END_TO_END)


def test_no_file_imports_itself_by_a_detour():
  graph = {name: imported_files(name) for name in SOURCES}
  order = list(graphlib.TopologicalSorter(graph).static_order())
  assert order.index("config.py") < order.index("cli.py")


@pytest.mark.parametrize("name", SOURCES)
def test_libraries_stay_where_they_belong(name):
  for full in imports(TREES[name]):
    library = full.partition(".")[0]
    if library in ONLY:
      assert place(name) in ONLY[library].split(), f"{name} imports {full}"
    if library in ("jax", "flax"):
      assert place(name) not in NUMPY_ONLY.split(), f"{name} imports {full}"
    private = [part for part in full.split(".")[:-1] if re.match(r"_[^_]", part)]
    if PRIVATE.get(name) != library:
      assert not private, f"{name} imports {full}, which is private"
    outside = ("experiments", "tests", "torch", "tensorflow", "transfusion_pytorch")
    assert library not in outside, f"{name} imports {full}"
  assert "jax._src" not in SOURCES[name]


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_timed_by_a_clock_that_may_be_set(name):
  # time.monotonic() and time.perf_counter() do not leap.
  asked = re.search(r"\btime\.time(_ns)?\(|\bdatetime\b", SOURCES[name])
  assert not asked or name in DATED


def test_every_library_is_a_requirement():
  setup = (ROOT / "setup.py").read_text().lower()
  required = set(re.findall(r'"([a-z][a-z0-9_-]*)(?:\[[a-z0-9]+\])?[>=]=', setup))
  for name, tree in TREES.items():
    for full in imports(tree):
      library = full.partition(".")[0]
      if library not in sys.stdlib_module_names | {"tfusion"}:
        needed = REQUIREMENT_OF.get(library, library)
        assert needed in required, f"{name} imports {library}"


def test_the_same_linters_are_pinned_everywhere_and_come_before_the_tests():
  setup, run = (ROOT / "setup.py").read_text(), (ROOT / ".ci" / "run").read_text()
  pins = dict(re.findall(r'"(mypy|ruff)==([\d.]+)"', setup))
  assert set(pins) == {"mypy", "ruff"}
  hooks = (ROOT / ".pre-commit-config.yaml").read_text()
  pinned = re.findall(r"\[(\w+)==([\d.]+)\]", hooks)
  assert len(pinned) == hooks.count("language: python") > 0
  assert all(pins[name] == version for name, version in pinned)
  # mypy reads the types of the libraries, and so is the one that is installed here.
  assert "entry: python -m mypy" in hooks
  commands = run.splitlines()
  checks = ("ruff check .", "ruff format --check .", "mypy", "pytest")
  assert [line for line in commands if line in checks] == list(checks)


def test_every_directory_is_a_package_that_setup_finds():
  directories = {path.parent for path in PACKAGE.rglob("*.py")}
  assert all((directory / "__init__.py").is_file() for directory in directories)
  assert 'include=["tfusion", "tfusion.*"]' in (ROOT / "setup.py").read_text()


def test_the_console_script_names_a_function():
  match = re.search(r"tfusion = ([\w.]+):(\w+)", (ROOT / "setup.py").read_text())
  module, function = match.groups()
  assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", SOURCES)
def test_functions_are_short_enough_to_read(name):
  text, tree = SOURCES[name], TREES[name]
  assert text.isascii()
  for node in ast.walk(tree):
    if isinstance(node, FUNCTIONS):
      length = node.end_lineno - node.lineno + 1
      assert length <= MAX_FUNCTION_LINES, f"{name}: {node.name} has {length} lines"


PROMISED = {
  method.name
  for tree in TREES.values()
  for node in ast.walk(tree)
  if isinstance(node, ast.ClassDef)
  if {"Protocol", "abc.ABC"} & set(map(ast.unparse, node.bases))
  for method in node.body
  if isinstance(method, FUNCTIONS) and ast.get_docstring(method)
}


def public(tree: ast.Module) -> list[ast.AST]:
  """Public functions and classes, and the public methods of the latter.

  Not properties, which are nouns, what a contract has documented already, nor the
  types alone of a function that has several.
  """
  shown = [
    node
    for node in tree.body
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name[0] != "_"
    if "overload" not in map(ast.unparse, node.decorator_list)
  ]
  methods = [
    method
    for node in shown
    if isinstance(node, ast.ClassDef)
    for method in node.body
    if isinstance(method, FUNCTIONS) and method.name[0] != "_"
    if not {"property", "overload"} & set(map(ast.unparse, method.decorator_list))
    if method.name not in PROMISED
  ]
  return shown + methods


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_public_says_what_it_does(name):
  tree = TREES[name]
  if tree.body:
    assert ast.get_docstring(tree), f"{name} has no docstring"
  silent = [node.name for node in public(tree) if not ast.get_docstring(node)]
  assert not silent, f"{name}: {silent} have no docstring"


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_left_lying_about(name):
  assert not re.search(r"\b(TODO|FIXME|XXX|breakpoint\(\))", SOURCES[name])
  for node in ast.walk(TREES[name]):
    if isinstance(node, ast.ExceptHandler):
      assert node.type is not None, f"{name}:{node.lineno}: bare except"
    if isinstance(node, ast.Try):
      caught = {ast.unparse(h.type) for h in node.handlers}
      assert not caught & {"ImportError", "ModuleNotFoundError"}, name


# Experiments.


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  for i, colour in enumerate(("red", "green", "blue", "white")):
    Image.new("RGB", (40, 32), colour).save(folder / f"{i}.png")
    (folder / f"{i}.txt").write_text(f"a {colour} picture")
  return folder


# What each experiment is a config of; its module and command.
KINDS = {"autoencoder": (autoencoder_config, "autoencoder")}


def kind(path: pathlib.Path):
  return KINDS.get(path.stem, (config_lib, "train"))


def load(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  experiment = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(experiment)
  return experiment


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_every_experiment_builds_a_valid_config(path, variant, photos, tmp_path):
  experiment, module = load(path), kind(path)[0]
  needs = [f"data={photos}"] if path.stem == "folder" else []
  if path.stem == "warmstart":
    needs = [f"weights={tiny_weights.with_tokenizer(tmp_path)}"]
  arg = ",".join([*needs, *filter(None, [variant])])
  config = module.from_dict(experiment.get_config(arg))
  if module is config_lib:
    config_lib.validate_devices(config, devices=1, hosts=1)
  if variant:
    full = module.from_dict(experiment.get_config(",".join(needs)))
    widths = getattr(config.model, "widths", None) or (config.model.width,)
    assert config.train.steps <= 100 and max(widths) <= 64
    assert full.train.steps > config.train.steps
    # Small sizes of the same thing: what is not a size stays.
    same, other = config_lib.flatten(config), config_lib.flatten(full)
    keys = "optim.b2 optim.ema_decay diffusion.image_first_noise_cap"
    keys += " loss.features loss.perceptual_weight loss.kl_weight model.latent_channels"
    for key in same.keys() & set(keys.split()):
      assert same[key] == other[key]


# Values and arithmetic; which of a few values is a matter of the arguments.
MAY_IMPORT = (
  *("math", "ml_collections", "tfusion.autoencoder_config", "tfusion.config"),
  *("tfusion.data.digits.DIGIT_WORDS", "tfusion.paper", "tfusion.sizing"),
  "tfusion.warmstart",
)
MAY_CALL = (
  "dict max min tuple ValueError parse_arg defaults fit Bounds ModelSize".split()
)
NO_VALUES = (ast.With, ast.Try, ast.While, ast.For, ast.ClassDef, ast.Lambda, ast.Await)
NO_VALUES += (ast.AsyncFunctionDef, ast.Yield, ast.Global, ast.Delete, ast.Assert)


def code_in(tree: ast.AST) -> list[str]:
  """What in an experiment is more than values: it is for the package to do."""
  found = [
    f"imports {full}" for full in imports(tree) if not full.startswith(MAY_IMPORT)
  ]
  own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
  for node in ast.walk(tree):
    if isinstance(node, NO_VALUES):
      found.append(f"line {node.lineno}: {type(node).__name__}")
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func).rpartition(".")[2]
      if name not in own | set(MAY_CALL):
        found.append(f"line {node.lineno}: calls {name}")
  return found


@pytest.mark.parametrize(
  "text, says",
  [
    ("from tfusion.data import folder", "imports tfusion.data.folder"),
    ("import os", "imports os"),
    ("print('chosen')", "calls print"),
    ("x = open('a').read()", "calls open"),
    ("try:\n  x = 1\nexcept ValueError:\n  x = 2", "Try"),
    ("for x in range(3):\n  pass", "For"),
    ("c.eval.prompts = path.read_text().split()", "calls read_text"),
  ],
)
def test_code_in_an_experiment_would_be_seen(text, says):
  assert any(says in fault for fault in code_in(ast.parse(text)))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_values_and_shows_its_command(path):
  tree = ast.parse(path.read_text())
  faults = code_in(tree)
  assert not faults, f"{path.name}: {faults}"
  get_config = next(n for n in tree.body if getattr(n, "name", "") == "get_config")
  command = f"tfusion {kind(path)[1]} --config experiments/{path.name}"
  assert command in ast.get_docstring(get_config)
