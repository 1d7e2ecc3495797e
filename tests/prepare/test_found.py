"""All that sources hold is used or listed, and the true reason comes first."""

import collections
import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tfusion import cli
from tfusion.data import folder, heldout, pairs
from tfusion.data import text as text_lib
from tfusion.data.balance import Amount
from tfusion.data.shards import manifest, source
from tfusion.data.tokenizer import Tokenizer
from tfusion.inspect import shards as show
from tfusion.prepare import job, raw, readers
from tfusion.prepare import rows as rows_lib
from tfusion.prepare import tar as tar_lib
from tfusion.prepare.raw import Raw, Rejected

SHAPE = (8, 8, 3)


def png(shade: int = 9) -> bytes:
  out = io.BytesIO()
  Image.new("RGB", (10, 9), (shade % 256, 7, 7)).save(out, "PNG")
  return out.getvalue()


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
  with tarfile.open(path, mode) as archive:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return path


def lines(path: Path, rows: list) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
  return path


def parquet(path: Path, rows: list[dict]) -> Path:
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as parquet_lib

  path.parent.mkdir(parents=True, exist_ok=True)
  parquet_lib.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
  return path


def read(spec: str) -> dict[str, Raw | Rejected]:
  """Every document as a job sees it after cleaning, by id."""
  parts = readers.plan(spec, documents=5, image_shape=SHAPE)
  found = [d for part in parts for d in part.read()]
  assert len({d.id for d in found}) == len(found)
  return {d.id: raw.clean(d) if isinstance(d, Raw) else d for d in found}


def kept(found: dict) -> list[Raw]:
  return [d for d in found.values() if isinstance(d, Raw)]


def reasons(found: dict) -> dict[str, str]:
  return {d.id: d.reason for d in found.values() if isinstance(d, Rejected)}


# Layouts that people have, which are read.


def test_a_folders_own_listing_is_read_as_json_lines_with_its_images(tmp_path):
  for i in range(24):
    (tmp_path / f"{i}.png").write_bytes(png(i))
  ours = [{"file": f"{i}.png", "caption": f"ours {i}"} for i in range(24)]
  theirs = [{"file_name": f"{i}.png", "text": f"theirs {i}"} for i in range(24)]
  lines(tmp_path / "ours.jsonl", ours)
  lines(tmp_path / "metadata.jsonl", theirs)
  found = read(f"jsonl:{tmp_path}")
  assert len(kept(found)) == 48 and not reasons(found)
  assert all(d.amount == Amount(1, 1, 1) for d in kept(found))
  assert {d.spans for d in kept(found)} >= {("ours 3", tmp_path / "3.png")}


def test_lists_of_images_in_parquet_come_with_their_text(tmp_path):
  rows = [
    {"text": f"two of {i}", "images": [{"bytes": png(i + k), "path": None}] * 2}
    for i, k in enumerate(range(40))
  ]
  parquet(tmp_path / "train.parquet", rows)
  found = read(f"parquet:{tmp_path}")
  assert len(kept(found)) == 40
  assert all(d.amount == Amount(1, 2, 1) for d in kept(found))
  assert kept(found)[3].spans == ("two of 3", png(6), png(6))


def test_times_and_one_bad_text_in_parquet_cost_no_other_row(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as parquet_lib

  texts = [b"a"] * 9 + [b"caf\xe9"] + [b"b"] * 60
  binary = pyarrow.array(texts, pyarrow.binary())
  text = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), binary.buffers())
  # Nanoseconds that no datetime of Python holds.
  when = pyarrow.array([1] * len(texts), pyarrow.duration("ns"))
  table = pyarrow.table({"text": text, "when": when})
  parquet_lib.write_table(table, tmp_path / "a.parquet")
  found = read(f"parquet:{tmp_path}")
  assert reasons(found) == {"a.parquet@0.9": raw.UNREADABLE}
  assert len(kept(found)) == 69


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.{}"])
def test_a_compressed_archive_is_read_whatever_it_is_called(tmp_path, kind, name):
  members = {}
  for i in range(5):
    members |= {f"{i}.png": png(i), f"{i}.txt": f"shade {i}".encode()}
  path = tar(tmp_path / name.format(kind), members, f"w:{kind}")
  found = read(f"tar:{tmp_path}")
  assert [d.spans for d in kept(found)] == [(f"shade {i}", png(i)) for i in range(5)]
  # And cut, it gives what is whole and says so.
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  assert raw.UNREADABLE in reasons(read(f"tar:{tmp_path}")).values()


