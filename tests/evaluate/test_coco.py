"""Promises of tfusion/evaluate/coco.py."""

import json

import pytest
import tiny_coco

from tfusion.evaluate import coco


def test_a_split_is_read_in_its_order_with_all_captions(tmp_path):
  texts = tiny_coco.write(tmp_path)
  found = coco.read(tmp_path, split="test")
  assert [list(one.captions) for one in found] == [texts[0], texts[3]]
  assert found[0].path == tmp_path / "val2014" / "COCO_val2014_000000000000.jpg"
  assert len(coco.read(tmp_path, images="val2014")) == 4
  assert len(coco.read(tmp_path)) == 5
  coco.check_images(found)


def test_captions_are_drawn_once_each_and_always_the_same(tmp_path):
  texts = tiny_coco.write(tmp_path)
  found = coco.read(tmp_path, images="val2014")
  drawn = coco.draw(found, 8)
  assert sorted(drawn) == sorted(text for own in texts[:4] for text in own)
  assert coco.draw(found, 3) == drawn[:3] != drawn[1:4]
  with pytest.raises(ValueError, match="9 captions are asked for, .* holds 8"):
    coco.draw(found, 9)


def test_the_hash_is_of_names_and_captions(tmp_path):
  tiny_coco.write(tmp_path)
  found = coco.read(tmp_path)
  other = [one._replace(captions=one.captions[:1]) for one in found]
  assert coco.contents(found) != coco.contents(other)


def test_what_is_missing_is_named_and_so_is_where_to_get_it(tmp_path):
  with pytest.raises(ValueError, match="--data is not given; MS-COCO takes"):
    coco.folder_of(None)
  with pytest.raises(ValueError, match="no such file; MS-COCO takes .*karpathy"):
    coco.read(tmp_path)
  tiny_coco.write(tmp_path)
  with pytest.raises(ValueError, match="holds no image of tset"):
    coco.read(tmp_path, split="tset")
  found = coco.read(tmp_path)
  for one in found[1:3]:
    one.path.unlink()
  with pytest.raises(ValueError, match=r"0001.jpg: .* 2 of 5 images are missing"):
    coco.check_images(found)
  path = tmp_path / "dataset_coco.json"
  for text in ("[]", "{", '{"images": [{"split": "test"}]}'):
    path.write_text(text)
    with pytest.raises(ValueError, match="is not Karpathy's dataset_coco.json"):
      coco.read(tmp_path)
  images = json.loads(
    '[{"split": "val", "filepath": "", "filename": "a", "sentences": []}]'
  )
  path.write_text(json.dumps({"images": images}))
  with pytest.raises(ValueError, match="a has no sentences"):
    coco.read(tmp_path)
