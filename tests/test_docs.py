"""The pages say what is there: links, commands, knobs, files, functions, figures."""

import ast
import contextlib
import importlib.util
import io
import json
import pathlib
import re
import shlex

import pytest
import tiny_weights
from PIL import Image

from tfusion import arguments, autoencoder_config, config_file, workdir
from tfusion import config as config_lib
from tfusion.data import sources
from tfusion.data.shards import records
from tfusion.diffusion import samplers

ROOT = pathlib.Path(__file__).parents[1]
PLACES = ("", "docs", "experiments", "launch", "tests", "tfusion")
PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text()
  for place in PLACES
  for path in sorted(
    (ROOT / place).glob("*.md" if place in ("", "docs") else "**/*.md")
  )
}
DOCS = [name for name in PAGES if name.startswith("docs/")]
HISTORY = "CHANGELOG.md"  # names what is gone too

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[((?:`[^`]*`|[^\]`])*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

KNOBS = {
  *config_lib.flatten(config_lib.Config()),
  *config_lib.flatten(autoencoder_config.AutoencoderConfig()),
}
SECTIONS = {knob.partition(".")[0] for knob in KNOBS if "." in knob}
NAMED_FILE = re.compile(r"[\w.*-]*(?:/[\w.-]+)*(?:\.(?:py|md|txt|json|png|toml)|/)")


def prose(name: str) -> str:
  """A page without its blocks of code."""
  return INDENTED.sub("", BLOCK.sub("", PAGES[name]))


def inline(name: str) -> list[str]:
  """What stands in backticks, each in one line."""
  return [" ".join(code.split()) for code in INLINE.findall(prose(name))]


def blocks(name: str) -> list[str]:
  """Lines of the blocks of code; those that end in a backslash are joined."""
  text = "".join(INDENTED.findall(BLOCK.sub("", PAGES[name])))
  return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def commands(program: str) -> list[tuple[str, str]]:
  """(page, command) of the blocks of all pages."""
  found = [(n, line) for n in PAGES for line in blocks(n)]
  return [(n, line) for n, line in found if line.startswith(f"{program} ")]


def ids(value) -> str:
  return value if isinstance(value, str) else None


# Links.


def slugs(text: str) -> set[str]:
  """Anchors that GitHub gives the headings of a page."""
  found: dict[str, int] = {}
  for heading in HEADING.findall(BLOCK.sub("", text)):
    shown = LINK.sub(r"\1", heading).replace("`", "").lower()
    slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
    found[slug] = found.get(slug, -1) + 1
  return {f"{s}-{n}" if n else s for s, last in found.items() for n in range(last + 1)}


def links(name: str) -> list[tuple[str, str, str]]:
  """(text, path from the repository, anchor) of the links that stay in it."""
  found = []
  for text, target in LINK.findall(prose(name)):
    if "://" not in target:
      path, _, anchor = target.partition("#")
      place = (ROOT / name).parent / path if path else ROOT / name
      found.append((text, place.resolve().relative_to(ROOT).as_posix(), anchor))
  return found


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
  for _, path, anchor in links(name):
    assert (ROOT / path).exists(), f"{name}: {path}"
    if anchor:
      assert anchor in slugs(PAGES[path]), f"{name}: {path}#{anchor}"


def defined(path: pathlib.Path) -> set[str]:
  """Names that a module defines, and `Class.method`."""
  found = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      found.add(node.name)
    if isinstance(node, ast.ClassDef):
      found |= {f"{node.name}.{m.name}" for m in node.body if hasattr(m, "name")}
  return found


@pytest.mark.parametrize("name", PAGES)
def test_a_link_whose_text_is_code_names_what_the_file_defines(name):
  for text, path, _ in links(name):
    if path.endswith(".py") and text.startswith("`"):
      assert text.strip("`") in defined(ROOT / path), f"{name}: {text} in {path}"


def test_the_tour_names_functions_on_both_walks():
  walks = re.split(r"^## ", PAGES["docs/tour.md"], flags=re.MULTILINE)
  for title in ("One training row", "One prompt"):
    (walk,) = [part for part in walks if part.startswith(title)]
    assert len(re.findall(r"\[`\w+(?:\.\w+)?`\]\(\S+\.py\)", walk)) >= 8, title