def test_a_tar_lists_members_that_its_documents_leave_unused(tmp_path):
  spans = {"spans": [{"text": "only a"}, {"image": "a.png"}]}
  members = {"0.a.png": png(1), "0.b.png": png(2), "0.json": json.dumps(spans).encode()}
  members |= {"0.txt": b"another caption"}
  members |= {"1.png": png(), "1.txt": b"fine", "1.more.txt": b"unused", "1.cls": b"3"}
  members |= {"2.png": png(), "2.heic": b"from a phone", "2.txt": b"two"}
  tar(tmp_path / "a.tar", members)
  found = read(f"tar:{tmp_path}")
  assert kept(found)[0].spans == ("only a", png(1))
  assert kept(found)[1].spans == ("fine", png())
  # The third has an image that nothing decodes; the whole document will be rejected.
  assert kept(found)[2].spans == ("two", png(), b"from a phone")
  lost = {d.id: d.amount for d in found.values() if isinstance(d, Rejected)}
  assert lost == {
    "a.tar/0.b.png": Amount(0, 1),
    "a.tar/0.txt": Amount(0, 0, 1),
    "a.tar/1.more.txt": Amount(0, 0, 1),
  }


def test_what_the_json_of_a_tar_holds_beside_the_caption_is_counted(tmp_path):
  members = {}
  rows = [
    {"caption": "shade 0", "alt": "a red square", "url": "https://x.org/0.png"},
    {"caption": "another than the .txt", "id": "a b"},
    {"text": "shade 2", "caption": " shade 2"},
  ]
  for i, row in enumerate(rows):
    members |= {f"{i}.png": png(i), f"{i}.json": json.dumps(row).encode()}
    members |= {f"{i}.txt": f"shade {i}".encode()}
  tar(tmp_path / "a.tar", members)
  found = read(f"tar:{tmp_path}")
  assert [d.spans[0] for d in kept(found)] == ["shade 0", "shade 1", "shade 2"]
  lost = [d for d in found.values() if isinstance(d, Rejected)]
  assert [(d.reason, d.detail) for d in lost] == [
    (raw.UNREAD, '".json\'s caption" in 1 row'),
    (raw.UNREAD, "'alt' in 1 row"),
  ]
  assert {d.amount for d in lost} == {Amount(0, 0, 1)}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_lies_behind_the_end_of_an_archive_is_told_of(tmp_path, mode):
  path = tar(tmp_path / "a.tar", {"0.png": png(), "0.txt": b"first"}, mode)
  assert not reasons(read(f"tar:{tmp_path}"))
  more = tar(tmp_path / "b.tar", {"1.png": png(), "1.txt": b"second"}, mode)
  path.write_bytes(path.read_bytes() + more.read_bytes())
  more.unlink()
  found = read(f"tar:{tmp_path}")
  assert [d.spans[0] for d in kept(found)] == ["first"]
  (lost,) = (d for d in found.values() if isinstance(d, Rejected))
  assert lost.reason == raw.UNREADABLE and "more behind its end" in lost.detail


def test_a_list_of_captions_in_a_tar_is_called_one(tmp_path):
  members = {"0.png": png(), "0.json": b'{"caption": ["a", "b"]}'}
  tar(tmp_path / "a.tar", members)
  (lost,) = read(f"tar:{tmp_path}").values()
  assert "whose caption is a list; give each its own line" in lost.detail


