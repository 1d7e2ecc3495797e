"""Data sets as people have them: every layout is read, what lacks is counted."""

import collections
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from prepare import lookalikes

from tfusion.data import images
from tfusion.data.balance import Amount
from tfusion.prepare import raw, readers
from tfusion.prepare.raw import Raw, Rejected

pytest.importorskip("pyarrow")
pytest.importorskip("yaml")

SHAPE = (8, 8, 3)


def read(spec, documents=2) -> dict[str, Raw | Rejected]:
  """Every document by id, after the parts went through pickling, as Beam does it."""
  parts = readers.plan(spec, documents=documents, image_shape=SHAPE)
  readers.listing_sha256(parts)
  found = [d for part in pickle.loads(pickle.dumps(parts)) for d in part.read()]
  assert len({d.id for d in found}) == len(found)
  return {d.id: d for d in found}


def kept(found) -> list[Raw]:
  return [d for d in found.values() if isinstance(d, Raw)]


def lost(found) -> list[tuple[str, Amount]]:
  return [(d.reason, d.amount) for d in found.values() if isinstance(d, Rejected)]


def total(found) -> dict[str, Amount]:
  """What is lost, by reason."""
  sums = collections.defaultdict(Amount)
  for reason, amount in lost(found):
    sums[reason] += amount
  return dict(sums)


def shade(span) -> int:
  """The red of an image."""
  return int(images.decode(span, SHAPE)[0, 0, 0])


def shown(document: Raw) -> list:
  """Texts, and of images their red."""
  return [span if isinstance(span, str) else shade(span) for span in document.spans]


# img2dataset.


def test_what_img2dataset_could_not_get_is_counted_beside_its_archives(tmp_path):
  root = lookalikes.img2dataset(tmp_path)
  found = read(f"img2dataset:{root}")
  assert len(kept(found)) == 18
  assert kept(found)[0].spans[0] == "shade number 0"
  assert abs(shade(kept(found)[1].spans[1]) - 1) < 9  # JPEG is not exact
  assert total(found) == {raw.FAILED: Amount(6, 6, 6)}
  details = {d.detail for d in found.values() if isinstance(d, Rejected)}
  assert any(d.startswith("failed_to_download: HTTP Error 404") for d in details)
  assert any(d.startswith("failed_to_resize: image decoding error") for d in details)


def test_failures_of_one_kind_are_one_entry_for_each_archive(tmp_path):
  rows = lookalikes.img2dataset_rows()[3:4]  # one that failed, again and again
  rows = [rows[0] | {"key": f"{i:09d}"} for i in range(100)]
  lookalikes.parquet(tmp_path / "00000.parquet", rows)
  lookalikes.tar(tmp_path / "00000.tar", {})
  entries = list(read(f"img2dataset:{tmp_path}").values())
  assert {e.test for e in entries} == {True, False} and len(entries) == 2
  assert sum((e.amount for e in entries), Amount()) == Amount(100, 100, 100)


def test_an_archive_of_img2dataset_that_lost_members_is_seen_in_its_table(tmp_path):
  root = lookalikes.img2dataset(tmp_path)
  with tarfile.open(root / "00000.tar") as archive:
    members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
  lookalikes.tar(
    root / "00000.tar", {n: d for n, d in members.items() if "00002" not in n}
  )
  found = read(f"img2dataset:{root}")
  assert total(found)[raw.LOST_IMAGE] == Amount(1, 1, 1)


def test_archives_of_img2dataset_are_read_without_their_tables(tmp_path, capsys):
  root = lookalikes.img2dataset(tmp_path)
  (root / "00001.parquet").unlink()
  found = read(f"img2dataset:{root}")
  assert len(kept(found)) == 18
  assert total(found) == {raw.FAILED: Amount(3, 3, 3)}
  assert "1 archives without a table" in capsys.readouterr().out
  (root / "00000.tar").unlink()
  assert len(kept(read(f"img2dataset:{root}"))) == 9
  assert "tables without an archive, which are not read: 00000" in (
    capsys.readouterr().out
  )


def test_one_archive_of_img2dataset_finds_its_table(tmp_path):
  root = lookalikes.img2dataset(tmp_path)
  found = read(f"img2dataset:{root / '00001.tar'}")
  assert len(kept(found)) == 9 and total(found) == {raw.FAILED: Amount(3, 3, 3)}