def test_every_page_is_reached_from_the_readme():
  reached, new = set(), {"README.md"}
  while new:
    reached |= new
    new = {path for name in new for _, path, _ in links(name) if path in PAGES}
    new -= reached
  assert reached == set(PAGES)


@pytest.mark.parametrize("name", sorted(set(PAGES) - {"README.md"}))
def test_a_page_begins_with_what_it_is_for_and_leads_on(name):
  assert re.match(r"# \S.*\n\nThis page ", PAGES[name]), name
  assert any(path in PAGES and path != name for _, path, _ in links(name)), name


def test_every_image_of_a_page_exists():
  shown = [
    (name, target)
    for name in PAGES
    for target in re.findall(r"!\[[^\]]+\]\((\S+?)\)", PAGES[name])
  ]
  assert "README.md" in dict(shown)
  for name, target in shown:
    image = Image.open((ROOT / name).parent / target)
    assert min(image.size) > 100, target


# Commands.


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
  """A directory where everything is that commands of the pages name."""
  desk = tmp_path_factory.mktemp("desk")
  (desk / "experiments").symlink_to(ROOT / "experiments")
  for folder in ("photos", "disk2/photos"):
    (desk / folder).mkdir(parents=True)
    for name in ("a", "b"):
      Image.new("RGB", (32, 32)).save(desk / folder / f"{name}.png")
      (desk / folder / f"{name}.txt").write_text(f"an image, {name}")
  for folder in ("llama", "exported"):
    tiny_weights.with_tokenizer(desk / folder)
  return desk


def prepared(desk: pathlib.Path, folder: str) -> None:
  """Shards where a command names them; made once."""
  pytest.importorskip("apache_beam")
  from tfusion.prepare import job

  if not (desk / folder).exists():
    job.prepare(job.Request("folder:photos", folder))


@pytest.mark.parametrize(("page", "command"), commands("tfusion"), ids=ids)
def test_a_command_of_a_page_is_read_without_an_error(
  page, command, desk, monkeypatch, capsys
):
  monkeypatch.chdir(desk)
  args, rest = arguments.parser().parse_known_args(shlex.split(command)[1:])
  assert args.takes_more or not rest
  path = getattr(args, "config", None)
  if args.command == "prepare":
    pytest.importorskip("apache_beam")
    from tfusion.prepare import learn, readers, runner

    runner.parse(rest)
    assert args.source.partition(":")[0] in readers.NAMES
    assert args.learn in ("", *learn.RULES)
    return
  if path and "data=shards" in path:
    prepared(desk, path.partition("data=")[2])
  kind = autoencoder_config if args.command == "autoencoder" else config_lib
  config_file.read_config(path or "experiments/digits.py", rest, kind=kind)


def test_every_command_has_an_example():
  shown = {line.split()[1] for _, line in commands("tfusion")}
  assert shown == set(re.findall(r"^    (\w+)", help_of(), re.MULTILINE))