def test_columns_that_are_not_read_are_counted_by_split_wherever_they_begin(tmp_path):
  rows = [{"text": f"a {i}"} for i in range(30)]
  rows += [{"text": "a", "alt": "two words", "split": s} for s in ("train", "test")]
  lines(tmp_path / "a.jsonl", rows)
  table = [{"input": "0.png", "instruction": "a", "output": "0.png", "alt": "b c"}] * 9
  (tmp_path / "0.png").write_bytes(png())
  lines(tmp_path / "e" / "a.jsonl", table)
  (tmp_path / "e" / "0.png").write_bytes(png())
  header = "input,instruction,output,alt\n"
  (tmp_path / "e" / "b.csv").write_text(header + "0.png,a,0.png,b c\n" * 9)
  parquet(tmp_path / "p" / "a.parquet", [{"text": "a", "alt": "b c"}] * 9)
  for spec, count in (
    (f"jsonl:{tmp_path / 'a.jsonl'}", 2),
    (f"edits:{tmp_path / 'e'}", 18),
    (f"parquet:{tmp_path / 'p'}", 9),
  ):
    lost = [d for d in read(spec).values() if isinstance(d, Rejected)]
    assert {d.reason for d in lost} == {raw.UNREAD}
    assert sum((d.amount for d in lost), Amount()) == Amount(0, 0, count)
  lost = [d for d in read(f"jsonl:{tmp_path / 'a.jsonl'}").values()]
  assert sum(d.test for d in lost if isinstance(d, Rejected)) == 1


# Held out by name.