def test_tables_of_img2dataset_may_hold_the_images(tmp_path):
  root = lookalikes.img2dataset_parquet(tmp_path)
  found = read(f"img2dataset:{root}")
  assert [d.spans[0] for d in kept(found)] == [
    f"shade number {i}" for i in range(12) if i % 4 != 3
  ]
  assert total(found) == {raw.FAILED: Amount(3, 3)}


# Hugging Face.


def test_images_of_the_datasets_package_may_be_null_in_either_half(tmp_path):
  root = lookalikes.hf(tmp_path)
  found = read(f"parquet:{root / 'data'}")
  assert [shown(d) for d in kept(found)] == [
    ["bytes and a path", 1],
    ["bytes", 3],
    ["a path", 2],
  ]
  assert total(found) == {
    raw.LOST_IMAGE: Amount(2, 1, 2),
    raw.NO_TEXT: Amount(1, 1),
  }


# Pages of the web.


def test_a_page_of_which_no_image_is_stored_keeps_its_texts(tmp_path):
  root = lookalikes.obelics(tmp_path)
  found = read(f"obelics:{root}", documents=100)
  assert [shown(d) for d in kept(found)] == [
    [f"page {i}\n\nand then"] for i in range(4)
  ]
  sums = collections.Counter()
  for one in found.values():
    if isinstance(one, Rejected):
      assert one.reason == raw.NOT_STORED and one.amount.documents == 0
      assert "https://example.org/" in one.detail
      sums[one.test] += one.amount.images
  assert sum(sums.values()) == 8
  tests = sum(d.test for d in kept(found))
  assert sums[True] == 2 * tests and sums[False] == 2 * (4 - tests)


def test_images_of_obelics_are_found_by_either_name(tmp_path):
  root = lookalikes.obelics(tmp_path)
  url = lookalikes.URL
  hashed = lookalikes.digest(f"{url}lost1.jpg")
  lookalikes.store(root / "data", ["picture 0", f"{hashed}.jpg"])
  found = read(f"obelics:{root}")
  assert [shown(d) for d in kept(found)] == [
    ["page 0", 100, "and then"],
    ["page 1\n\nand then", 101],
    ["page 2\n\nand then"],
    ["page 3\n\nand then"],
  ]
  assert total(found) == {raw.NOT_STORED: Amount(0, 6)}


def test_a_page_of_nothing_but_an_image_that_is_not_stored_is_skipped(tmp_path):
  row = {"texts": [None], "images": ["https://example.org/a.jpg"], "metadata": "[null]"}
  lookalikes.parquet(tmp_path / "a.parquet", [row])
  found = read(f"obelics:{tmp_path}")
  assert lost(found) == [(raw.NOT_STORED, Amount(1, 1))]


def test_images_of_omnicorpus_lie_under_the_hash_of_their_address(tmp_path):
  root = lookalikes.omnicorpus(tmp_path)
  names = [lookalikes.digest(f"{lookalikes.URL}{i}.jpg") for i in range(2)]
  lookalikes.store(root / "CC-MAIN-2016-26", names)
  found = read(f"obelics:{root}")
  assert [shown(d) for d in kept(found)] == [
    [100, "below image 0"],
    [101, "below image 1"],
    ["below image 2"],
  ]
  assert total(found) == {raw.NOT_STORED: Amount(0, 1)}


@pytest.mark.parametrize(
  ("row", "says"),
  [
    ({"texts": ["a"], "images": [None, None]}, "1 texts and 2 images"),
    ({"texts": "a", "images": [None]}, "two lists"),
    ({"texts": [None], "images": [""]}, "neither texts nor images"),
    ({"texts": ["a"], "images": [None], "metadata": "{"}, "metadata: "),
  ],
)
def test_a_page_in_another_form_is_rejected_with_the_reason(tmp_path, row, says):
  good = {"texts": ["good"], "images": [None], "metadata": "[]"}
  lookalikes.lines(tmp_path / "a.jsonl", [good, row])
  found = read(f"obelics:{tmp_path}")
  assert len(kept(found)) == 1
  (bad,) = (d for d in found.values() if isinstance(d, Rejected))
  assert bad.reason == raw.BAD_LAYOUT and says in bad.detail


def test_an_image_of_mmc4_comes_before_its_sentence(tmp_path):
  found = read(f"mmc4:{lookalikes.mmc4(tmp_path)}")
  assert [shown(d) for d in kept(found)] == [
    [101, "One. Two.", 100, "Three."],
    [103, "One. Two.", 102, "Three."],
    ["One. Two. Three."],
  ]
  assert total(found) == {raw.NOT_STORED: Amount(0, 2)}


