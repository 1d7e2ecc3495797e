"""Data sets as people have them, all the way to shards: the numbers add up."""

import pytest
from prepare import lookalikes

from tfusion import cli
from tfusion.data.balance import Amount
from tfusion.data.shards import manifest, source
from tfusion.prepare import raw

pytestmark = pytest.mark.slow

pytest.importorskip("apache_beam")

# What is used of each, both splits together.
USED = {
  "img2dataset": Amount(18, 18, 18),
  "obelics": Amount(4, 0, 4),
  "mmc4": Amount(3, 4, 5),
  "mint": Amount(2, 4, 4),
  "bagel_t2i": Amount(6, 6, 6),
  "bagel_edit": Amount(6, 18, 12),
  "bagel_vlm": Amount(3, 2, 10),
  "energon": Amount(8, 8, 8),
  "mds": Amount(6, 6, 6),
  "lance": Amount(6, 6, 6),
}


@pytest.mark.parametrize("name", USED)
def test_a_data_set_becomes_shards_and_every_number_adds_up(tmp_path, capsys, name):
  root, out = getattr(lookalikes, name)(tmp_path / "in"), tmp_path / "out"
  args = ["--source", f"auto:{root}", "--out", str(out), "--image-px", "4"]
  assert cli.main(["prepare", *args]) == 0
  said = capsys.readouterr().out
  splits = manifest.load(out).counts.splits
  assert all(balance.adds_up for balance in splits.values())
  assert sum((b.used for b in splits.values()), Amount()) == USED[name]
  made = manifest.load(out)
  assert made.source.partition(":")[0] in said.partition("taken for ")[2][:20]
  records = [r for s in made.shards for r in source.read_shard(out / s.name)]
  assert len(records) == USED[name].documents
  addresses = sum(
    b.skipped.get(raw.NOT_STORED, Amount()).images for b in splits.values()
  )
  assert (f"Of {addresses:,} images only the addresses are here" in said) == (
    name in ("obelics", "mmc4")
  )
  learned = {weight for record in records for weight in record.weights}
  assert learned == ({0, 1} if name in ("bagel_edit", "bagel_vlm") else {1})


def test_shards_may_be_of_byte_pairs(tmp_path):
  tokenizers = pytest.importorskip("tokenizers")
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=256)
  model.train_from_iterator([""], trainer)
  model.save(str(tmp_path / "tokenizer.json"))
  root, out = lookalikes.mds(tmp_path / "in"), tmp_path / "out"
  args = ["--source", f"mds:{root}", "--out", str(out), "--image-px", "4"]
  args += ["--tokenizer", str(tmp_path / "tokenizer.json")]
  assert cli.main(["prepare", *args]) == 0
  assert manifest.load(out).vocabulary == 256 + 5
  assert source.survey(out).examples == ("train 0", "train 1", "train 2")


def test_a_rule_reaches_the_shards_from_the_command_line(tmp_path):
  root, out = lookalikes.bagel_t2i(tmp_path / "in"), tmp_path / "out"
  args = ["--source", f"bagel-t2i:{root}", "--out", str(out), "--image-px", "4"]
  assert cli.main(["prepare", *args, "--learn", "images"]) == 0
  made = manifest.load(out)
  records = [r for s in made.shards for r in source.read_shard(out / s.name)]
  assert {record.weights for record in records} == {(0, 1)}