@pytest.mark.parametrize(
  "name", ["val/b", "validation-00000-of-00001", "Test/b", "dev"]
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text", "tar"])
def test_files_of_such_names_are_held_out_in_every_source(tmp_path, kind, name):
  suffix = {"text": "txt"}.get(kind, kind)
  for file, word in ((name, "apart"), ("train/a", "learned"), ("latest", "learned")):
    path = tmp_path / f"{file}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"{word} {i}"} for i in range(40)]
    if kind == "jsonl":
      lines(path, rows)
    elif kind == "parquet":
      parquet(path, rows)
    elif kind == "text":
      path.write_text(word)
    else:
      members = {}
      for i in range(40):
        members |= {f"{i}.png": png(i), f"{i}.txt": f"{word} {i}".encode()}
      tar(path, members)
  found = kept(read(f"{kind}:{tmp_path}"))
  assert {d.test for d in found} == {True, False}
  for document in found:
    assert document.test == document.spans[0].startswith("apart"), document.id


def test_members_and_images_of_such_names_are_held_out_where_files_do_not_say(tmp_path):
  members, rows = {}, []
  for i in range(40):
    for split in ("val", "train"):
      members |= {f"{split}/{i}.png": png(i), f"{split}/{i}.txt": split.encode()}
      rows.append({"text": split, "image": f"{split}/{i}.png"})
      (tmp_path / "in" / split).mkdir(parents=True, exist_ok=True)
      (tmp_path / "in" / split / f"{i}.png").write_bytes(png(i))
  tar(tmp_path / "a.tar", members)
  lines(tmp_path / "in" / "a.jsonl", rows)
  for spec in (f"tar:{tmp_path}", f"jsonl:{tmp_path / 'in'}"):
    found = kept(read(spec))
    assert len(found) == 80
    assert all(d.test for d in found if d.spans[0] == "val")
    # Of the others a hash takes its share.
    assert sum(d.test for d in found if d.spans[0] == "train") < 10


def test_files_that_are_all_called_so_are_split_by_hash_and_it_is_said(
  tmp_path, capsys
):
  path = lines(tmp_path / "test.jsonl", [{"text": f"a {i}"} for i in range(100)])
  for named, says in ((tmp_path, "every file's name says"), (path, "its name says")):
    found = kept(read(f"jsonl:{named}"))
    assert 0 < sum(d.test for d in found) < 20
    assert f"{says} held out" in capsys.readouterr().out


# The true reason first.


def refused(spec: str, out: Path, **more) -> str:
  with pytest.raises(ValueError) as refusal:
    job.prepare(job.Request(spec, str(out), image_px=8, **more))
  return str(refusal.value)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("tokenizer") / "t.model"
  Tokenizer.train(["a picture of something red"], vocab_size=290, path=path)
  return str(path)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("column", ["prompt", "captions", "TEXT"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_unknown_column_is_refused_before_any_work(
  tmp_path, tokenizer, given, column, kind
):
  pytest.importorskip("apache_beam")
  for i in range(40):
    (tmp_path / f"{i}.png").write_bytes(png(i))
  value = ["a red one", "another"] if column == "captions" else "a red one"
  rows = [{"image": f"{i}.png", column: value, "id": i} for i in range(40)]
  (lines if kind == "jsonl" else parquet)(tmp_path / f"rows.{kind}", rows)
  out = tmp_path.parent / f"{tmp_path.name}-out"
  said = refused(f"{kind}:{tmp_path}", out, tokenizer=tokenizer if given else "")
  how = "rename it to 'text'"
  if column == "captions":
    how = "give each text a row of its own, as 'text'"
  assert f"{column!r} may be a text and is not read; {how}" in said
  assert (
    f"rows.{kind}" in said and f"columns are {sorted(['image', column, 'id'])}" in said
  )
  assert '"text" or "caption"' in said and "tokenizer" not in said
  assert not out.exists()


def dotted(root):
  members = {}
  for i in range(9):
    members |= {f"img.{i}.png": png(i), f"img.{i}.txt": b"a picture"}
  tar(root / "a.tar", members)


def classes(root):
  members = {}
  for i in range(9):
    members |= {f"{i}.png": png(i), f"{i}.cls": b"7"}
  tar(root / "a.tar", members)


def json_prompts(root):
  members = {}
  for i in range(9):
    members |= {f"{i}.png": png(i), f"{i}.json": b'{"prompt": "a red one"}'}
  tar(root / "a.tar", members)


def apart(root):
  members = {f"{i}.png": png(i) for i in range(9)}
  tar(root / "a.tar", members | {f"{i}.txt": b"a red one" for i in range(9)})


def zipped(root):
  with zipfile.ZipFile(root / "a.tar", "w") as archive:
    archive.writestr("0.txt", "a red one")


def json_array(root):
  (root / "a.jsonl").write_text(json.dumps([{"text": "a"}] * 9))


def several_lines(root):
  (root / "a.jsonl").write_text(json.dumps({"text": "a"}, indent=1))


def gzipped_lines(root):
  (root / "a.jsonl").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9))


def old_mac_lines(root):
  (root / "a.jsonl").write_bytes(b'{"text": "a"}\r' * 9)


def unmarked_lines(root):
  (root / "a.jsonl").write_bytes(('{"text": "a"}\n' * 9).encode("utf-16-le"))


EDIT = b"input,instruction,output\n0.png,make it red,1.png\n"


def open_quote(root):
  (root / "a.csv").write_bytes(EDIT + b'0.png,"make it,1.png\n' + EDIT * 9)


def twice(root):
  (root / "a.csv").write_bytes(EDIT.replace(b"output", b"output,instruction", 1))


def only_a_header(root):
  (root / "a.csv").write_bytes(EDIT.partition(b"\n")[0])


def semicolons(root):
  (root / "a.csv").write_bytes(EDIT.replace(b",", b";"))


def twice_in_parquet(root):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as parquet_lib

  table = pyarrow.Table.from_arrays([["a"], ["b"]], names=["text", "text"])
  parquet_lib.write_table(table, root / "a.parquet")


def wide_lines(root):
  (root / "a.jsonl").write_bytes(('{"text": "a"}\n' * 9).encode("utf-16"))


def lost_images(root):
  lines(root / "a.jsonl", [{"text": "a", "image": f"gone{i}.png"} for i in range(9)])


def blank_texts(root):
  lines(root / "a.jsonl", [{"text": "\u200b", "image": "a.png"}] * 9)
  (root / "a.png").write_bytes(png())


def null_texts(root):
  lines(root / "a.jsonl", [{"text": None, "image": "a.png"}] * 9)
  (root / "a.png").write_bytes(png())


def latin_texts(root):
  for i in range(3):
    (root / f"{i}.txt").write_bytes(b"caf\xe9")


def test_a_source_without_a_document_is_said_to_have_none(tmp_path):
  pytest.importorskip("apache_beam")
  for kind in ("jsonl", "tar", "text"):
    (tmp_path / kind).mkdir()
  (tmp_path / "jsonl" / "a.jsonl").write_text("\n\n")
  tar(tmp_path / "tar" / "a.tar", {})
  (tmp_path / "text" / "a.txt").write_text(" ")
  for kind in ("jsonl", "tar", "text"):
    said = refused(f"{kind}:{tmp_path / kind}", tmp_path / f"out-{kind}")
    assert "nothing to train on; it holds no document that can be used" in said
    assert ("1 text is empty, such as a.txt" in said) == (kind == "text")
    assert "0 documents" not in said


def test_images_that_no_memory_holds_are_refused_before_any_work(tmp_path):
  pytest.importorskip("apache_beam")
  request = job.Request("shapes", str(tmp_path / "out"), image_px=100_000)
  with pytest.raises(ValueError, match="--image-px=100000: more than the 8,192"):
    job.prepare(request)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
  ("kind", "make", "says"),
  [
    ("tar", dotted, ["not a document in a known", "first dot", "img", "no other dots"]),
    (
      "tar",
      classes,
      ["9 no caption", "has .cls, .png", "a caption is a .txt", "0.txt"],
    ),
    ("tar", json_prompts, ["9 no caption", "with ['prompt']", '"caption" or "text"']),
    ("tar", apart, ["9 no caption", "9 no such image", "members next to each other"]),
    ("tar", zipped, ["1 cannot be read", "is compressed by zip; unpack it"]),
    ("jsonl", json_array, ["a.jsonl is a JSON array", "on a line of its own"]),
    ("jsonl", several_lines, ["a.jsonl has objects over several lines"]),
    ("jsonl", gzipped_lines, ["a.jsonl is compressed by gzip; unpack it"]),
    ("jsonl", wide_lines, ["a.jsonl is UTF-16", "save it as UTF-8"]),
    ("jsonl", unmarked_lines, ["as UTF-16 without a mark", "save it as UTF-8"]),
    ("jsonl", old_mac_lines, ["a.jsonl has lines that end with CR alone; save it"]),
    ("edits", open_quote, ['a.csv: row 2 opens a quote (") that is never closed']),
    ("edits", twice, ["a.csv has several columns called 'instruction'; rename"]),
    ("edits", only_a_header, ["a.csv has columns and no rows"]),
    ("edits", semicolons, ["up to each comma, are ['input;instruction;output']"]),
    ("parquet", twice_in_parquet, ["has several columns called 'text'; rename"]),
    ("jsonl", lost_images, ["9 no such image", "gone0.png", "What is read"]),
    ("jsonl", blank_texts, ["9 text is empty", "What is read"]),
    ("jsonl", null_texts, ["9 its text is missing", "'text'"]),
    ("text", latin_texts, ["3 text is not Unicode", "UTF-8"]),
  ],
)
def test_a_source_of_which_nothing_can_be_used_says_why(
  tmp_path, tokenizer, kind, make, says, given
):
  pytest.importorskip("apache_beam")
  (tmp_path / "in").mkdir()
  make(tmp_path / "in")
  more = {"tokenizer": tokenizer} if given else {}
  said = refused(f"{kind}:{tmp_path / 'in'}", tmp_path / "out", **more)
  for words in says:
    assert words in said, said
  assert "tokenizer" not in said