def test_mmc4_may_hold_its_images_in_its_json(tmp_path):
  found = read(f"mmc4:{lookalikes.mmc4_archive(tmp_path)}")
  assert [shown(d) for d in kept(found)] == [[0, "One. Two.", 2, "Three."]] * 3
  assert not lost(found)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"matched_text_index": 3}, "image 0: matched_text_index is '3'"),
    ({"matched_text_index": None}, "image 0: matched_text_index is 'None'"),
    ({"image_base64": "?"}, "image 0: image_base64"),
  ],
)
def test_a_page_of_mmc4_in_another_form_is_rejected(tmp_path, change, says):
  rows = lookalikes.mmc4_rows()
  rows[1]["image_info"][0] |= change
  lookalikes.lines(tmp_path / "a.jsonl", rows)
  found = read(f"mmc4:{tmp_path}")
  (bad,) = (d for d in found.values() if getattr(d, "reason", "") == raw.BAD_LAYOUT)
  assert says in bad.detail and len(kept(found)) == 2


def test_images_of_a_pdf_file_are_the_pages_of_its_tiff(tmp_path):
  found = read(f"mint:{lookalikes.mint(tmp_path)}")
  assert [shown(d) for d in kept(found)] == [
    [10, f"first {i}", 200, "second"] for i in range(2)
  ]
  (bad,) = (d for d in found.values() if isinstance(d, Rejected))
  assert bad.detail == "2 images are named, the .tiff has 1 pages"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_pdf_file_with_a_broken_tiff_has_a_bad_image(tmp_path):
  row = json.dumps({"texts": [None], "images": ["page_0_image_1"]}).encode()
  lookalikes.tar(tmp_path / "a.tar", {"0.json": row, "0.tiff": b"II*\0 broken"})
  assert lost(read(f"mint:{tmp_path}")) == [(raw.BAD_IMAGE, Amount(1, 1, 1))]


def test_pages_of_a_file_are_decoded_as_the_images_that_they_are():
  data = lookalikes.tiff([10, 200])
  for number, red in ((0, 10), (1, 200)):
    assert shade(images.Page(data, number)) == red
  with pytest.raises(EOFError):
    images.decode(images.Page(data, 2), SHAPE)


# What unified models are trained on.


def test_every_caption_of_bagel_makes_a_document_on_the_same_side(tmp_path):
  found = read(f"bagel-t2i:{lookalikes.bagel_t2i(tmp_path)}")
  assert [shown(d) for d in kept(found)] == [
    [f"{word} {i}", i] for i in range(3) for word in ("short", "long")
  ]
  assert [d.id for d in kept(found)][:2] == ["0.parquet@0.0", "0.parquet@0.0#2"]
  by_row = collections.defaultdict(set)
  many = [{"image": lookalikes.image(1), "captions": '{"a": "x", "b": "y"}'}] * 200
  lookalikes.parquet(tmp_path / "many" / "a.parquet", many)
  for document in kept(read(f"bagel-t2i:{tmp_path / 'many'}")):
    by_row[document.id.partition("#")[0]].add(document.test)
  assert all(len(sides) == 1 for sides in by_row.values())
  assert {True, False} == set().union(*by_row.values())


def test_every_wording_of_an_edit_makes_a_document_that_reads_its_first_image(tmp_path):
  found = read(f"bagel-edit:{lookalikes.bagel_edit(tmp_path)}")
  assert [shown(d) for d in kept(found)][:2] == [
    [0, "redden 0", 1, "again", 2],
    [0, "more red", 1, "again", 2],
  ]
  assert {d.weights for d in kept(found)} == {(0, 1, 1, 1, 1)}
  assert len(kept(found)) == 6 and not lost(found)