def help_of(*words: str) -> str:
  """What `tfusion WORDS --help` prints."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
    arguments.parser().parse_args([*words, "--help"])
  assert ended.value.code == 0, words
  return out.getvalue()


@pytest.mark.parametrize("name", PAGES)
def test_a_command_in_a_sentence_exists_with_its_options(name):
  for code in inline(name):
    words = shlex.split(code) if code.startswith("tfusion ") else []
    if not words or "COMMAND" in words:
      continue
    path = [w for w in words[1:3] if re.fullmatch(r"[a-z]+", w)]
    if path[:1] not in (["bench"], ["inspect"]):
      path = path[:1]
    shown = help_of(*path)
    for option in re.findall(r"--[a-z][\w-]*(?![\w.-])", code):
      assert option in ("--config", "--help") or option in shown, f"{name}: {code}"


@pytest.mark.parametrize("name", PAGES)
def test_an_option_in_a_sentence_is_one_of_some_command(name):
  pairs = (("inspect", w) for w in ("run", "shards", "data"))
  single = (
    *("train", "autoencoder", "compile", "sample", "eval", "prepare"),
    *("scaling", "export", "ablate", "serve"),
  )
  bench = (("bench", w) for w in ("step", "generate", "attention", "data"))
  shown = " ".join(help_of(*w) for w in [*((s,) for s in single), *pairs, *bench])
  shown += " ".join(p.read_text() for p in (ROOT / "tests" / "bench").glob("*.py"))
  for code in inline(name):
    if (option := re.match(r"--[\w-]+", code)) and not code.startswith("--config"):
      assert option[0] in shown, f"{name}: {code}"


@pytest.mark.parametrize(("page", "command"), commands("python"), ids=ids)
def test_a_program_that_a_page_runs_exists_with_its_options(page, command):
  program, *rest = shlex.split(command)[1:]
  text = (ROOT / program).read_text()
  for option in (word for word in rest if word.startswith("--")):
    assert f'"{option}"' in text, f"{page}: {command}"


def test_extras_that_pages_install_are_those_of_setup():
  setup = (ROOT / "setup.py").read_text().partition("extras_require")[2]
  extras = set(re.findall(r'^    "(\w+)": \[', setup, re.MULTILINE))
  named = re.findall(r"'\.\[([\w,]+)\]'", "".join(PAGES.values()))
  assert named and {one for group in named for one in group.split(",")} <= extras


@pytest.mark.parametrize("name", PAGES)
def test_python_in_a_page_is_python(name):
  for language, code in BLOCK.findall(PAGES[name]):
    if language == "python":
      ast.parse(code)


# Knobs, files, what there is of a kind.


@pytest.mark.parametrize("name", sorted(set(PAGES) - {HISTORY}))
def test_every_knob_that_a_page_names_exists(name):
  named = [code.partition("=")[0].removeprefix("--config.") for code in inline(name)]
  named += re.findall(r"--config\.([\w.]+)=", "\n".join(blocks(name)))
  for knob in named:
    section, _, key = knob.partition(".")
    if section in SECTIONS and re.fullmatch(r"[a-z]\w*", key) and key != "json":
      assert knob in KNOBS, f"{name}: {knob}"


def test_the_page_on_resuming_says_which_knobs_are_fixed():
  page, kinds = PAGES["docs/resuming.md"], workdir.KINDS
  assert "| | `tfusion train` | `tfusion autoencoder` |" in page
  order = (config_lib.Config, autoencoder_config.AutoencoderConfig)
  for row, field in (
    ("fixed", "bound"),
    ("of these may change", "unbound"),
    ("may name another place with the same content", "of_content"),
  ):
    (line,) = re.findall(rf"^\| {row} \|(.*)\|$", page, re.MULTILINE)
    shown = [set(INLINE.findall(cell)) for cell in line.split("|")]
    assert shown == [set(getattr(kinds[kind], field)) for kind in order], row


def test_the_page_of_knobs_is_what_the_config_says_today():
  path = ROOT / "docs" / "config_page.py"
  spec = importlib.util.spec_from_file_location("config_page", path)
  config_page = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(config_page)
  page = PAGES["docs/config.md"]
  assert page == config_page.page(), "run: python docs/config_page.py"
  assert {*re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)} == KNOBS


@pytest.mark.parametrize("name", sorted(set(PAGES) - {HISTORY}))
def test_every_file_of_ours_that_a_page_names_exists(name):
  known = {path.name for place in PLACES[1:] for path in (ROOT / place).rglob("*.py")}
  rooms = {path.name for path in (ROOT / "tfusion").iterdir() if path.is_dir()}
  for code in inline(name):
    code = code.partition(":")[0]
    first, _, rest = code.partition("/")
    if not NAMED_FILE.fullmatch(code):
      continue
    if rest and first in (*PLACES, ".ci"):
      assert (ROOT / code).exists(), f"{name}: {code}"
    elif rest and first in rooms:
      assert (ROOT / "tfusion" / code).exists(), f"{name}: {code}"
    elif not rest and code.endswith(".py"):
      assert code in known, f"{name}: {code}"


@pytest.mark.parametrize("name", PAGES)
def test_a_file_that_a_command_leaves_is_written_by_the_package(name):
  package = "".join(path.read_text() for path in (ROOT / "tfusion").rglob("*.py"))
  named = (
    re.fullmatch(r"(?:[\w-]+/)*([a-z]\w*)\.jsonl?", code) for code in inline(name)
  )
  for stem in {match[1] for match in named if match} - {"test"}:
    written = re.search(rf'["/]{stem}(\.jsonl?)?"', package)
    assert written or list(ROOT.glob(f"*/**/{stem}.json")), f"{name}: {stem}"


def test_the_map_of_the_house_shows_every_room_and_no_other():
  page = PAGES["docs/house.md"]
  (block,) = [b for b in INDENTED.findall(page) if b.startswith("    tfusion/")]
  lines = re.findall(r"^    (  )?(\S+)(?:  +\S.*)?$", block, re.MULTILINE)
  shown = [f"tfusion/{name}" if inner else name for inner, name in lines]
  assert len(shown) == len(set(shown)) == len(block.splitlines())
  package = ROOT / "tfusion"
  rooms = {p.parent for p in package.rglob("*.py")} - {package}
  floor = {path.relative_to(ROOT).as_posix() for path in package.glob("*.py")}
  there = floor | {f"{room.relative_to(ROOT).as_posix()}/" for room in rooms}
  assert {name for name in shown if name.startswith("tfusion/")} - {"tfusion/"} == there
  assert all((ROOT / name).is_dir() for name in shown if name.endswith("/"))
  assert {name for name in shown if name.count("/") == 1 and name.endswith("/")} == {
    f"{place}/" for place in PLACES if place
  }


def test_every_source_sampler_and_experiment_has_its_page():
  from tfusion.prepare import learn, readers

  for name in sources.OPEN:
    pages = PAGES["docs/data.md"] + PAGES["docs/shards.md"] + PAGES["docs/resuming.md"]
    assert re.search(rf"`{name}[:`]", pages), name
  for name in readers.NAMES:
    assert re.search(rf"`{name}[:`]", PAGES["docs/shards.md"]), name
  for name in learn.RULES:
    assert f"| `{name}` |" in PAGES["docs/shards.md"], name
  assert config_lib.SAMPLERS == {s: tuple(n) for s, n in samplers.SAMPLERS.items()}
  names = set().union(*samplers.SAMPLERS.values())
  assert names == set(config_lib.CHOICES["sample.sampler"])
  for name in names:
    assert f"`{name}`" in PAGES["docs/sampling.md"]
  for path in (ROOT / "experiments").glob("*.py"):
    assert f"(../experiments/{path.name})" in PAGES["docs/commands.md"], path.name


def test_the_changes_say_which_formats_todays_version_reads():
  from tfusion.autoencoder import codec

  (row,) = re.findall(r"^\| (?!0\.1\.0)[\d.]+ reads .*$", PAGES[HISTORY], re.MULTILINE)
  assert f"schema {records.SCHEMA} |" in row and f"version {codec.VERSION} |" in row


# Figures.


def test_the_known_good_run_is_of_todays_digits_and_gave_the_pages_figures():
  known = json.loads((ROOT / "experiments" / "results" / "digits.json").read_text())
  config = config_file.read_config(str(ROOT / "experiments" / "digits.py"), [])
  added = {k.removeprefix("model."): v for k, v in workdir.ADDED.items()}
  model = {k: added.get(k) for k in vars(config.model)} | known["model"]
  assert json.dumps(model) == json.dumps(vars(config.model))
  found = known["eval"]
  assert found["step"] == known["metrics"][-1]["step"] == config.train.steps
  for page in ("README.md", "docs/benchmarks.md"):
    text = PAGES[page]
    assert known["command"] in text and known["commit"] in text
    for right, count in (
      ("images_right", "images"),
      ("captions_right", "captions"),
      ("judge_right", "judge_scans"),
    ):
      assert f"| {found[right]} of {found[count]} |" in text, f"{page}: {right}"
    token, byte = found["text_perplexity"], found["text_perplexity_per_byte"]
    assert f"{token:.2f} and {byte:.2f}" in text