def test_a_source_that_was_mended_can_be_prepared_into_the_same_folder(tmp_path):
  pytest.importorskip("apache_beam")
  (tmp_path / "in").mkdir()
  classes(tmp_path / "in")
  refused(f"tar:{tmp_path / 'in'}", tmp_path / "out")
  members = {}
  for i in range(60):
    members |= {f"{i}.png": png(i), f"{i}.txt": b"a picture"}
  tar(tmp_path / "in" / "a.tar", members)
  made = job.prepare(
    job.Request(f"tar:{tmp_path / 'in'}", str(tmp_path / "out"), image_px=8)
  )
  assert made.counts.kept == 60


def test_texts_of_parts_beyond_the_sample_are_found(monkeypatch):
  class Part:
    def __init__(self, *documents):
      self.documents = documents

    def read(self):
      yield from self.documents

  monkeypatch.setattr(job, "SAMPLE_PARTS", 1)
  lost, fine = Rejected("a", raw.NO_CAPTION), Raw("b", ("words",), False)
  assert job.sample_texts([Part(lost), Part(lost), Part(fine)], "tar:x") == ["words"]
  with pytest.raises(ValueError, match="2 skipped: 2 no caption, such as a"):
    job.sample_texts([Part(lost), Part(lost)], "tar:x")
  with pytest.raises(ValueError, match="1 documents without text .* --tokenizer"):
    job.sample_texts([Part(Raw("c", (b"image",), False))], "tar:x")
  with pytest.raises(ValueError, match="nothing to train on; 1 documents are held out"):
    job.sample_texts([Part(Raw("c", ("words",), True))], "tar:x")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar", "text"])