@pytest.mark.parametrize(
  ("kind", "row", "says"),
  [
    ("t2i", {"captions": "[1]"}, "no object of texts"),
    ("t2i", {"captions": "{}"}, "no object of texts"),
    ("t2i", {"captions": "{"}, "Expecting"),
    ("edit", {"instruction_list": [["a"]]}, "3 images and 1 lists of instructions"),
    ("edit", {"instruction_list": [["a"], []]}, "a step has no instruction"),
  ],
)
def test_a_row_of_bagel_in_another_form_is_rejected(tmp_path, kind, row, says):
  good = {"image": lookalikes.image(1), "captions": '{"0": "a"}'}
  if kind == "edit":
    good = {"image_list": [b"", b"", b""], "instruction_list": [["a"], ["b"]]}
  lookalikes.parquet(tmp_path / "a.parquet", [good, good | row])
  found = read(f"bagel-{kind}:{tmp_path}")
  (bad,) = (d for d in found.values() if isinstance(d, Rejected))
  assert bad.reason == raw.BAD_LAYOUT and says in bad.detail


def test_an_image_of_bagel_that_is_null_is_lost_with_its_document(tmp_path):
  rows = [
    {"image": image, "captions": '{"0": "a", "1": "b"}'}
    for image in (lookalikes.image(1), None)
  ]
  lookalikes.parquet(tmp_path / "a.parquet", rows)
  found = read(f"bagel-t2i:{tmp_path}")
  assert total(found) == {raw.LOST_IMAGE: Amount(2, 2, 2)}


TURNS = ["What is it?\n", "A red square.\n", "How red?\n", "Very."]


@pytest.mark.parametrize("kind", ["bagel_vlm", "llava", "onevision"])
def test_only_the_answers_of_a_conversation_are_learned(tmp_path, kind):
  found = read(f"llava:{getattr(lookalikes, kind)(tmp_path)}")
  with_image = [d for d in kept(found) if len(d.spans) == 5]
  assert len(with_image) == {"bagel_vlm": 2, "llava": 3, "onevision": 4}[kind]
  for document in with_image:
    assert document.spans[1:] == tuple(TURNS)
    assert document.weights == (0, 0, 1, 0, 1)


def test_conversations_may_have_no_image_and_no_video(tmp_path):
  found = read(f"llava:{lookalikes.bagel_vlm(tmp_path)}")
  (words,) = (d for d in kept(found) if len(d.spans) == 2)
  assert words.spans == ("How red?\n", "Very.") and words.weights == (0, 1)
  (bad,) = (d for d in found.values() if isinstance(d, Rejected))
  assert bad.detail == "it has a video, which is not read"


@pytest.mark.parametrize(
  ("row", "says"),
  [
    ({"image": ["0.png", "0.png"]}, "2 images and 1 marks <image>"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "without an answer"),
    ({"conversations": [{"from": "robot", "value": "a"}]}, "a turn is from 'robot'"),
    ({"conversations": [{"from": "gpt", "value": None}]}, "a turn says 'None'"),
    ({"conversations": "a"}, "without an answer"),
  ],
)
def test_a_conversation_in_another_form_is_rejected(tmp_path, row, says):
  good = {"image": "0.png", "conversations": lookalikes.CONVERSATION}
  lookalikes.lines(tmp_path / "a.jsonl", [good, good | row])
  lookalikes.store(tmp_path, ["0.png"])
  found = read(f"llava:{tmp_path}")
  (bad,) = (d for d in found.values() if isinstance(d, Rejected))
  assert bad.reason == raw.BAD_LAYOUT and says in bad.detail and len(kept(found)) == 1


def test_images_without_a_mark_come_first_and_those_of_answers_are_learned(tmp_path):
  unmarked = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "Yes."}]
  drawn = [{"from": "human", "value": "Draw."}, {"from": "gpt", "value": "<image>"}]
  drawn[1]["value"] = "Here: <image> done."
  rows = [{"image": "0.png", "conversations": turns} for turns in (unmarked, drawn)]
  lookalikes.lines(tmp_path / "a.jsonl", rows)
  lookalikes.store(tmp_path, ["0.png"])
  first, second = kept(read(f"llava:{tmp_path}"))
  assert shown(first) == [100, "Hm?\n", "Yes."] and first.weights == (0, 0, 1)
  assert shown(second) == ["Draw.\n", "Here:", 100, "done."]
  assert second.weights == (0, 1, 1, 1)


def test_an_image_of_a_conversation_that_is_not_there_costs_its_document(tmp_path):
  root = lookalikes.llava(tmp_path)
  (root / "coco" / "1.png").unlink()
  assert total(read(f"llava:{root}")) == {raw.NO_IMAGE: Amount(1, 1, 4)}


def test_every_item_of_a_list_is_in_exactly_one_part(tmp_path):
  found = read(f"llava:{lookalikes.llava(tmp_path)}", documents=1)
  assert list(found) == [f"llava_v1_5_mix665k.json@{i}" for i in range(3)]


