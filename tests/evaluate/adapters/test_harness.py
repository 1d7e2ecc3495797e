"""Promises of tfusion/evaluate/adapters/harness.py, with the real lm_eval, offline."""

import math
import pathlib

import jax
import pytest
import tiny_trained

from tfusion.data.pipeline import Corpus
from tfusion.evaluate import likelihood, suite, tasks
from tfusion.evaluate.adapters.generator import Generator
from tfusion.evaluate.evaluation import Asked
from tfusion.generate.canvas import open_canvas

TASKS = pathlib.Path(__file__).parent / "tasks"
DOCUMENTS = (TASKS / "words.jsonl").read_text().splitlines()
REASON = "lm_eval is in the extra `eval`"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("trained")) as trained:
    yield trained


@pytest.fixture
def harness(monkeypatch, tmp_path):
  """The adapter, where data are read from files beside the test alone."""
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
  monkeypatch.chdir(TASKS)
  pytest.importorskip("lm_eval", reason=REASON)
  from tfusion.evaluate.adapters import harness

  return harness


@pytest.fixture
def generator(trained, tmp_path):
  return Generator(trained, open_canvas(trained.config, tmp_path))


class Request:
  """As the harness's `Instance`."""

  def __init__(self, *args):
    self.args = args


@pytest.mark.slow
def test_choices_are_ranked_by_their_likelihood(harness, trained, generator):
  found = harness.evaluate_tasks(generator, ["tfusion_choose"], folder=TASKS)
  right = right_norm = 0
  encode = trained.tokenizer.encode
  for line in DOCUMENTS:
    one = harness.lm_eval.utils.json.loads(line)
    pairs = []
    for choice in one["choices"]:
      whole = encode(one["question"] + choice).tolist()
      n = len(encode(one["question"]))
      pairs.append((whole[:n], whole[n:]))
    logs = [x.log for x in likelihood.measure(trained, pairs)]
    by_length = [x / len(c) for x, c in zip(logs, one["choices"])]
    right += logs.index(max(logs)) == one["answer"]
    right_norm += by_length.index(max(by_length)) == one["answer"]
  assert found["tfusion_choose acc"] == right / 4
  assert found["tfusion_choose acc_norm"] == right_norm / 4


@pytest.mark.slow
def test_rolling_likelihood_is_of_every_token_of_a_text(harness, trained, generator):
  found = harness.evaluate_tasks(generator, ["tfusion_rolling"], folder=TASKS)
  texts = [harness.lm_eval.utils.json.loads(line)["text"] for line in DOCUMENTS]
  pairs = [([], trained.tokenizer.encode(text).tolist()) for text in texts]
  nats = -sum(one.log for one in likelihood.measure(trained, pairs))
  count = sum(len(text.encode()) for text in texts)
  want = math.exp(nats / count)
  assert found["tfusion_rolling byte_perplexity"] == pytest.approx(want, rel=1e-5)
  # A text longer than a row is cut, and every token counted once.
  model = harness.LanguageModel(generator)
  (long,) = model.loglikelihood_rolling([Request(" ".join(texts * 20))])
  assert long < -nats


@pytest.mark.slow
def test_an_answer_ends_at_a_stop_and_has_so_many_tokens(harness, trained, generator):
  found = harness.evaluate_tasks(generator, ["tfusion_write"], folder=TASKS)
  assert 0 <= found["tfusion_write exact_match"] <= 1
  model = harness.LanguageModel(generator)
  asked = {"until": [], "max_gen_toks": 6, "do_sample": False}
  (whole,) = model.generate_until([Request("a handwritten", asked)])
  assert whole
  stop = whole[len(whole) // 2]
  short, long = model.generate_until(
    [
      Request("a handwritten", asked | {"until": stop}),
      Request("a handwritten", asked | {"temperature": 0}),
    ]
  )
  assert short == whole[: whole.index(stop)] and long == whole
  # What does not fit before an answer loses its beginning.
  long = "seven and " * 99 + "text"
  room, kept = trained.config.data.row_length - 1 - 6, model._end_of(long, 6)
  assert long.endswith(kept) and len(trained.tokenizer.encode(kept)) <= room
  of_both = model.generate_until([Request(text, asked) for text in (long, kept)])
  assert of_both[0] == of_both[1]
  # One token is all that top_k=1 leaves, whatever the temperature.
  one = {"max_gen_toks": 6, "do_sample": True, "temperature": 5.0, "top_k": 1}
  assert model.generate_until([Request("a handwritten", one)]) == [whole]
  with pytest.raises(ValueError, match="num_beams=4: this is not built"):
    model.generate_until([Request("a", {"num_beams": 4})])
  with pytest.raises(ValueError, match="an answer of 999 tokens: leaves no room"):
    model.generate_until([Request("a", {"max_gen_toks": 999})])


def test_the_interface_is_whole(harness, generator):
  model = harness.LanguageModel(generator)
  special = generator.trained.tokenizer.special
  assert (model.eot_token_id, model.prefix_token_id) == (special.eos, special.bos)
  assert (model.rank, model.world_size) == (0, 1)
  assert model.tokenizer_name.startswith("tfusion-")
  assert special.bos not in model.tok_encode("some text")


@pytest.mark.slow
def test_a_task_is_an_evaluation_with_the_judge_beside_it(
  harness, trained, tmp_path, monkeypatch
):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "tasks").symlink_to(TASKS)
  corpus = Corpus((), (), trained.tokenizer)
  found = suite.evaluate(
    trained,
    corpus,
    tmp_path,
    names=("lm:tfusion_choose",),
    data=tmp_path / "data",
  )
  assert 0 <= found["tfusion_choose acc"] <= 1
  assert found["lm_judge"].startswith("lm-evaluation-harness 0.")
  with pytest.raises(ValueError, match="has no task tfusion_chose"):
    suite.evaluate(trained, corpus, tmp_path, names=("lm:tfusion_chose",))


def test_the_seven_tasks_of_llama_2_are_known_and_their_mean_is_taken(
  harness, trained, tmp_path, monkeypatch
):
  asked = Asked(trained, Corpus((), (), trained.tokenizer), tmp_path)
  tasks.check_llama2(asked)
  assert len(tasks.LLAMA2) == 7
  values = {f"{task} acc": i / 10 for i, task in enumerate(tasks.LLAMA2)}
  monkeypatch.setattr(harness, "evaluate_tasks", lambda *_, **__: dict(values))
  found = tasks.evaluate_llama2(asked)
  assert found["llama2_accuracy"] == pytest.approx(30.0)
  assert found["piqa acc"] == 0.1


def test_without_the_package_the_extra_is_named(trained, tmp_path, monkeypatch):
  asked = Asked(trained, Corpus((), (), trained.tokenizer), tmp_path, None, "piqa")
  monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"need the extra `eval`"):
    tasks.check_lm(asked)
  assert jax.process_count() == 1