def test_a_link_to_nothing_among_the_files_is_refused(tmp_path, kind):
  suffix = {"text": "txt"}.get(kind, kind)
  (tmp_path / f"b.{suffix}").symlink_to(tmp_path / "nowhere")
  (tmp_path / f"a.{suffix}").write_text('{"text": "a"}')
  with pytest.raises(ValueError, match=f"b.{suffix}: a link to nothing"):
    readers.plan(f"{kind}:{tmp_path}", documents=5, image_shape=SHAPE)


def test_what_is_not_read_is_said_once(tmp_path, capsys):
  rows = [{"text": f"a {i}", "id": i, "license": "CC0"} for i in range(30)]
  for name in ("a", "b"):
    lines(tmp_path / f"{name}.jsonl", rows)
  (tmp_path / "more.csv").write_text("text\na\n")
  (tmp_path / "notes").write_text("some")
  assert len(kept(read(f"jsonl:{tmp_path}"))) == 60
  said = capsys.readouterr().out
  assert said.count("columns that are not read: id, license") == 1
  assert said.count("other files, which are not read: 1 .csv, 1 notes") == 1


def test_the_docs_name_all_that_is_read():
  told = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
  names = {*heldout.WORDS, *pairs.FILE_KEYS, *pairs.CAPTION_KEYS, *tar_lib.SUFFIXES}
  names |= {*rows_lib.TEXT, *rows_lib.FILE, *rows_lib.EDIT}
  names |= {"spans", "texts", "images", "image", "weight", "split", ".txt", ".md"}
  plain = {
    kind
    for kind, layout in readers.LAYOUTS.items()
    if ".layouts." not in layout.plan.__module__  # docs/shards.md has those
  }
  names |= {f"{kind}:PATH" for kind in plain - {"tfds"}} | {"tfds:NAME"}
  assert not [name for name in names if f"`{name}`" not in told]


# Whatever a source holds.

TEXTS = ("a red one", "\u732b\u304c\u3044\u308b", "x", "", " ", "\u200b", "\0a\0", None)