# Energon.


def test_energons_splits_and_exclusions_are_kept_to(tmp_path):
  found = read(f"energon:{lookalikes.energon(tmp_path)}")
  sides = {d.spans[0]: d.test for d in kept(found)}
  assert sides == dict.fromkeys(
    [f"shade {s}" for s in ("00", "02", "10", "11", "12")], False
  ) | (dict.fromkeys([f"shade 2{i}" for i in range(3)], True))
  assert total(found) == {raw.EXCLUDED: Amount(7, 7, 7)}


def test_energons_questions_are_read_and_each_answer_is_learned(tmp_path):
  found = read(f"energon:{lookalikes.energon(tmp_path, lookalikes.VQA)}")
  first, second = kept(found)[:2]
  assert first.spans[1:] == ("What?\n", "a") and second.spans[1:] == ("What?\n", "b")
  assert first.weights == (0, 0, 1)


def test_the_samples_of_megatron_bridge_are_those_of_bagel(tmp_path):
  found = read(f"energon:{lookalikes.bridge(tmp_path)}")
  assert [shown(d) for d in kept(found)] == [
    ["short", 1],
    ["long", 1],
    [2, "redden", 3],
    [4, *TURNS],
  ]
  assert kept(found)[2].weights == (0, 1, 1)
  assert kept(found)[3].weights == (0, 0, 1, 0, 1)
  assert not lost(found)


@pytest.mark.parametrize(
  ("dataset", "says"),
  [
    (lookalikes.CAPTIONING + "sample_loader: sample_loader.py:load\n", "is not run"),
    (
      lookalikes.CAPTIONING.replace("Captioning", "Interleaved"),
      "samples of type 'InterleavedSample'; known: Captioning",
    ),
    (lookalikes.CAPTIONING.replace("caption:", "captions:"), "lacks caption"),
    ("a: [", "dataset.yaml: no YAML"),
    ("[]", "holds no names and values"),
    ("!!python/object/apply:os.system ['true']", "no YAML: could not determine"),
  ],
)
def test_an_energon_folder_that_needs_a_program_is_refused(tmp_path, dataset, says):
  root = lookalikes.energon(tmp_path, dataset)
  with pytest.raises(ValueError, match=f"source=energon.*{says}"):
    read(f"energon:{root}")


def test_an_energon_folder_that_lacks_archives_of_its_splits_is_refused(tmp_path):
  root = lookalikes.energon(tmp_path)
  (root / "shards" / "shard_001.tar").unlink()
  with pytest.raises(ValueError, match="1 archives of its split.yaml are not there"):
    read(f"energon:{root}")
  (root / ".nv-meta" / "split.yaml").unlink()
  with pytest.raises(ValueError, match="split.yaml; run `energon prepare`"):
    read(f"energon:{root}")


def test_a_sample_without_its_field_is_rejected_and_the_next_place_is_tried(tmp_path):
  places = lookalikes.CAPTIONING.replace("json[caption]", "txt,json[a][1]")
  row = json.dumps({"a": ["no", "yes"]}).encode()
  members = {"0.jpg": lookalikes.image(1), "0.txt": b"here", "0.json": row}
  members |= {"1.jpg": lookalikes.image(2), "1.json": row}
  members |= {"2.jpg": lookalikes.image(3), "2.json": b"{}"}
  lookalikes.tar(tmp_path / "a.tar", members)
  lookalikes.meta(tmp_path, places, "split_parts: {train: [a.tar]}\n")
  found = read(f"energon:{tmp_path}")
  assert [d.spans[0] for d in kept(found)] == ["here", "yes"]
  assert lost(found) == [(raw.BAD_LAYOUT, Amount(1, 1, 1))]


# MDS.


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "br", "zstd", "snappy"])
def test_shards_of_mds_are_read_raw_and_compressed(tmp_path, compression):
  root = lookalikes.mds(tmp_path, compression=compression, encoding="png")
  found = read(f"mds:{root}")
  assert [(d.spans[0], d.test) for d in kept(found)] == [
    (f"{split} {i}", split == "val") for split in ("train", "val") for i in range(3)
  ]
  assert not lost(found)


def test_pixels_of_mds_are_images(tmp_path):
  found = read(f"mds:{lookalikes.mds(tmp_path, encoding='pil')}")
  assert [shown(d) for d in kept(found)][:3] == [[f"train {i}", i] for i in range(3)]


