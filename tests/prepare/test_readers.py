"""Sources read into raw documents: every layout, every fault counted, none fatal."""

import csv
import errno
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from tfusion import parsing
from tfusion.data import folder, sources
from tfusion.data.balance import Amount
from tfusion.prepare import datasets, job, raw, readers
from tfusion.prepare.raw import Raw, Rejected

SHAPE = (8, 8, 3)


def png(colour="red", size=(10, 9)):
  out = io.BytesIO()
  Image.new("RGB", size, colour).save(out, "PNG")
  return out.getvalue()


def read(spec, documents=3, image_shape=SHAPE):
  """Every document by id, after the parts went through pickling, as Beam does it."""
  parts = readers.plan(str(spec), documents=documents, image_shape=image_shape)
  found = [d for part in pickle.loads(pickle.dumps(parts)) for d in part.read()]
  assert len({d.id for d in found}) == len(found)
  return {d.id: d for d in found}


def reasons(found):
  return {d.id: d.reason for d in found.values() if isinstance(d, Rejected)}


def test_a_folder_gives_caption_and_file_and_says_what_it_skipped(tmp_path):
  for name in ("a", "b", "c", "d"):
    (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / f"{name}.txt").write_text(f"picture {name}")
  (tmp_path / "e.png").write_bytes(png())
  (tmp_path / "more.jsonl").write_text(
    '{"file": "a.png", "caption": "one"}\n{"file": "a.png", "caption": "two"}\n'
  )
  found = read(f"folder:{tmp_path}")
  assert reasons(found) == {"e.png": "no caption", "a.txt": "caption not needed"}
  assert found["b.png"].spans == ("picture b", tmp_path / "b.png")
  assert [found[i].spans[0] for i in ("a.png", "a.png#2")] == ["one", "two"]
  held_out = folder.choose_held_out({f"{n}.png" for n in "abcd"}, named=False)
  tests = {d.id for d in found.values() if isinstance(d, Raw) and d.test}
  assert tests == held_out


@pytest.mark.parametrize("levels", [200, 420, 700, 940, 960, 975, 990, 200_000])
@pytest.mark.parametrize("kind", ["jsonl", "edits", "tar"])
def test_a_row_nested_without_end_is_rejected_by_its_place(tmp_path, kind, levels):
  deep, other = ("[" * levels + number + "]" * levels for number in "12")
  row = f'{{"text": {deep}, "caption": {other}, "more": {deep}}}'
  good = {"text": "a", "image": "a.png"}
  if kind == "edits":
    row = f'{{"input": {deep}, "instruction": {other}, "output": "a.png"}}'
    good = {"input": "a.png", "instruction": "a", "output": "a.png"}
  (tmp_path / "a.png").write_bytes(png())
  if kind == "tar":
    with tarfile.open(tmp_path / "rows", "w") as archive:
      for name, data in {"0.png": png(), "0.json": row.encode()}.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    (tmp_path / "rows").rename(tmp_path / "rows.tar")
    place = "rows.tar/0"
  else:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{row}\n")
    place = f"rows.jsonl@{len(json.dumps(good)) + 1}"
  lost = read(f"{kind}:{tmp_path}")[place]
  deep = levels > parsing.DEEPEST
  no_text = raw.NO_CAPTION if kind == "tar" else raw.BAD_LAYOUT  # a list is none
  assert lost.reason == (raw.BAD_LAYOUT if deep else no_text)
  assert (f"deeper than {parsing.DEEPEST} levels" in lost.detail) == deep


def test_a_table_of_nothing_but_deep_rows_is_refused_by_its_file(tmp_path):
  (tmp_path / "rows.jsonl").write_text("[" * 9000)
  with pytest.raises(ValueError, match=r"rows\.jsonl: none .* deeper than 400 levels"):
    read(f"jsonl:{tmp_path}")


def test_text_files_are_documents(tmp_path):
  (tmp_path / "train").mkdir()
  (tmp_path / "test").mkdir()
  (tmp_path / "train" / "a.txt").write_text("one\n\ntwo")
  (tmp_path / "train" / "bad.md").write_bytes(b"caf\xe9")
  (tmp_path / "test" / "b.txt").write_text("held out")
  with open(tmp_path / "train" / "huge.txt", "w") as file:
    file.truncate((64 << 20) + 1)
  found = read(f"text:{tmp_path}")
  assert found["train/a.txt"] == Raw("train/a.txt", ("one\n\ntwo",), False)
  assert found["test/b.txt"].test
  assert reasons(found) == {
    "train/bad.md": raw.BAD_TEXT,
    "train/huge.txt": raw.LONG_TEXT,
  }


