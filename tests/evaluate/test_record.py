"""Promises of tfusion/evaluate/record.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.evaluate import record


def entry(**of):
  return {"of": of, "values": {"loss": 1.0}}


def test_numbers_of_the_checkpoint_stand_at_the_top_and_others_are_kept(tmp_path):
  finished = {
    "loss@5": entry(step=5),
    "fid@5": {"of": {}, "values": {"fid": 7.0}},
    "loss@15": {"of": {}, "values": {"loss": 9.0}},
  }
  found = record.write(tmp_path, finished, step=5, about={"sampler": "ddim"})
  assert (found["step"], found["loss"], found["fid"]) == (5, 1.0, 7.0)
  assert found["sampler"] == "ddim"
  assert record.read(tmp_path) == finished


def test_a_workdir_of_before_has_nothing_finished(tmp_path):
  assert record.read(tmp_path) == {}
  (tmp_path / "eval.json").write_text('{"step": 4, "text_perplexity": 3.0}')
  assert record.read(tmp_path) == {}


@pytest.mark.parametrize(
  "text", ["{", "[1]", '{"finished": 3}', '{"finished": {"a": 1}}']
)
def test_a_damaged_file_is_named(tmp_path, text):
  (tmp_path / "eval.json").write_text(text)
  with pytest.raises(ValueError, match=r"eval\.json: is damaged .* delete it"):
    record.read(tmp_path)


def test_what_it_depends_on_decides_whether_it_is_done():
  finished = {"loss@5": entry(shape=[4, 4], step=5)}
  assert record.is_done(finished, "loss@5", {"shape": (4, 4), "step": 5})
  assert not record.is_done(finished, "loss@5", {"shape": (4, 2), "step": 5})
  assert not record.is_done(finished, "loss@6", {"shape": (4, 4), "step": 5})


def test_knobs_are_those_of_a_section_or_named():
  found = record.knobs_of(tiny.config(), ("sample", "seed", "eval.batch"))
  assert {"seed", "eval.batch", "sample.steps", "sample.guidance"} <= set(found)
  assert not [key for key in found if key.startswith(("model.", "eval.text"))]


def test_the_hash_of_weights_sees_every_number_and_no_sharding():
  rng = np.random.default_rng(0)
  tree = {"a": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32), "b": jnp.ones(3)}
  known = record.hash_of_weights(tree)
  other = dict(tree, a=tree["a"].at[3, 1].add(1e-6))
  assert known != record.hash_of_weights(other)
  assert known != record.hash_of_weights({"c": tree["a"], "b": tree["b"]})
  half = {"a": tree["a"].astype(jnp.bfloat16)}
  assert record.hash_of_weights(half) != known
  mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
  laid = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  assert record.hash_of_weights(jax.device_put(tree, laid)) == known