def messy_rows(rng: random.Random, root: Path) -> list:
  """Rows as people have them, and what else is in such files."""
  for i in range(6):
    (root / f"{i}.png").write_bytes(png(i) if i else b"broken")

  def text():
    return rng.choice(TEXTS)

  def image():
    return rng.choice(
      [f"{rng.randrange(7)}.png", f"{rng.randrange(1, 6)}.png", "", None]
    )

  rows: list = [{"text": f"sure {i}", "image": "1.png"} for i in range(60)]
  for _ in range(60):
    pair = [text(), image()]
    rows.append(
      rng.choice(
        [
          dict(zip(("text", "image"), pair)),
          dict(zip(("caption", "file"), pair)),
          dict(zip(("text", "file_name"), pair)),
          dict(zip(("prompt", "image"), pair)),
          dict(zip(("text", "img"), pair)),
          dict(zip(("TEXT", "URL"), pair)),
          {"text": text()},
          {"image": image()},
          {"caption": text(), "images": [image() for _ in range(rng.randrange(3))]},
          {"texts": [text(), text()], "images": [image(), image()]},
          {"texts": [text(), text()], "images": rng.choice([None, []])},
          {"spans": [{"text": text()}, {"image": image()}]},
          {"input": image(), "instruction": text(), "output": image()},
          {"id": 7},
        ]
      )
      | (
        {"split": rng.choice(["train", "test", "Val", "x"])}
        if rng.random() < 0.2
        else {}
      )
    )
  return rows