def add(archive, name, data=b"", **fields):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  for key, value in fields.items():
    setattr(member, key, value)
  archive.addfile(member, io.BytesIO(data))


def test_a_tar_gives_what_shares_a_name_as_one_document(tmp_path):
  with tarfile.open(tmp_path / "one.tar", "w") as archive:
    add(archive, "d", type=tarfile.DIRTYPE)
    add(archive, "d/0.jpg", png("red"))
    add(archive, "d/0.txt", b" a red picture\n")
    add(archive, "d/0.cls", b"7")
    add(archive, "1.json", b'{"caption": "blue"}')
    add(archive, "1.png", png("blue"))
    spans = [{"text": "first"}, {"image": "b.png"}, {"image": "a.png", "weight": 0}]
    add(archive, "2.a.png", png("red"))
    add(archive, "2.b.png", png("blue"))
    add(archive, "2.json", json.dumps({"spans": spans, "split": "test"}).encode())
    add(archive, "3.png", png())
    add(archive, "4.txt", b"no picture")
    add(archive, "5.png", png())
    add(archive, "5.txt", b"caf\xe9")
    add(archive, "6.png", png())
    add(archive, "6.json", b"{")
    for name in ("7.jpg", "7.txt", "7.JPG"):  # which of the two is meant?
      add(archive, name, b"caption 7")
  found = read(f"tar:{tmp_path}")
  assert found["one.tar/d/0"].spans == ("a red picture", png("red"))
  assert found["one.tar/1"].spans == ("blue", png("blue"))
  both = found["one.tar/2"]
  assert both.spans == ("first", png("blue"), png("red"))
  assert both.weights == (1, 1, 0) and both.test
  assert reasons(found) == {
    "one.tar/3": raw.NO_CAPTION,
    "one.tar/4": raw.NO_IMAGE,
    "one.tar/5": raw.BAD_TEXT,
    "one.tar/6": raw.BAD_LAYOUT,
    "one.tar/7": raw.BAD_LAYOUT,
  }


def test_a_tar_with_names_that_lead_out_or_links_is_read_around_them(tmp_path):
  secret = tmp_path / "secret.txt"
  secret.write_text("not for training")
  (tmp_path / "in").mkdir()
  with tarfile.open(tmp_path / "in" / "bad.tar", "w") as archive:
    add(archive, "a.png", png())
    add(archive, "a.txt", b"fine")
    add(archive, "../b.png", png())
    add(archive, "x/../../b.txt", b"out")
    add(archive, "/etc/c.txt", b"out")
    add(archive, "d.png", png())
    add(archive, "d.txt", type=tarfile.SYMTYPE, linkname=str(secret))
    add(archive, "e.txt", type=tarfile.LNKTYPE, linkname="a.txt")
    add(archive, "f.txt", type=tarfile.FIFOTYPE)
  found = read(f"tar:{tmp_path / 'in'}")
  assert reasons(found) == {
    "bad.tar/../b.png": raw.OUTSIDE,
    "bad.tar/x/../../b.txt": raw.OUTSIDE,
    "bad.tar//etc/c.txt": raw.OUTSIDE,
    "bad.tar/d.txt": raw.LINK,
    "bad.tar/d": raw.NO_CAPTION,
    "bad.tar/e.txt": raw.LINK,
    "bad.tar/f.txt": raw.LINK,
  }
  assert found["bad.tar/a"].spans == ("fine", png())
  assert os.listdir(tmp_path / "in") == ["bad.tar"]  # nothing is unpacked


def test_a_tar_cut_anywhere_gives_what_is_whole_and_says_so(tmp_path):
  path = tmp_path / "whole.tar"
  with tarfile.open(path, "w") as archive:
    for i in range(3):
      add(archive, f"{i}.png", png(size=(40, 40)))
      add(archive, f"{i}.txt", b"a picture")
  whole = path.read_bytes()
  assert not reasons(read(f"tar:{path}"))
  # Inside a header, inside data, between members, and at the missing end.
  for cut, documents in (
    (100, 0),
    (700, 0),
    (1024, 0),
    (2048, 1),
    (2600, 1),
    (6144, 3),
  ):
    path.write_bytes(whole[:cut])
    found = read(f"tar:{path}")
    kept = [d for d in found.values() if isinstance(d, Raw)]
    assert len(kept) == documents, cut
    assert raw.UNREADABLE in reasons(found).values(), cut
  path.write_bytes(whole[:2048] + b"junk" * 128 + whole[2560:])
  assert raw.UNREADABLE in reasons(read(f"tar:{path}")).values()
  path.write_bytes(b"")
  assert list(reasons(read(f"tar:{path}")).values()) == [raw.UNREADABLE]


