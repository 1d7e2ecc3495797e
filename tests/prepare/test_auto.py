"""`auto:PATH` says what a folder is taken for, reads it, or says why it does not."""

import json

import pytest
from prepare import lookalikes

from tfusion.prepare import readers

pytest.importorskip("pyarrow")
pytest.importorskip("yaml")


def captioned(root):
  root.mkdir(parents=True)
  for i in range(3):
    (root / f"{i}.png").write_bytes(lookalikes.image(i))
    (root / f"{i}.txt").write_text(f"shade {i}")
  return root


def listed(root):
  captioned(root)
  for path in root.glob("*.txt"):
    path.unlink()
  rows = [{"file_name": f"{i}.png", "text": f"shade {i}"} for i in range(3)]
  lookalikes.lines(root / "metadata.jsonl", rows)
  return root


def archive(root):
  members = {"a/0.jpg": lookalikes.image(1, "JPEG"), "a/0.txt": b"a shade"}
  lookalikes.tar(root / "0.tar", members)
  return root


def rows(root):
  lookalikes.lines(
    root / "a.jsonl", [{"texts": ["a", None], "images": [None, "0.png"]}]
  )
  return root


def edits(root):
  root.mkdir(parents=True)
  (root / "a.csv").write_text('input,"instruction",output\na.png,redden,b.png\n')
  return root


def texts(root):
  root.mkdir(parents=True)
  (root / "a.md").write_text("# A page\n")
  return root


KINDS = [
  ("img2dataset", lookalikes.img2dataset),
  ("img2dataset", lookalikes.img2dataset_parquet),
  ("parquet", lookalikes.hf),
  ("obelics", lookalikes.obelics),
  ("obelics", lookalikes.omnicorpus),
  ("mmc4", lookalikes.mmc4),
  ("mmc4", lookalikes.mmc4_archive),
  ("mint", lookalikes.mint),
  ("bagel-t2i", lookalikes.bagel_t2i),
  ("bagel-edit", lookalikes.bagel_edit),
  ("llava", lookalikes.bagel_vlm),
  ("llava", lookalikes.llava),
  ("llava", lookalikes.onevision),
  ("energon", lookalikes.energon),
  ("energon", lookalikes.bridge),
  ("mds", lookalikes.mds),
  ("lance", lookalikes.lance),
  ("folder", captioned),
  ("folder", listed),
  ("tar", archive),
  ("jsonl", rows),
  ("edits", edits),
  ("text", texts),
]


@pytest.mark.parametrize(
  ("kind", "make"), KINDS, ids=[f"{k}-{m.__name__}" for k, m in KINDS]
)
def test_a_folder_is_taken_for_what_it_is_and_read_so(tmp_path, capsys, kind, make):
  root = make(tmp_path / "in")
  assert readers.resolve(f"auto:{root}") == f"{kind}:{root}"
  said = capsys.readouterr().out
  assert said == f"auto:{root}: taken for {kind}: {readers.LAYOUTS[kind].known}\n"
  sizes = dict(documents=3, image_shape=(8, 8, 3))
  by_name = readers.plan(f"{kind}:{root}", **sizes)
  assert readers.plan(f"auto:{root}", **sizes) == by_name
  assert any(True for part in by_name for _ in part.read())


def test_every_layout_is_recognised_by_some_folder():
  # tfds reads its own folders alone: tests/prepare/test_readers.py makes one.
  assert {kind for kind, _ in KINDS} | {"tfds"} == set(readers.LAYOUTS)


def test_a_single_file_is_looked_at(tmp_path):
  root = lookalikes.llava(tmp_path)
  path = root / "llava_v1_5_mix665k.json"
  assert readers.resolve(f"auto:{path}") == f"llava:{path}"


def test_several_data_sets_in_a_folder_are_named_each_with_its_source(tmp_path):
  lookalikes.bagel_t2i(tmp_path)
  lookalikes.bagel_edit(tmp_path)
  lookalikes.bagel_vlm(tmp_path)
  with pytest.raises(ValueError, match="holds several data sets") as error:
    readers.resolve(f"auto:{tmp_path}")
  for spec in ("bagel-t2i", "bagel-edit", "llava"):
    assert f"{spec}:{tmp_path}/" in str(error.value)


def test_what_is_below_a_folder_of_energon_is_part_of_it(tmp_path):
  root = lookalikes.energon(tmp_path / "deep" / "in")
  assert readers.resolve(f"auto:{tmp_path}") == f"energon:{root}"
  lookalikes.energon(tmp_path / "other")
  with pytest.raises(ValueError, match=f"energon:{tmp_path}/deep/in, energon:"):
    readers.resolve(f"auto:{tmp_path}")


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda root: (root / "a.bin").write_bytes(b"a"), "none of the known.*1 .bin"),
    (lambda root: None, "none of the known layouts; found no files"),
    (
      lambda root: lookalikes.parquet(root / "a.parquet", [{"uid": "a", "url": "b"}]),
      "none of the known.*1 .parquet",
    ),
    (
      lambda root: (root / "a.parquet").write_bytes(b"PAR1 broken"),
      "none of the known.*1 .parquet",
    ),
    (lambda root: (root / "a.jsonl").write_text("no json\n"), "none of the known"),
    (lambda root: (root / "a.tar").write_bytes(b"no tar"), "none of the known"),
    (
      lambda root: lookalikes.tar(root / "a.tar", {"0.jpg": b"", "0.cls": b"7"}),
      "none of the known",
    ),
  ],
)
def test_a_folder_that_is_nothing_known_is_refused(tmp_path, make, says):
  make(tmp_path)
  with pytest.raises(ValueError, match=says):
    readers.resolve(f"auto:{tmp_path}")


def test_shards_are_for_training_and_not_prepared_again(tmp_path):
  (tmp_path / "manifest.json").write_text("{}")
  (tmp_path / "train-000000-of-000001.array_record").write_bytes(b"")
  with pytest.raises(ValueError, match="holds shards already; train on them"):
    readers.resolve(f"auto:{tmp_path}")


def test_a_path_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(ValueError, match="there is no"):
    readers.resolve(f"auto:{tmp_path / 'gone'}")
  with pytest.raises(ValueError, match="which"):
    readers.resolve("auto")


def test_a_list_of_something_else_is_named_and_not_read(tmp_path, capsys):
  root = lookalikes.llava(tmp_path)
  (root / "dataset_infos.json").write_text(json.dumps({"default": {}}))
  assert len(readers.plan(f"llava:{root}", documents=9, image_shape=(8, 8, 3))) == 1
  assert "dataset_infos.json: is no list of objects" in capsys.readouterr().out