def offers(row) -> collections.Counter:
  """Texts and images that a row holds under whatever names, found by their look."""
  found: collections.Counter = collections.Counter()

  def look(value):
    if isinstance(value, dict):
      for inner in value.values():
        look(inner)
    elif isinstance(value, list):
      for inner in value:
        look(inner)
    elif isinstance(value, str) and not text_lib.is_blank(value):
      found["images" if value.endswith(".png") else "texts"] += 1

  look({k: v for k, v in row.items() if k != "split"} if isinstance(row, dict) else {})
  return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_whatever_rows_a_table_has_all_of_each_is_used_or_it_is_listed(
  tmp_path, kind, seed
):
  rng = random.Random(seed)
  rows = messy_rows(rng, tmp_path)
  if kind == "jsonl":
    given = [r for r in rows] + ["{", "[1]", "7", '"text"']
    lines(tmp_path / "a.jsonl", given)
  else:
    # A table has all columns in every row; each layout has a table of its own here.
    layouts: dict = {}
    for row in rows:
      layouts.setdefault(tuple(sorted(row.keys() - {"split", "id"})), []).append(row)
    given = []
    for number, (columns, own) in enumerate(sorted(layouts.items())):
      unknown = not {"text", "caption", "image"} & {*columns} or {"prompt", "img"} & {
        *columns
      }
      if not columns or (unknown and not {"texts", "spans", "input"} & {*columns}):
        continue
      given += own
      parquet(tmp_path / f"{number:02d}.parquet", own)
  try:
    found = read(f"{kind}:{tmp_path}")
  except ValueError as error:  # one of the tables has nothing that can be read
    assert kind == "parquet" and "can be read" in str(error)
    return
  assert len(found) == len(given)
  for document, row in zip(found.values(), given):
    row = json.loads(row) if isinstance(row, str) and row[0] != "{" else row
    has = offers(row)
    amount = document.amount
    assert amount.documents == 1
    if isinstance(document, Raw):
      assert (amount.images, amount.texts) == (has["images"], has["texts"]), row
      assert amount.images + amount.texts > 0
    elif document.reason != raw.BAD_LAYOUT:
      assert amount.images == has["images"], (row, document)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_members_an_archive_has_each_is_used_or_listed(tmp_path, seed):
  rng = random.Random(seed)
  members: dict[str, bytes] = {}
  for key in range(30):
    for suffix in rng.sample(
      "png jpg heic a.png b.png txt a.txt json cls npy".split(), rng.randrange(1, 5)
    ):
      data = png(key) if suffix.endswith("png") or suffix == "jpg" else b"data"
      if suffix.endswith("txt"):
        data = (rng.choice(TEXTS) or "").encode(rng.choice(["utf-8", "utf-16"]))
      if suffix == "json":
        row = rng.choice(
          [
            {"caption": rng.choice(TEXTS)},
            {"prompt": "a red one"},
            {"spans": [{"text": "a"}, {"image": "a.png"}]},
            [1],
          ]
        )
        data = json.dumps(row).encode()
      folder_of = rng.choice(["", "", "val/"])
      members[f"{folder_of}{key:02d}.{suffix}"] = data
  ordered = dict(sorted(members.items()))
  tar(tmp_path / "a.tar", ordered)
  found = read(f"tar:{tmp_path}")
  used: collections.Counter = collections.Counter()
  listed = {d.id for d in found.values() if isinstance(d, Rejected)}
  for document in kept(found):
    used[document.id] += len(document.spans)
    assert document.test or "val/" not in document.id
  for name in ordered:
    folder_of, _, file = name.rpartition("/")
    key = f"a.tar/{folder_of}/{file.split('.')[0]}".replace("//", "/")
    assert key in listed or f"a.tar/{name}" in listed or used[key], name
  images = sum(n.endswith(("png", "jpg", "heic")) for n in ordered)
  assert sum((d.amount for d in found.values()), Amount()).images == images


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["folder", "jsonl", "tar"])
def test_a_prepared_folder_accounts_for_all_that_was_found(
  tmp_path, tokenizer, capsys, kind, seed
):
  pytest.importorskip("apache_beam")
  root, rng = tmp_path / "in", random.Random(seed)
  root.mkdir()
  if kind == "jsonl":
    lines(root / "a.jsonl", messy_rows(rng, root))
  else:
    members = {}
    for i in range(60):
      members |= {f"{i}.png": png(i), f"{i}.txt": f"shade {i}".encode()}
    for i in range(60, 80):
      members[f"{i}.png"] = rng.choice([png(i), b"broken"])
      members[f"{i}.{rng.choice(['txt', 'cls'])}"] = (rng.choice(TEXTS) or "").encode()
    if kind == "tar":
      tar(root / "a.tar", members)
    else:
      for name, data in members.items():
        path = root / rng.choice(["", "val"]) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        other = path.parents[1 if path.parent != root else 0] / "val" / name
        assert path == other or not other.exists()
  out = tmp_path / "out"
  args = ["--source", f"{kind}:{root}", "--out", str(out), "--image-px", "8"]
  assert cli.main(["prepare", *args, "--tokenizer", tokenizer]) == 0
  said = capsys.readouterr().out
  made = manifest.load(out)
  listed = [json.loads(x) for x in (out / manifest.REJECTED).read_text().splitlines()]
  assert listed
  for split, balance in made.counts.splits.items():
    assert balance.adds_up
    skipped: dict[str, Amount] = {}
    for one in listed:
      if one["split"] == split:
        amount = Amount(*(one[k] for k in ("documents", "images", "texts")))
        skipped[one["reason"]] = skipped.get(one["reason"], Amount()) + amount
    assert skipped == balance.skipped
    texts = [r.texts for s in made.of(split) for r in source.read_shard(out / s.name)]
    assert balance.used.texts == sum(map(len, texts))
    name = {"train": "train:   ", "test": "held out:"}[split]
    found, used = balance.found.documents, balance.used.documents
    line = f"{name} {found:,} documents = {used:,} used +"
    assert line in said and line in "\n".join(show.manifest_lines(out))
    for reason, amount in balance.skipped.items():
      assert f"skipped, {reason}: {amount}" in said
  if kind == "folder":  # the raw folder has the same account, but for its own words
    raws = [
      folder.open_folder(str(root), test=t, image_shape=SHAPE, workdir=tmp_path).balance
      for t in (False, True)
    ]
    for ours, theirs in zip(raws, (made.counts.splits[s] for s in ("train", "test"))):
      assert (ours.found, ours.used) == (theirs.found, theirs.used)