ROWS = [
  {"spans": [{"image": "a.png"}, {"text": "then"}, {"image": "b.png", "weight": 0}]},
  {"texts": ["x", None, "y"], "images": [None, "a.png", None]},
  {"caption": "a cat", "image": "a.png"},
  {"text": "only words", "split": "test"},
  {"input": "a.png", "instruction": "make it blue", "output": "b.png"},
]
BAD_ROWS = {
  '{"spans": [{"image": "gone.png"}]}': raw.NO_IMAGE,
  '{"spans": [{"image": "a.png", "text": "both"}]}': raw.BAD_LAYOUT,
  '{"spans": [{"text": "a", "weight": -1}]}': raw.BAD_LAYOUT,
  '{"spans": [{"text": "a", "weight": 1%s}]}' % ("0" * 400): raw.BAD_LAYOUT,
  '{"spans": "abc"}': raw.BAD_LAYOUT,
  '{"texts": ["a"], "images": []}': None,  # no images at all is fine
  '{"texts": ["a"], "images": ["a.png", "b.png"]}': raw.BAD_LAYOUT,
  '{"text": 7}': raw.BAD_LAYOUT,
  '{"text": "a", "split": "dev"}': None,
  '{"text": "a", "split": "some"}': raw.BAD_LAYOUT,
  '{"instruction": "a"}': raw.LOST_IMAGE,
  '{"words": "a"}': raw.BAD_LAYOUT,
  '{"image": "a.png", "words": "a red thing"}': raw.UNKNOWN,
  "[1]": raw.BAD_LAYOUT,
  "not json": raw.BAD_LAYOUT,
  '{"text": "a", "image": "data:image/png;base64,%s"}' % ("A" * 5000): raw.NO_IMAGE,
  '{"text": "a", "image": "a\\u0000.png"}': raw.NO_IMAGE,
  '{"text": ' + "[" * 100_000: raw.BAD_LAYOUT,
}


def check_rows(documents, first, second):
  """The rows above, whatever file they came from."""
  interleaved, parallel, pair, words, edit = documents
  assert interleaved.spans == (first, "then", second)
  assert interleaved.weights == (1, 1, 0)
  assert parallel.spans == ("x", first, "y")
  assert pair.spans == ("a cat", first)
  assert words.spans == ("only words",) and words.test
  assert edit.spans == (first, "make it blue", second)
  assert edit.weights == (0, 1, 1)


@pytest.fixture
def images(tmp_path):
  (tmp_path / "a.png").write_bytes(png("red"))
  (tmp_path / "b.png").write_bytes(png("blue"))
  return tmp_path


def test_json_lines_hold_texts_and_images_in_any_order(images):
  lines = [json.dumps(row) for row in ROWS]
  (images / "rows.jsonl").write_text("\n".join(lines))
  found = list(read(f"jsonl:{images}").values())
  check_rows(found, images / "a.png", images / "b.png")


def test_lines_that_are_no_document_are_rejected_one_by_one(images):
  (images / "bad.jsonl").write_bytes(
    "\n".join(BAD_ROWS).encode() + b'\n\n\xff\xfe\n{"text": "last"}\n'
  )
  found = read(f"jsonl:{images}", documents=2)
  kinds = [getattr(d, "reason", None) for d in found.values()]
  assert kinds == [*BAD_ROWS.values(), raw.BAD_LAYOUT, None]