@pytest.mark.parametrize("encoding", ["jpeg_array", "list[png]", "list[pil]"])
def test_lists_of_images_in_mds_are_read(tmp_path, encoding):
  each = lookalikes.pil if "pil" in encoding else lookalikes.image
  some = [each(3), each(4)]
  sizes = np.asarray([len(one) for one in some], np.uint32).tobytes()
  head = np.asarray([0] * (encoding != "jpeg_array") + [2], np.uint32).tobytes()
  columns = {"images": encoding, "text": "str"}
  rows = [{"images": head + sizes + b"".join(some), "text": b"two"}]
  shard = lookalikes.mds_shard(rows, columns)
  (tmp_path / "shard.00000.mds").write_bytes(shard)
  entry = lookalikes.mds_entry(columns, shard, 1, 0)
  (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
  (document,) = read(f"mds:{tmp_path}").values()
  assert shown(document) == ["two", 3, 4]


def test_a_pickled_column_is_refused_and_never_opened(tmp_path):
  root = lookalikes.mds(tmp_path, encoding="pkl")
  with pytest.raises(ValueError, match="column 'image' is pickled.*write the shards"):
    read(f"mds:{root}")


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"version": 1}, "of version 1 and"),
    ({"format": "jsonl"}, "format 'jsonl'"),
    ({"column_sizes": [8]}, "unequal number"),
    ({"samples": "3"}, "samples='3': expected int"),
    ({"compression": "lz4:3"}, "compression 'lz4:3'; known: br"),
    ({"raw_data": {"basename": "gone.mds", "bytes": 1}}, "gone.mds is not there"),
    ({"column_names": ["a", "b", "c"]}, "its columns are"),
  ],
)
def test_an_index_of_mds_that_cannot_serve_is_refused(tmp_path, change, says):
  root = lookalikes.mds(tmp_path) / "train"
  index = json.loads((root / "index.json").read_text())
  index["shards"][0] |= change
  (root / "index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match=f"source=mds.*{says}"):
    read(f"mds:{root}")


def test_a_shard_of_mds_that_is_cut_gives_what_is_whole(tmp_path):
  root = lookalikes.mds(tmp_path) / "train"
  path = root / "shard.00000.mds"
  path.write_bytes(path.read_bytes()[:-4])
  found = read(f"mds:{root}")
  assert len(kept(found)) == 2 and lost(found) == [(raw.UNREADABLE, Amount(1))]
  path.write_bytes(path.read_bytes()[:6])
  assert [reason for reason, _ in lost(read(f"mds:{root}"))] == [raw.UNREADABLE] * 3


def test_a_compressed_shard_of_mds_that_is_damaged_is_lost(tmp_path):
  root = lookalikes.mds(tmp_path, compression="zstd") / "train"
  path = root / "shard.00000.mds.zstd"
  path.write_bytes(path.read_bytes()[:-9])
  assert [reason for reason, _ in lost(read(f"mds:{root}"))] == [raw.UNREADABLE] * 3


@pytest.mark.parametrize("compression", ["gz", "br"])
def test_a_shard_of_mds_of_another_size_than_its_index_says_is_lost(
  tmp_path, compression
):
  root = lookalikes.mds(tmp_path, compression=compression) / "train"
  index = json.loads((root / "index.json").read_text())
  index["shards"][0]["raw_data"]["bytes"] += 1
  (root / "index.json").write_text(json.dumps(index))
  assert [reason for reason, _ in lost(read(f"mds:{root}"))] == [raw.UNREADABLE] * 3


# Lance.


def lance_table(path, rows, **options):
  lance = pytest.importorskip("lance")
  import pyarrow

  return lance.write_dataset(pyarrow.Table.from_pylist(rows), path, **options)


def test_tables_of_lance_are_read_and_their_names_say_what_is_held_out(tmp_path):
  found = read(f"lance:{lookalikes.lance(tmp_path)}")
  assert [(shown(d), d.test) for d in kept(found)] == [
    ([f"{split} {i}", i], split == "val")
    for split in ("train", "val")
    for i in range(3)
  ]
  assert list(found)[:4] == [
    "train.lance@0.0",
    "train.lance@0.1",
    "train.lance@1.0",
  ] + ["val.lance@0.0"]


def test_a_table_of_lance_is_itself_a_source_with_the_same_ids(tmp_path):
  root = lookalikes.lance(tmp_path)
  alone = read(f"lance:{root / 'train.lance'}")
  assert list(alone) == [id for id in read(f"lance:{root}") if id.startswith("train")]


@pytest.mark.parametrize("documents", [1, 3, 1000])
def test_a_fragment_of_lance_is_cut_into_parts_of_a_size(tmp_path, documents):
  rows = [{"text": f"row {i}"} for i in range(10)]
  lance_table(tmp_path / "a.lance", rows, max_rows_per_file=6)
  parts = readers.plan(f"lance:{tmp_path}", documents=documents, image_shape=SHAPE)
  assert len(parts) == {1: 10, 3: 4, 1000: 2}[documents]
  found = [d for part in parts for d in part.read()]
  assert [d.spans for d in found] == [(f"row {i}",) for i in range(10)]
  assert [d.id for d in found][5:7] == ["a.lance@0.5", "a.lance@1.0"]


def test_deleted_rows_of_lance_and_old_versions_are_not_read(tmp_path):
  table = lance_table(tmp_path / "a.lance", [{"text": t} for t in "abc"])
  table.delete("text = 'b'")
  found = read(f"lance:{tmp_path}", documents=1)
  assert [d.spans for d in kept(found)] == [("a",), ("c",)]
  lance_table(tmp_path / "a.lance", [{"text": "d"}], mode="overwrite")
  assert [d.spans for d in kept(read(f"lance:{tmp_path}"))] == [("d",)]


def test_a_job_reads_a_table_of_lance_as_it_was_when_it_began(tmp_path):
  table = lance_table(tmp_path / "a.lance", [{"text": t} for t in "abc"])
  (part,) = readers.plan(f"lance:{tmp_path}", documents=9, image_shape=SHAPE)
  table.delete("text = 'b'")
  lance_table(tmp_path / "a.lance", [{"text": "d"}], mode="append")
  assert [d.spans for d in part.read()] == [("a",), ("b",), ("c",)]
  (data,) = [tmp_path / file.name for file in part.data]
  data.unlink()
  with pytest.raises(OSError, match="is gone or has changed since the job began"):
    list(part.read())
  with pytest.raises(ValueError, match="is not there; copy the whole folder"):
    read(f"lance:{tmp_path}")


@pytest.mark.parametrize("storage", ["2.0", "2.2"])
def test_blobs_of_lance_are_images_too(tmp_path, storage):
  lance = pytest.importorskip("lance")
  import pyarrow as pa

  blob = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
  schema = pa.schema([blob, pa.field("text", pa.string())])
  rows = [{"image": lookalikes.image(i), "text": f"shade {i}"} for i in range(3)]
  table = pa.Table.from_pylist(rows, schema)
  lance.write_dataset(table, tmp_path / "a.lance", data_storage_version=storage)
  found = kept(read(f"lance:{tmp_path}"))
  assert [shown(d) for d in found] == [[f"shade {i}", i] for i in range(3)]


def test_an_image_that_a_table_of_lance_names_lies_beside_the_table(tmp_path):
  (tmp_path / "a.png").write_bytes(lookalikes.image(5))
  rows = [{"file_name": f"{c}.png", "caption": f"of {c}"} for c in "ab"]
  lance_table(tmp_path / "a.lance", rows)
  found = read(f"lance:{tmp_path}")
  assert [shown(d) for d in kept(found)] == [["of a", 5]]
  assert [amount for _, amount in lost(found)] == [Amount(1, 1, 1)]


def test_a_damaged_fragment_of_lance_is_lost_row_by_row(tmp_path):
  rows = [{"text": f"row {i} " * 50} for i in range(6)]
  lance_table(tmp_path / "a.lance", rows, max_rows_per_file=3)
  (data, *_) = readers.plan(f"lance:{tmp_path}", documents=9, image_shape=SHAPE)[1].data
  path = tmp_path / data.name
  path.write_bytes(bytes(path.stat().st_size))
  found = read(f"lance:{tmp_path}", documents=9)
  assert len(kept(found)) == 3
  assert [reason for reason, _ in lost(found)] == [raw.UNREADABLE] * 3


def test_a_table_of_lance_that_cannot_serve_is_refused(tmp_path):
  lance_table(tmp_path / "a.lance", [{"uid": "a"}])
  with pytest.raises(ValueError, match=r"source=lance.*its columns are \['uid'\]"):
    read(f"lance:{tmp_path}")
  (manifest,) = (tmp_path / "a.lance" / "_versions").glob("*.manifest")
  manifest.write_bytes(b"broken")
  with pytest.raises(ValueError, match="a.lance: cannot be opened"):
    read(f"lance:{tmp_path}")
  lance_table(tmp_path / "b" / "b.lance", [{"text": "b"}]).delete("true")
  with pytest.raises(ValueError, match="its tables of Lance have no rows"):
    read(f"lance:{tmp_path / 'b'}")
  with pytest.raises(ValueError, match="there is no folder"):
    read(f"lance:{manifest}")


# All of them.

ALL = {
  "img2dataset": lookalikes.img2dataset,
  "obelics": lookalikes.obelics,
  "mmc4": lookalikes.mmc4,
  "mint": lookalikes.mint,
  "bagel-t2i": lookalikes.bagel_t2i,
  "bagel-edit": lookalikes.bagel_edit,
  "llava": lookalikes.llava,
  "energon": lookalikes.energon,
  "mds": lookalikes.mds,
  "lance": lookalikes.lance,
}


def test_every_layout_has_a_look_alike():
  own = {n for n, lay in readers.LAYOUTS.items() if ".layouts." in lay.plan.__module__}
  assert set(ALL) == own


@pytest.mark.parametrize("kind", ALL)
def test_a_layout_is_read_from_any_directory(tmp_path, monkeypatch, kind):
  root = ALL[kind](tmp_path / "in")
  monkeypatch.chdir(root.parent)
  parts = readers.plan(f"{kind}:{root.name}", documents=2, image_shape=SHAPE)
  monkeypatch.chdir("/")
  found = [d for part in parts for d in part.read()]
  assert found == list(read(f"{kind}:{root}").values())


@pytest.mark.parametrize("kind", ALL)
def test_a_folder_of_something_else_is_refused_with_what_would_be_read(tmp_path, kind):
  (tmp_path / "a.bin").write_bytes(b"a")
  with pytest.raises(ValueError, match=f"source={kind}:"):
    read(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
  "kind", ["obelics", "mmc4", "bagel-t2i", "bagel-edit", "llava"]
)
def test_a_table_of_other_columns_is_refused_before_any_work(tmp_path, kind):
  rows = [{"a": "b"}]
  if kind in ("mmc4", "llava"):
    lookalikes.lines(tmp_path / "a.jsonl", rows)
  else:
    lookalikes.parquet(tmp_path / "a.parquet", rows)
  with pytest.raises(ValueError, match="none of its first 1 rows.*what is read: "):
    read(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("kind", ["llava", "obelics", "bagel-t2i"])
def test_a_file_of_another_kind_is_refused(tmp_path, kind):
  (tmp_path / "a.txt").write_text("a")
  with pytest.raises(ValueError, match="a.txt ends in none of "):
    read(f"{kind}:{tmp_path / 'a.txt'}")


@pytest.mark.parametrize("kind", ["energon", "mds", "obelics"])
def test_a_library_that_lacks_is_named_with_the_extra(tmp_path, monkeypatch, kind):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"is missing: pip install 'tfusion\[prepare\]'"):
    read(f"{kind}:{tmp_path}")


def test_without_the_library_of_lance_its_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(
    "importlib.util.find_spec", lambda name: None if name == "lance" else 1
  )
  with pytest.raises(ValueError, match=r"lance is missing.*tfusion\[prepare,lance\]"):
    read(f"lance:{tmp_path}")


def test_columns_that_a_layout_does_not_have_are_named(tmp_path, capsys):
  rows = [{"id": 1, "conversations": lookalikes.CONVERSATION[2:], "source_url": "b"}]
  lookalikes.lines(tmp_path / "a.jsonl", rows)
  assert len(kept(read(f"llava:{tmp_path}"))) == 1
  assert "columns that are not read: source_url" in capsys.readouterr().out


def test_a_frame_of_every_mode_of_pixels_becomes_a_file():
  from tfusion.prepare.layouts import mds

  for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
    pixels = Image.new(mode, (3, 2)).tobytes()
    data = np.asarray([3, 2, len(mode)], np.uint32).tobytes() + mode.encode() + pixels
    with Image.open(io.BytesIO(mds.DECODE["pil"](data))) as image:
      assert image.size == (3, 2)
