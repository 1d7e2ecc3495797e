"""Everything in a folder of captioned images is in a pair or is listed."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
from PIL import Image
from tiny_photos import add, squares

from tfusion import parsing
from tfusion.data import folder, pairs, text
from tfusion.data.balance import Amount
from tfusion.data.pairs import find_pairs
from tfusion.prepare import files


@pytest.fixture
def photos(tmp_path) -> Path:
  return squares(tmp_path / "photos")


def listed(root: Path) -> dict[str, tuple[str, Amount]]:
  return {one.id: (one.reason, one.amount) for one in find_pairs(str(root)).rejected}


def captions(root: Path) -> dict[str, str]:
  return {pair.file: pair.caption for pair in find_pairs(str(root)).pairs}


def test_images_that_pillow_cannot_open_are_found_and_skipped(photos):
  for name in ("phone.heic", "PHONE2.HEIC", "raw.cr2", "alone.svg"):
    (photos / name).write_bytes(b"not for Pillow")
  (photos / "phone.txt").write_text("a phone")
  (photos / "PHONE2.txt").write_text("another")
  (photos / "raw.txt").write_text("a raw file")
  assert listed(photos) == {
    "phone.heic": (pairs.NOT_OPENED, Amount(1, 1, 1)),
    "PHONE2.HEIC": (pairs.NOT_OPENED, Amount(1, 1, 1)),
    "raw.cr2": (pairs.NOT_OPENED, Amount(1, 1, 1)),
    "alone.svg": (pairs.NOT_OPENED, Amount(1, 1, 0)),
  }
  assert folder.survey(str(photos)).skipped == 4


def test_links_to_nothing_are_found_and_skipped(photos):
  os.symlink(photos / "nowhere.png", photos / "dangling.png")
  os.symlink(photos / "nowhere.txt", photos / "good0b.txt")
  add(photos, "good0b.png", None)
  (photos / "dangling.txt").write_text("a link")
  os.symlink(photos / "nowhere.jsonl", photos / "lines.jsonl")
  assert listed(photos) == {
    "dangling.png": (pairs.NOT_OPENED, Amount(1, 1, 1)),
    "good0b.png": (pairs.BAD_CAPTION, Amount(1, 1, 1)),
    "lines.jsonl": (pairs.BAD_CAPTION, Amount(1)),
  }
  found = {one.id: one.detail for one in find_pairs(str(photos)).rejected}
  assert found["lines.jsonl"] == "is a link to nothing"


def test_halves_of_pairs_are_listed_on_either_side(photos):
  add(photos, "alone.png", None)
  (photos / "orphan.txt").write_text("of no image")
  (photos / "LICENSE").write_text("free")
  (photos / "notes.md").write_text("more")
  (photos / "old.md").write_text("more")
  assert listed(photos) == {
    "alone.png": (pairs.NO_CAPTION, Amount(1, 1)),
    "orphan.txt": (pairs.NO_IMAGE, Amount(1, 0, 1)),
    "*": (pairs.OTHER, Amount()),
    "*.md": (pairs.OTHER, Amount()),
  }


def test_images_that_share_a_caption_are_skipped_and_name_each_other(photos):
  add(photos, "twin.png", "which of us?")
  add(photos, "twin.jpg", None)
  found = {one.id: one for one in find_pairs(str(photos)).rejected}
  assert {id: one.reason for id, one in found.items()} == dict.fromkeys(
    ("twin.jpg", "twin.png", "twin.txt"), pairs.SHARED
  )
  assert "twin.png" in found["twin.jpg"].detail
  assert "twin.jpg" in found["twin.png"].detail
  total = sum((one.amount for one in found.values()), Amount())
  assert total == Amount(2, 2, 1)


def test_a_caption_is_not_shared_with_what_needs_or_can_have_none(photos):
  # One cannot be opened, and one has its own line.
  add(photos, "a.jpg", "from the txt")
  (photos / "a.heic").write_bytes(b"the same, from the phone")
  add(photos, "b.jpg", "b's txt")
  add(photos, "b.png", None)
  (photos / "l.jsonl").write_text('{"file": "b.png", "caption": "b by its line"}')
  found = captions(photos)
  assert found["a.jpg"] == "from the txt" and found["b.jpg"] == "b's txt"
  assert found["b.png"] == "b by its line"
  assert listed(photos) == {"a.heic": (pairs.NOT_OPENED, Amount(1, 1))}


def test_endings_of_captions_and_listings_may_be_in_capitals(photos):
  add(photos, "a.PNG", None)
  (photos / "a.TXT").write_text("loud")
  add(photos, "b.png", None)
  (photos / "B.JSONL").write_text('{"image": "b.png", "text": "listed"}')
  add(photos, "c.png", "c")
  (photos / "c.Txt").write_text("another c")
  found = captions(photos)
  assert (found["a.PNG"], found["b.png"], found["c.png"]) == ("loud", "listed", "c")
  assert listed(photos) == {"c.Txt": (pairs.NOT_NEEDED, Amount(0, 0, 1))}


@pytest.mark.parametrize(
  ("data", "reason", "texts"),
  [
    ("caf\u00e9".encode("latin-1"), pairs.BAD_CAPTION, 1),
    ("a square".encode("utf-16-le"), pairs.BAD_CAPTION, 1),
    (bytes(20), pairs.BAD_CAPTION, 1),
    ("\u200b\ufeff\u200d".encode(), pairs.EMPTY_CAPTION, 0),
    (b"\x01\x02\n", pairs.EMPTY_CAPTION, 0),
    (b"", pairs.EMPTY_CAPTION, 0),
  ],
)
def test_a_caption_that_no_person_can_read_is_none(photos, data, reason, texts):
  add(photos, "a.png", data)
  assert listed(photos) == {"a.png": (reason, Amount(1, 1, texts))}
  (photos / "a.txt").unlink()
  if texts == 0 or b"\0" in data:  # JSON can spell them too
    line = json.dumps({"file": "a.png", "caption": data.decode()})
    (photos / "all.jsonl").write_text(line)
    assert listed(photos) == {"a.png": (reason, Amount(1, 1, texts))}


def test_a_caption_in_utf_16_with_its_mark_is_read(photos):
  add(photos, "a.png", "ein \u00e4lteres Haus\r\n".encode("utf-16"))
  assert captions(photos)["a.png"] == "ein \u00e4lteres Haus"


@pytest.mark.parametrize(
  ("line", "says"),
  [
    ('{"file": "a.png", "prompt": "x"}', "has ['file', 'prompt']"),
    ('{"file": "a.png", "caption": null}', "'caption' is null"),
    ('{"file": "a.png", "caption": ["x", "y"]}', "is a list; give each its own line"),
    ('{"file": "a.png", "text": 7}', "'text' is a number"),
    ('{"image": {"path": "a.png"}, "text": "x"}', "'image' is an object"),
    ('{"file": "a.png", "caption": "x", "caption": "y"}', "has 'caption' twice"),
    ('{"file": "a.png", "caption": "x", "split": "rest"}', "\"split\" is 'rest'"),
    ('{"file": "", "caption": "x"}', "names no file"),
    ('{"file": "https://x.org/a.png", "caption": "x"}', "https://x.org/a.png is not"),
    ('{"file": "https://x.org/a.png", "caption": "x"}', "download the image"),
    ('{"file": "data:image/png;base64,iVBO", "caption": "x"}', "is the image itself"),
    ('{"file": "iVBORw0KGgoAAAA", "caption": "x"}', "it is the image itself; write"),
    ('{"file": ".\\\\a.png", "caption": "x"}', "write / between folders"),
    ('{"file": "A.PNG ", "caption": "x"}', "is not there; there is a.png"),
    ('{"file": "photos/a", "caption": "x"}', "is not there; there is a.png"),
    ('{"file": "a.png", "caption": "x", "text": "y"}', "they differ"),
    ('{"file": "a.png", "file_name": "b.png", "text": "y"}', "they differ"),
    ('["a.png", "x"]', "a list"),
    ('{"file": "gone.png", "caption": "x"}', "gone.png is not there"),
    ('{"file": "notes.md", "caption": "x"}', "notes.md is no image by its name"),
    ('{"file": "a\\u0000.png", "caption": "x"}', "is not there"),
    ('{"file": "%s", "caption": "x"}' % ("a" * 5000), "is not there"),
    ('{"file": "a.png", "caption": "\\ud800"}', "not Unicode"),
  ],
)
def test_a_line_that_is_not_used_says_why(photos, line, says):
  add(photos, "a.png", None)
  (photos / "notes.md").write_text("more")
  (photos / "all.jsonl").write_text(f'{{"file": "good0.png", "caption": "x"}}\n{line}')
  (one,) = (o for o in find_pairs(str(photos)).rejected if o.id == "all.jsonl:2")
  assert says in one.detail, one.detail
  # The image stands for itself, or in the line that names it without a caption.
  if one.amount.images:
    assert "a.png" not in listed(photos) and one.reason == pairs.BAD_LINE
  else:
    assert listed(photos)["a.png"][0] == pairs.NO_CAPTION


def test_a_line_without_its_caption_and_its_image_are_one_document(photos):
  (photos / "test").mkdir()
  add(photos, "test/a.png", None)
  lines = [
    '{"file": "test/a.png", "caption": null}',
    '{"file": "good0.png", "text": 3}',
  ]
  (photos / "all.jsonl").write_text("\n".join(lines))
  first, second = sorted(find_pairs(str(photos)).rejected, key=lambda one: one.id)
  assert (first.id, second.id) == ("all.jsonl:1", "all.jsonl:2")
  assert first.amount == second.amount == Amount(1, 1, 0)
  assert first.test and not second.test  # as their images


@pytest.mark.parametrize("levels", [200, 420, 700, 960, 990, 200_000])
def test_a_line_nested_without_end_is_listed_by_file_and_line(photos, levels):
  add(photos, "a.png", None)
  deep, other = ("[" * levels + number + "]" * levels for number in "12")
  line = f'{{"file": {deep}, "file_name": {other}, "caption": "x"}}'
  (photos / "all.jsonl").write_text(f'{{"file": "good0.png", "caption": "x"}}\n{line}')
  (one,) = (o for o in find_pairs(str(photos)).rejected if o.id == "all.jsonl:2")
  deepest = parsing.DEEPEST
  says = "they differ" if levels < deepest else f"deeper than {deepest} levels"
  assert one.reason == pairs.BAD_LINE and says in one.detail


def test_a_name_from_the_root_on_is_not_said_to_be_missing(photos):
  line = json.dumps({"file": str(photos / "good1.png"), "caption": "x"})
  (photos / "all.jsonl").write_text(line)
  (one,) = find_pairs(str(photos)).rejected
  assert "relative to the .jsonl" in one.detail and "not there" not in one.detail


def test_a_caption_whose_image_is_spelled_otherwise_or_elsewhere_names_it(photos):
  for name in ("e\u0301.png", "images/0.png", "b.jpg", "Large.png"):
    add(photos, name, None)
  for name in ("\u00e9", "texts/0", "b.jpg", "large", "quite_another"):
    (photos / f"{name}.txt").parent.mkdir(exist_ok=True)
    (photos / f"{name}.txt").write_text("a square")
  found = {one.id: one.detail for one in find_pairs(str(photos)).rejected}
  assert found["\u00e9.txt"] == "none has its name; there is e\u0301.png"
  assert found["texts/0.txt"] == "none has its name; there is images/0.png"
  assert found["b.jpg.txt"] == "none has its name; there is b.jpg"
  assert found["large.txt"] == "none has its name; there is Large.png"
  assert found["quite_another.txt"] == "none has its name"


def test_a_line_says_of_its_image_whether_it_is_held_out(tmp_path):
  root = tmp_path / "in"
  rows = []
  for i in range(40):
    add(root, f"{i}.png", f"number {i}")
    split = {0: "test", 1: "validation", 2: "train"}.get(i % 4)
    row = {"file": f"{i}.png", "caption": f"listed {i}", "split": split}
    rows.append(json.dumps({k: v for k, v in row.items() if v}))
  rows.append('{"file": "2.png", "caption": "and held out", "split": "test"}')
  (root / "all.jsonl").write_text("\n".join(rows))
  train, test = (
    folder.open_folder(str(root), test=t, image_shape=(4, 4, 3), workdir=tmp_path)
    for t in (False, True)
  )
  held_out = {p.file for p in test._own}
  assert held_out >= {f"{i}.png" for i in range(40) if i % 4 < 2} | {"2.png"}
  assert held_out <= {f"{i}.png" for i in range(40) if i % 4 != 2} | {"2.png"}
  assert {p.file for p in train._own}.isdisjoint(held_out)
  assert pickle.loads(pickle.dumps(test))._own == test._own
  prepared = [d for p in files.plan_folder("x", str(root), 9) for d in p.read()]
  assert {d.spans[1].name for d in prepared if d.test and hasattr(d, "spans")} == (
    held_out
  )


def test_lines_that_all_say_the_same_leave_it_to_the_hash(tmp_path):
  root = tmp_path / "in"
  rows = []
  for i in range(40):
    add(root, f"{i}.png", None)
    rows.append(json.dumps({"file": f"{i}.png", "text": "x", "split": "train"}))
  (root / "all.jsonl").write_text("\n".join(rows))
  test = folder.open_folder(
    str(root), test=True, image_shape=(4, 4, 3), workdir=tmp_path
  )
  assert 0 < len(test) < 10


def test_a_listing_that_is_no_lines_is_one_entry_with_its_reason(photos):
  add(photos, "a.png", None)
  entries = [{"file": "a.png", "caption": f"{i}"} for i in range(50)]
  (photos / "all.jsonl").write_text(json.dumps(entries, indent=1))
  found = {one.id: one for one in find_pairs(str(photos)).rejected}
  assert set(found) == {"a.png", "all.jsonl"}
  assert "JSON array" in found["all.jsonl"].detail


def test_a_folder_without_a_caption_says_the_true_reason(tmp_path):
  for i in range(3):
    add(tmp_path, f"{i}.png", None)
  (tmp_path / "all.jsonl").write_text('{"file": "0.png", "prompt": "a square"}\n')
  (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a square\n")
  with pytest.raises(ValueError) as refusal:
    find_pairs(str(tmp_path))
  said = str(refusal.value)
  assert "all.jsonl:1: " in said and "has ['file', 'prompt']" in said
  assert "1.png: no caption" in said and "2.png" not in said
  assert "*.csv: neither an image nor a caption: 1 such as metadata.csv" in said


@pytest.mark.parametrize(
  ("name", "says"),
  [
    (
      "train-0.array_record",
      "shards, whose manifest.json is missing: repeat the `tfus",
    ),
    ("0.tar", "`tfusion prepare --source tar:FOLDER` makes shards of archives"),
    ("a.parquet", "--source parquet:FOLDER"),
    ("a.jsonl", "--source jsonl:FOLDER"),
  ],
)
def test_a_folder_of_something_else_is_told_what_it_may_be(tmp_path, name, says):
  (tmp_path / name).write_bytes(b"")
  (tmp_path / "README.md").write_bytes(b"")
  with pytest.raises(ValueError, match="holds no images .* 2 other files") as error:
    find_pairs(str(tmp_path))
  assert says in str(error.value)


def test_a_folder_that_cannot_be_listed_is_an_error(photos, monkeypatch):
  add(photos, "locked/a.png")
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("locked"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(ValueError, match=r"locked: cannot be listed \(Permission denied"):
    find_pairs(str(photos))


@pytest.mark.parametrize("name", ["test", "Test", "val", "VAL", "photos/valid", "eval"])
def test_images_in_a_folder_of_any_such_name_are_held_out(tmp_path, name):
  root = tmp_path / "photos"
  for i in range(3):
    add(root, f"train/{i}.png")
    add(root, f"{name}/{i}.png")
    add(root, f"contest/{i}.png")
  add(root, f"{name}/broken.png", " ")
  add(root, "train/broken.png", " ")
  train, test = (
    folder.open_folder(str(root), test=t, image_shape=(4, 4, 3), workdir=tmp_path)
    for t in (False, True)
  )
  assert {p.file for p in test._own} == {f"{name}/{i}.png" for i in range(3)}
  assert len(train) == 6
  for source in (train, test):
    assert source.balance.skipped == {pairs.EMPTY_CAPTION: Amount(1, 1)}
    assert source.balance.adds_up


def test_held_out_images_are_not_trained_on_where_no_others_can_be_used(tmp_path):
  for i in range(3):
    add(tmp_path / "in", f"train/{i}.png").write_bytes(b"broken")
    add(tmp_path / "in", f"test/{i}.png")
  with pytest.raises(
    ValueError, match="none of 3 .* to train on.* 3 cannot be decoded"
  ):
    folder.open_folder(
      str(tmp_path / "in"), test=False, image_shape=(4, 4, 3), workdir=tmp_path
    )


def test_captions_that_rows_can_split_are_kept(photos, tmp_path):
  add(photos, "long.png", "word " * 50)
  source = folder.open_folder(
    str(photos), test=False, image_shape=(4, 4, 3), workdir=tmp_path
  )
  fitted = source.fit(len, room=100)
  assert fitted.balance.skipped == {folder.TOO_LONG: Amount(1, 1, 1)}
  assert fitted.balance.found == source.balance.found


STEMS = "a b.c d-e caf\u00e9 \u732b f_1 \U0001f408 g h".split() + ["two words"]
UNDECODED = "cannot be decoded"
FOLDERS = ("", "", "train/", "Test/", "contest/", "x/val/")
SUFFIXES = (
  ".png .PNG .jpg .webp .gif .heic .HEIC .avif .svg .nef .json .csv .md .xyz".split()
)
TEXTS = (
  "a square",
  "\u732b\u304c\u3044\u308b",
  "\U0001f408",
  "a square".encode("utf-16"),
  "a square".encode("utf-16-le"),
  "caf\u00e9".encode("latin-1"),
  b"\0\0\0",
  "\u200b\u200d",
  " \n",
  "",
)


def scatter(root: Path, rng: random.Random) -> None:
  """A folder of whatever people leave in one."""
  for _ in range(rng.randrange(8, 30)):
    path = root / f"{rng.choice(FOLDERS)}{rng.choice(STEMS)}{rng.choice(SUFFIXES)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() or path.is_symlink():
      continue
    kind = rng.random()
    if kind < 0.1:
      path.symlink_to(root / "nowhere.png")
    elif kind < 0.2:
      path.write_bytes(b"broken")
    elif path.suffix.lower() in (".png", ".jpg", ".webp", ".gif"):
      Image.new("RGB", (9, 9), (rng.randrange(256), 0, 0)).save(path, "PNG")
    else:
      path.write_bytes(b"something")
    if rng.random() < 0.7:
      data = rng.choice(TEXTS)
      ending = rng.choice([".txt", ".txt", ".TXT"])
      data = data if isinstance(data, bytes) else data.encode()
      path.with_suffix(ending).write_bytes(data)
  names = [p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()]
  for listing in ("all.jsonl", "train/More.JSONL")[: rng.randrange(3)]:
    lines = []
    for _ in range(rng.randrange(1, 8)):
      file = rng.choice([*names, "gone.png", "../up.png", None, 3])
      said = rng.choice(["listed", "\u732b", "", "\0\0", "\u200b", None, ["x"]])
      keys = rng.choice(
        [("file", "caption"), ("file_name", "text"), ("image", "prompt")]
      )
      lines.append(json.dumps(dict(zip(keys, (file, said)))))
    (root / listing).parent.mkdir(parents=True, exist_ok=True)
    (root / listing).write_text("\n".join(rng.choice([lines, [*lines, "{", "[1]"]])))
  for i in range(3):  # so that there is something to use
    add(root, f"train/sure{i}.png")
    add(root, f"sure{i}.png")
    add(root, f"Test/sure{i}.png")


@pytest.mark.parametrize("seed", range(40))
def test_whatever_lies_in_a_folder_is_used_or_listed_and_adds_up(tmp_path, seed):
  root = tmp_path / "in"
  scatter(root, random.Random(seed))
  sources = [
    folder.open_folder(str(root), test=test, image_shape=(4, 4, 3), workdir=tmp_path)
    for test in (False, True)
  ]
  train, test = sources
  used = {pair.file for source in sources for pair in source._own}
  rejected = train.rejected
  assert rejected == test.rejected and len(train.skipped) == len(rejected)
  ids = {one.id for one in rejected}

  def told(name: str) -> bool:
    if name in ids or any(id.startswith(f"{name} ") for id in ids):
      return True
    return any(one.detail.startswith(f"of {name}: ") for one in rejected)  # by a line

  names = sorted(pairs.walk(root))
  images = {n for n in names if pairs.is_image_name(n)}
  for name in names:
    path = root / name
    if name in images:
      assert name in used or told(name), name
    elif path.suffix.lower() == ".txt":
      of_stem = [n for n in images if os.path.splitext(n)[0] == name[: -len(".txt")]]
      spoken = {p.caption for s in sources for p in s._own if p.file in of_stem}
      with_it = (pairs.BAD_CAPTION, pairs.EMPTY_CAPTION, pairs.NOT_OPENED, UNDECODED)
      lost = {one.id for one in rejected if one.reason in with_it} & {*of_stem}
      assert told(name) or lost or text.decode(path.read_bytes()).strip() in spoken
    elif path.suffix.lower() == ".jsonl":
      lines = [line for line in path.read_text().splitlines() if line.strip()]
      for number, line in enumerate(lines, start=1):
        if told(f"{name}:{number}") or told(name):
          continue
        row = json.loads(line)
        file = os.path.normpath(
          os.path.join(os.path.dirname(name), list(row.values())[0])
        )
        assert file in used or told(file), line
    else:
      assert told(f"*{path.suffix.lower()}"), name
  # Nothing is both, nothing is counted twice: each image file by its own amounts.
  documents = [one for one in rejected if one.amount.images]
  lost = {
    n
    for n in images
    for one in documents
    if one.id == n or one.id.startswith(f"{n} ") or one.detail.startswith(f"of {n}: ")
  }
  assert used | lost == images
  for source in sources:
    balance = source.balance
    assert balance.adds_up
    assert balance.used == Amount(*[len(source)] * 3)
  # Names split them: no held-out file is trained on, nor the other way round.
  for name in used:
    held_out = name.startswith("Test/") or "/val/" in name
    assert (name in {p.file for p in test._own}) == held_out, name