def test_a_disk_that_fails_stops_the_part_and_rejects_nothing(images, monkeypatch):
  (images / "rows.jsonl").write_text('{"text": "a", "image": "a.png"}\n')
  (images / "a.txt").write_text("a text")

  def fail(*args, **options):
    raise OSError(errno.EIO, "Input/output error")

  for spec in (f"jsonl:{images}", f"text:{images}"):
    parts = readers.plan(spec, documents=3, image_shape=SHAPE)
    with monkeypatch.context() as patch:
      patch.setattr("builtins.open", fail)
      patch.setattr(pathlib.Path, "read_bytes", fail)
      with pytest.raises(OSError, match="Input/output"):
        list(parts[0].read())
    assert isinstance(next(parts[0].read()), Raw)
  with pytest.raises(OSError, match="Input/output"):
    raw.stop_if_of_machine(OSError(errno.EIO, "Input/output error"))
  raw.stop_if_of_machine(OSError("image file is truncated"))
  raw.stop_if_of_machine(FileNotFoundError(errno.ENOENT, "gone"))


@pytest.mark.parametrize("kind", ["folder", "tar", "jsonl", "text", "edits", "parquet"])
@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_file_that_changes_under_the_job_stops_the_part(tmp_path, kind, change):
  name = {"folder": "a.png", "edits": "a.csv", "text": "a.txt"}.get(kind, f"a.{kind}")
  path = tmp_path / name
  if kind == "folder":
    path.write_bytes(png())
    (tmp_path / "a.txt").write_text("red")
  elif kind == "tar":
    with tarfile.open(path, "w") as archive:
      add(archive, "0.jpg", png())
      add(archive, "0.txt", b"red")
  elif kind == "parquet":
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["red"]}), path)
  else:
    csv_rows = "input,instruction,output\na,b,c\n"
    path.write_text(csv_rows if kind == "edits" else '{"text": "red"}\n')
  (part,) = readers.plan(f"{kind}:{tmp_path}", documents=3, image_shape=SHAPE)
  assert len(list(part.read())) == 1
  if change == "gone":  # as all files are where a disk is no longer mounted
    path.unlink()
  else:
    path.write_bytes(path.read_bytes() + b"more")
  with pytest.raises(OSError, match=f"{name}: is gone or has changed"):
    list(part.read())


