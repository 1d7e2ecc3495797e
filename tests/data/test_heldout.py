"""Names that say "held out", and those that only contain such a word."""

import pytest

from tfusion.data import heldout


@pytest.mark.parametrize("word", heldout.WORDS)
def test_a_folder_or_the_head_of_a_file_name_says_so_in_any_case(word):
  for spelled in (word, word.upper(), word.capitalize()):
    for name in (
      f"{spelled}/a.png",
      f"photos/{spelled}/deep/a.png",
      f"{spelled}2017/000.jpg",
      f"{spelled}.jsonl",
      f"data/{spelled}-00000-of-00001.parquet",
      f"{spelled}_07.tar",
      spelled,
    ):
      assert heldout.is_named(name), name


@pytest.mark.parametrize(
  "name",
  "contest/a.png latest.tar testimony.txt evaluation/a.png a/protest/b.png developer.md"
  " valley-1.jpg train-test.jsonl mytest/a.png test1/a.png best_val.png tests.tar"
  " train/a.png validated/b.png retest.parquet 0.test".split(),
)
def test_a_name_that_only_contains_the_word_says_nothing(name):
  assert not heldout.is_named(name)


def test_a_row_names_its_split_by_the_same_words():
  assert [
    heldout.is_split_named(s) for s in ("train", "TEST", "Validation", "dev")
  ] == [
    False,
    True,
    True,
    True,
  ]
  for split in ("some", "", 3, None, ["test"]):
    with pytest.raises(ValueError, match='"split" is .* none of train, test, val'):
      heldout.is_split_named(split)


@pytest.mark.parametrize(
  "name",
  "test_images/a.png Holdout/a.png held-out/a.png x/hold_out/a.png tests/a.png"
  " testing/a.png testset/a.png evaluation/a.png val_set/a.png split=test/a.parquet"
  " dev-clean/a.png".split(),
)
def test_a_folder_that_only_sounds_held_out_is_doubtful(name):
  assert not heldout.is_named(name)
  assert heldout.doubtful(name, file=False) == name.split("/")[-2]


@pytest.mark.parametrize(
  "name",
  "contest/a.png latest/a.png train_test/a.png test/a.png val2017/a.png valley/b.png"
  " photos/my_test.png developer/a.png training-eval/a.png".split(),
)
def test_other_folders_are_not_doubtful(name):
  assert heldout.doubtful(name, file=False) == ""


def test_the_name_of_a_file_of_many_documents_may_be_doubtful_too():
  assert heldout.doubtful("photos/my_test.jsonl") == "my_test.jsonl"
  names = ["a/holdout.tar", "holdout/b.tar", "holdout/c.tar", "d.tar"]
  said = heldout.advice(names)
  assert (
    said.startswith("trained on, though") and "holdout (2), holdout.tar (1)" in said
  )
  assert heldout.advice(["a.tar", "test/b.tar"]) == ""