@pytest.mark.parametrize("documents", [1, 2, 7, 1000])
def test_every_line_is_in_exactly_one_part_however_it_is_cut(tmp_path, documents):
  rng = np.random.default_rng(documents)
  texts = ["x" * rng.integers(0, 300) for _ in range(100)]
  lines = [json.dumps({"text": text}) for text in texts]
  (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
  found = read(f"jsonl:{tmp_path}", documents=documents)
  assert [d.spans[0] for d in found.values()] == texts
  data = (tmp_path / "rows.jsonl").read_bytes()
  for id, document in found.items():  # an id says where to look
    line = data[int(id.partition("@")[2]) :].split(b"\n")[0]
    assert json.loads(line)["text"] == document.spans[0]


def test_parquet_rows_may_hold_the_images_themselves(images):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  rows = json.loads(json.dumps(ROWS))
  for row in rows:
    for span in row.get("spans", ()):
      if "image" in span:
        span["image"] = {"bytes": png("red"), "path": None}
        if span.get("weight") == 0:
          span["image"] = {"bytes": None, "path": "b.png"}
  table = pa.Table.from_pylist(
    [
      {key: row.get(key) for key in sorted(set().union(*rows)) if key != "image"}
      | {"image": png("red") if "image" in row else None}
      for row in rows
    ]
  )
  parquet.write_table(table, images / "rows.parquet", row_group_size=2)
  found = read(f"parquet:{images}", documents=2)
  assert list(found) == [
    f"rows.parquet@{g}.{r}" for g, r in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
  ]
  found = list(found.values())
  # Where the table has a column of images, a row without is a row that lost its own.
  assert found[3].reason == raw.LOST_IMAGE and found[3].test
  found[3] = Raw(found[3].id, ("only words",), True, (1.0,))
  for i in (1, 4):  # those name files
    spans = [png("red") if s == images / "a.png" else s for s in found[i].spans]
    found[i] = Raw(found[i].id, tuple(spans), found[i].test, found[i].weights)
  check_rows(found, png("red"), images / "b.png")


@pytest.mark.slow
def test_a_damaged_parquet_file_loses_no_row_of_the_others(tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  for name in ("a", "b", "c"):
    table = pa.Table.from_pylist([{"text": f"{name} {i} " * 50} for i in range(6)])
    path = tmp_path / f"{name}.parquet"
    parquet.write_table(table, path, row_group_size=3, compression="gzip")
  whole = (tmp_path / "b.parquet").read_bytes()
  (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
  damaged = bytearray((tmp_path / "c.parquet").read_bytes())
  damaged[40:60] = bytes(20)  # in the first row group
  (tmp_path / "c.parquet").write_bytes(damaged)
  found = read(f"parquet:{tmp_path}")
  kept = [d for d in found.values() if isinstance(d, Raw)]
  assert len(kept) == 6 + 3
  assert reasons(found) == {"b.parquet": raw.UNREADABLE} | {
    f"c.parquet@0.{i}": raw.UNREADABLE for i in range(3)
  }


def test_edits_come_from_csv_or_json_lines(images):
  row = ["a.png", 'make it "blue",\nquickly', "b.png"]
  with open(images / "edits.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerows(
      [["input", "instruction", "output"], *[row] * 4, ["a.png", "lost"]]
    )
  (images / "more.jsonl").write_text(json.dumps(ROWS[4]))
  found = read(f"edits:{images}")
  edit = found["edits.csv@3"]
  assert edit.spans == (images / "a.png", row[1], images / "b.png")
  assert edit.weights == (0, 1, 1)
  assert found["more.jsonl@0"].spans[1] == "make it blue"
  assert reasons(found) == {"edits.csv@4": raw.LOST_IMAGE}


def test_the_embedded_sources_are_read_as_they_are():
  found = read("digits", documents=5000, image_shape=(8, 8, 1))
  (opened,) = sources.open_sources(
    ["digits"], split="test", image_shape=(8, 8, 1), workdir="."
  )
  caption, scan = opened[11]
  assert found["test/11"].test and found["test/11"].spans[0] == caption
  # Half a step of u8 away, at most.
  np.testing.assert_allclose(found["test/11"].spans[1] / 127.5 - 1, scan, atol=1 / 255)
  assert len(found) == 1797 * 8
  assert not any(isinstance(d, Rejected) for d in read("pydoc").values())


@pytest.fixture(scope="session")  # tfds knows a name once per process
def prepared(tmp_path_factory):
  """A tfds data set of eight examples, made and read without TensorFlow."""
  return make_tfds(tmp_path_factory.mktemp("tfds"), "tiny", {"train": 6, "test": 2})


def make_tfds(here, called, sizes):
  tfds = pytest.importorskip("tensorflow_datasets")

  class Tiny(tfds.core.GeneratorBasedBuilder):
    """A few images."""

    name = called
    VERSION = tfds.core.Version("1.0.0")
    code_path = pkg_dir_path = here

    def _info(self):
      features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
      }
      features = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      return {split: self._generate_examples(size) for split, size in sizes.items()}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, {"image": io.BytesIO(png(size=(5 + i, 5))), "label": i % 2}

  builder = Tiny(data_dir=here, file_format="array_record")
  builder.download_and_prepare()
  return builder.data_path


@pytest.mark.slow
def test_a_tfds_data_set_is_read_from_its_folder(prepared):
  found = read(f"tfds:{prepared}", documents=4)
  assert list(found) == [f"train/{i}" for i in range(6)] + ["test/0", "test/1"]
  assert sorted(d.spans[1].shape[1] for d in found.values() if not d.test) == [
    *range(5, 11)
  ]
  for document in found.values():
    assert document.test == document.id.startswith("test/")
    assert document.spans[0] == ("cat", "dog")[(document.spans[1].shape[1] - 5) % 2]


def plan_tfds(monkeypatch, sizes, features=None):
  """The parts of a data set of such splits and features, which nobody reads."""
  tfds = pytest.importorskip("tensorflow_datasets")
  text, image = tfds.features.Text(), tfds.features.Image(shape=(None, None, 3))
  made = features(tfds.features) if features else {"text": text, "image": image}
  info = types.SimpleNamespace(
    splits={
      name: types.SimpleNamespace(num_examples=size, filepaths=[])
      for name, size in sizes.items()
    },
    features=tfds.features.FeaturesDict(made),
  )
  builder = types.SimpleNamespace(info=info, as_data_source=lambda split: None)
  monkeypatch.setattr(datasets, "_builder", lambda name: builder)
  return datasets.plan_tfds("tfds:made", "made", 100)


def test_tfds_splits_are_held_out_by_their_names(monkeypatch, capsys):
  sizes = {"train": 9, "validation": 3, "Test_v2": 2, "unsupervised": 50_000}
  parts = plan_tfds(monkeypatch, sizes)
  held_out = {part.split: part.apart for part in parts}
  assert held_out == {"train": False, "validation": True, "Test_v2": True}
  assert "left out: unsupervised (50,000)" in capsys.readouterr().out
  # Where names do not say, a hash does.
  for sizes in ({"all": 9, "more": 9}, {"test": 9, "dev": 3}, {"train": 3, "extra": 2}):
    apart = {part.split: part.apart for part in plan_tfds(monkeypatch, sizes)}
    assert apart == dict.fromkeys(sizes)


@pytest.mark.parametrize(
  ("features", "says"),
  [
    (
      lambda f: {"image": f.Image(), "captions": f.Sequence({"text": f.Text()})},
      "captions holds Texts in a list",
    ),
    (
      lambda f: {"text": f.Text(), "pages": f.Sequence(f.Image())},
      "pages holds Images in a list",
    ),
    (
      lambda f: {"label": f.ClassLabel(num_classes=2), "a": {"b": {"c": f.Text()}}},
      "a holds Texts in a list or in itself",
    ),
    (lambda f: {"id": f.Tensor(shape=(), dtype=np.int32)}, r"none of its features"),
  ],
)
def test_a_tfds_data_set_whose_halves_lie_deeper_is_refused(
  monkeypatch, features, says
):
  with pytest.raises(ValueError, match=says):
    plan_tfds(monkeypatch, {"train": 9}, features)


def test_tfds_features_that_are_not_read_are_named(monkeypatch, capsys):
  plan_tfds(
    monkeypatch,
    {"train": 9},
    lambda f: {"image": f.Image(), "text": f.Text(), "more": f.Sequence(f.Text())},
  )
  assert "features that are not read: more" in capsys.readouterr().out


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory):
  """A tfds data set with a split that is neither for training nor held out."""
  sizes = {"train": 6, "validation": 2, "unsupervised": 30}
  return make_tfds(tmp_path_factory.mktemp("three"), "three", sizes)


@pytest.fixture
def copied(three_splits, tmp_path):
  """A copy of that data set, to be changed."""
  datasets._builder.cache_clear()
  yield shutil.copytree(three_splits, tmp_path / "three")
  datasets._builder.cache_clear()


@pytest.mark.slow
def test_a_tfds_split_that_is_left_out_is_skipped_by_reason_and_adds_up(
  copied, tmp_path
):
  found = read(f"tfds:{copied}", documents=4)
  lost = found.pop("unsupervised")
  assert lost.reason == raw.OTHER_SPLIT and lost.amount == Amount(30, 30, 30)
  assert len(found) == 8 and all(isinstance(d, Raw) for d in found.values())
  request = job.Request(f"tfds:{copied}", str(tmp_path / "out"), image_px=8)
  balances = job.prepare(request).counts.splits
  assert balances["train"].found == Amount(36, 36, 36)
  assert balances["train"].used == Amount(6, 6, 6)
  assert balances["train"].skipped == {raw.OTHER_SPLIT: Amount(30, 30, 30)}
  assert all(balance.adds_up for balance in balances.values())
  (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
  assert json.loads(line)["id"] == "unsupervised"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_tfds_folder_that_lacks_files_of_a_split_is_refused_before_any_work(
  copied, split
):
  (file,) = copied.glob(f"three-{split}.*")
  file.unlink()
  said = f"1 of 1 files of its split '{split}' are not there: {file.name}; copy them to"
  with pytest.raises(ValueError, match=re.escape(said)):
    read(f"tfds:{copied}")
  (copied / f"three-{split}.array_record-elsewhere").touch()
  with pytest.raises(ValueError, match=re.escape(said)):
    read(f"tfds:{copied}")


def test_a_tfds_folder_may_lack_a_split_that_is_not_read(copied):
  next(copied.glob("three-unsupervised.*")).unlink()
  assert len(read(f"tfds:{copied}")) == 9


def test_a_tfds_folder_that_another_machine_has_in_part_is_named_there(copied):
  parts = readers.plan(f"tfds:{copied}", documents=100, image_shape=SHAPE)
  info = json.loads((copied / "dataset_info.json").read_text())
  info["splits"] = [own for own in info["splits"] if own["name"] == "train"]
  (copied / "dataset_info.json").write_text(json.dumps(info))
  datasets._builder.cache_clear()
  with pytest.raises(ValueError, match=f"{copied}: its split 'validation' cannot be"):
    [list(part.read()) for part in parts]
  info["splits"] = []
  (copied / "dataset_info.json").write_text(json.dumps(info))
  datasets._builder.cache_clear()
  with pytest.raises(ValueError, match="dataset_info.json names no split"):
    read(f"tfds:{copied}")


def test_a_relative_tfds_folder_is_read_from_any_directory(
  prepared, tmp_path, monkeypatch
):
  monkeypatch.chdir(prepared.parent)
  parts = readers.plan(f"tfds:{prepared.name}", documents=4, image_shape=SHAPE)
  monkeypatch.chdir(tmp_path)
  read(f"tfds:{prepared}")  # the builder that is kept open is another one now
  assert len([d for part in parts for d in part.read()]) == 8


def test_a_tfds_data_set_is_read_by_name(prepared, monkeypatch):
  tfds = pytest.importorskip("tensorflow_datasets")
  with tfds.testing.mock_data(num_examples=3, data_dir=str(prepared.parents[1])):
    found = read("tfds:tiny", documents=2)
  # Mocked splits have the sizes of the real ones, and made-up images.
  assert len(found) == 8 and found["train/0"].spans[1].dtype == np.uint8


@pytest.mark.parametrize(
  "spec, says",
  [
    ("photos", "unknown; known: auto, bagel-edit"),
    ("tar", "which"),
    ("tar:nowhere", "there is no 'nowhere'"),
    ("tar:.", "no file ends in .tar"),
    ("folder:nowhere", "no such folder"),
    ("tfds:no_such_thing", "not found"),
    ("edits:lacking.csv", "no column"),
  ],
)
def test_a_source_that_is_not_there_is_refused(tmp_path, monkeypatch, spec, says):
  if spec.startswith("tfds"):
    pytest.importorskip("tensorflow_datasets")
  monkeypatch.chdir(tmp_path)
  (tmp_path / "lacking.csv").write_text("input,output\na,b\n")
  with pytest.raises(ValueError, match=says):
    readers.plan(spec, documents=3, image_shape=SHAPE)


def test_a_source_that_changed_has_another_listing(tmp_path):
  (tmp_path / "a.txt").write_text("one")
  (tmp_path / "b.txt").write_text("two")

  def listing():
    parts = readers.plan(f"text:{tmp_path}", documents=1, image_shape=SHAPE)
    return readers.listing_sha256(parts)

  before = listing()
  assert listing() == before
  os.utime(tmp_path / "a.txt", (1, 1))
  assert listing() != before


def pages(where):
  """A folder that every source of files finds something in."""
  where.mkdir()
  (where / "a.png").write_bytes(png())
  (where / "a.txt").write_text("red")
  edit = {"input": "a.png", "instruction": "as it is", "output": "a.png"}
  (where / "rows.jsonl").write_text(json.dumps(edit) + "\n")
  (where / "edits.csv").write_text("input,instruction,output\na.png,paint,a.png\n")
  with tarfile.open(where / "a.tar", "w") as archive:
    add(archive, "0.txt", b"red")
    add(archive, "0.png", png())


@pytest.mark.parametrize(
  "spec", ["folder:in", "text:in", "text:in/a.txt", "tar:in", "jsonl:in", "edits:in"]
)
def test_a_relative_source_is_read_from_any_directory(tmp_path, monkeypatch, spec):
  pages(tmp_path / "in")
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path)
  parts = readers.plan(spec, documents=3, image_shape=SHAPE)
  name, _, argument = spec.partition(":")
  absolute = f"{name}:{tmp_path / argument}"
  assert list(read(spec)) == list(read(absolute))
  monkeypatch.chdir("elsewhere")
  found = [d for part in parts for d in part.read()]
  assert found == list(read(absolute).values())
  assert any(isinstance(document, Raw) for document in found)
  # Where it lies is as it was given, which the job keeps beside the listing.
  given = readers.plan(absolute, documents=3, image_shape=SHAPE)
  assert readers.listing_sha256(parts) == readers.listing_sha256(given)


def test_cleaning_changes_line_ends_and_nothing_else():
  document = Raw("a", ("one\r\ntwo\rthree ", " \n", b"", "x"), False, (1, 1, 0, 0.5))
  made = raw.clean(document)
  assert made.spans == ("one\ntwo\nthree ", b"", "x") and made.weights == (1, 0, 0.5)
  assert raw.clean(Raw("a", (" ", "\n"), False)).reason == raw.EMPTY
  assert raw.clean(Raw("a", ("\ud800",), False)).reason == raw.BAD_TEXT
