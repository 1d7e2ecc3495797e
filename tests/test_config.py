"""Promises of tfusion/config.py: whatever the user can mend is said at the door."""

import dataclasses
import json

import ml_collections
import pytest
from tiny import build

from tfusion import config as config_lib
from tfusion.config import Config


def refusal(**values) -> str:
  with pytest.raises(ValueError) as error:
    build(**values)
  return str(error.value)


def test_the_defaults_are_valid_and_every_default_says_so_itself():
  assert config_lib.from_dict(config_lib.defaults()) == Config()


def test_defaults_that_the_paper_states_are_the_papers():
  flat = config_lib.flatten(Config())
  stated = {  # arXiv 2408.11039, sections 3 and 4.1
    "data.text_per_patch": 1.0,  # elements of text for one of an image
    "data.caption_first": 0.8,
    "diffusion.timesteps": 1000,
    "diffusion.image_weight": 5.0,  # lambda
    "diffusion.image_first_noise_cap": 1.0,  # Table 8 alone has 0.5
    "model.norm_eps": 1e-5,
    "model.rope_theta": 10_000.0,
    "optim.peak_lr": 3e-4,
    "optim.end_lr": 1.5e-5,
    "optim.warmup_steps": 4000,
    "optim.b1": 0.9,
    "optim.b2": 0.95,
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "optim.ema_decay": 0.0,  # none
    "sample.sampler": "ddpm",
    "sample.steps": 250,
    "sample.guidance": 3.0,  # section 4.3
    "sample.temperature": 0.0,  # greedy
  }
  left_open = {"data.caption_dropout": 0.1}  # what its successors use
  for key, value in (stated | left_open).items():
    assert flat[key] == value, key


def test_an_unknown_or_missing_key_is_named_with_the_known_ones():
  text = refusal(train__stepz=3)
  assert "train" in text and "stepz" in text and "batch_rows" in text
  assert "optimizer" in refusal(optimizer={})
  nested = dataclasses.asdict(Config())
  del nested["model"]["patch"]
  with pytest.raises(ValueError, match="missing.*patch"):
    config_lib.from_dict(nested)


@pytest.mark.parametrize(
  "key, value, kind",
  [
    ("train__steps", "many", "int"),
    ("train__steps", 2.0, "int"),
    ("train__steps", True, "int"),
    ("optim__peak_lr", "3e-4", "float"),
    ("optim__peak_lr", float("nan"), "float"),
    ("optim__peak_lr", None, "float"),
    ("model__image_shape", 8, "tuple"),
    ("sample__sampler", 3, "str"),
    ("model", 3, "keys"),
  ],
)
def test_a_wrong_type_names_key_value_and_type(key, value, kind):
  text = refusal(**{key: value})
  assert key.replace("__", ".") in text and kind in text and repr(value)[:5] in text


def test_a_wrong_type_inside_a_tuple_names_its_place():
  text = refusal(model__image_shape=(8, 8, "1"))
  assert "model.image_shape[2]='1'" in text and "int" in text


def test_whole_numbers_and_lists_are_taken_where_they_mean_the_same():
  config = build(optim__peak_lr=1, optim__end_lr=0, model__image_shape=[8, 8, 1])
  assert isinstance(config.optim.peak_lr, float)
  assert config.model.image_shape == (8, 8, 1)
  assert hash(config)  # a static argument of jit


@pytest.mark.parametrize(
  "values, says",
  [
    ({"train__batch_rows": 18}, ["train.batch_rows=18", "data.lanes=4"]),
    (
      {"train__batch_rows": 16, "train__accumulate": 3},
      ["train.batch_rows=16", "train.accumulate=3"],
    ),
    ({"model__patch": 3}, ["model.patch=3", "(1, 2, 4, 8)"]),
    ({"model__image_shape": (8, 7, 1)}, ["model.image_shape=(8, 7, 1)", "model.patch"]),
    ({"model__image_shape": (8, 8)}, ["model.image_shape=(8, 8)", "h, w, c"]),
    ({"model__image_shape": (8, 8, 0)}, ["model.image_shape=(8, 8, 0)"]),
    ({"model__heads": 5}, ["model.width=192", "model.heads=5"]),
    ({"model__head_size": 7}, ["model.head_size=7", "even"]),
    ({"model__rope_scaling": (8.0,)}, ["model.rope_scaling=(8.0,)", "four numbers"]),
    (
      {"model__rope_scaling": (8.0, 4.0, 1.0, 8192.0)},
      ["model.rope_scaling", "the low one below the high one"],
    ),
    (
      {"model__positions": "axial", "model__head_size": 6},
      ["model.head_size=6", "multiple of 4"],
    ),
    ({"model__kv_heads": 3}, ["model.heads=4", "model.kv_heads=3"]),
    ({"data__row_length": 19}, ["data.row_length=19", "one token take 20"]),
    ({"data__sources": ()}, ["data.sources"]),
    ({"data__weights": (1.0,)}, ["data.weights=(1.0,)", "1 values for 2 data.sources"]),
    ({"data__weights": (1.0, 0.0)}, ["data.weights=(1.0, 0.0)", "leave a source out"]),
    ({"data__epochs": (0, 0, 1)}, ["data.epochs=(0, 0, 1)", "3 values for 2"]),
    ({"data__epochs": (1, 2)}, ["data.epochs=(1, 2)", "0, without end, for one"]),
    ({"data__epochs": (0, -1)}, ["data.epochs=(0, -1)", "at least 0"]),
    ({"data__too_long": "cut"}, ["data.too_long='cut'", "split"]),
    ({"data__overlap": 65}, ["data.overlap=65", "data.row_length=128"]),
    ({"data__overlap": -1}, ["data.overlap=-1"]),
    ({"data__max_damaged": -1}, ["data.max_damaged=-1"]),
    ({"sample__steps": 1001}, ["sample.steps=1001", "diffusion.timesteps=1000"]),
    ({"optim__end_lr": 1.0}, ["optim.end_lr=1.0", "optim.peak_lr"]),
    ({"optim__decay": "line"}, ["optim.decay='line'", "exponential"]),
    (
      {"optim__decay": "exponential", "optim__end_lr": 0.0},
      ["optim.end_lr=0", "optim.decay=exponential", "hundredth"],
    ),
    ({"optim__ema_decay": 1.0}, ["optim.ema_decay=1.0"]),
    ({"data__caption_dropout": 1.5}, ["data.caption_dropout=1.5"]),
    ({"diffusion__image_first_noise_cap": 0.0}, ["image_first_noise_cap=0.0"]),
    ({"diffusion__image_first_clean": 1.1}, ["image_first_clean=1.1"]),
    ({"diffusion__context": "clean"}, ["diffusion.context='clean'", "both"]),
    (
      {"diffusion__context": "both", "data__isolate_documents": False},
      ["diffusion.context='both'", "data.isolate_documents=True"],
    ),
    (
      {"diffusion__context": "both", "model__patches": "none"},
      ["diffusion.context='both'", "model.patches=none"],
    ),
    (
      {"diffusion__context": "both", "diffusion__image_first_clean": 0.5}
      | {"diffusion__image_first_noise_cap": 0.75},
      ["image_first_clean=0.5", "set 0", "image_first_noise_cap=0.75", "set 1"],
    ),
    ({"mesh__data": 0}, ["mesh.data=0"]),
    ({"model__norm_eps": 0.0}, ["model.norm_eps=0.0"]),
    ({"seed": -1}, ["seed=-1"]),
    ({"seed": 2**32}, ["seed=4294967296", "at most 4294967295"]),
    ({"train__steps": 0}, ["train.steps=0"]),
    ({"model__remat": "some"}, ["model.remat='some'", "dots"]),
    ({"model__image_attention": "full"}, ["image_attention=", "causal"]),
    ({"model__norms": "post"}, ["model.norms=", "after"]),
    ({"model__positions": "2d"}, ["model.positions='2d'", "axial"]),
    ({"model__patch_places": "cosine"}, ["model.patch_places=", "sine"]),
    (
      {"model__positions": "axial", "model__width": 24},
      ["model.positions='axial'", "model.width=24", "4 * model.heads=4"],
    ),
    (
      {"model__patch_places": "sine", "model__width": 6, "model__heads": 1}
      | {"model__kv_heads": 1},
      ["model.patch_places='sine'", "model.width=6"],
    ),
    (
      {"model__patches": "none", "model__positions": "shared"},
      ["model.positions='shared'", "model.patches=none", "set sequence"],
    ),
    (
      {"model__patches": "none", "model__patch_places": "learned"},
      ["model.patch_places='learned'", "model.patches=none", "set none"],
    ),
    ({"model__dropout": 1.0}, ["model.dropout=1.0", "[0, 1)"]),
    ({"train__z_loss": -1e-5}, ["train.z_loss=-1e-05", "at least 0"]),
  ],
)
def test_a_value_that_cannot_be_names_its_key_and_the_remedy(values, says):
  text = refusal(**values)
  assert all(part in text for part in says), text


def test_all_problems_come_in_one_message():
  text = refusal(train__steps=0, data__workers=-1, model__patch=5, optim__b1=1.0)
  assert len(text.split("\n")) == 4
  text = refusal(train__batch_rows=18, optim__end_lr=1.0, sample__steps=2000)
  assert len(text.split("\n")) == 3


def test_arguments_of_an_experiment_are_typed_by_their_defaults():
  parse = config_lib.parse_arg
  known = dict(size="0.16b", patch=2, lr=0.1, smoke=False)
  assert parse("", **known).to_dict() == known
  given = parse("size=7b,patch=4,smoke", **known).to_dict()
  assert given == {"size": "7b", "patch": 4, "lr": 0.1, "smoke": True}
  assert parse("smoke=0", **known).smoke is False
  with pytest.raises(ValueError, match="'sizes' is not known.*'size'"):
    parse("sizes=3", **known)
  for bad in ("patch=two", "patch", "smoke=perhaps"):
    with pytest.raises(ValueError, match=f"{bad.partition('=')[0]}.*expected"):
      parse(bad, **known)


# Machines and directories.


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
  check = config_lib.validate_devices
  check(build(), devices=16, hosts=1)
  check(build(mesh__fsdp=2, mesh__tensor=2), devices=8, hosts=1)
  for mesh, devices in (
    ({"mesh__fsdp": 3}, 8),
    ({"mesh__fsdp": 16}, 8),
    ({"mesh__data": 4}, 8),
    ({"mesh__data": 4, "mesh__tensor": 4}, 8),
    ({"mesh__data": 4, "mesh__context": 4}, 8),
  ):
    with pytest.raises(ValueError, match=f"does not fit {devices} devices"):
      check(build(**mesh), devices=devices, hosts=1)


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
  with pytest.raises(ValueError, match=r"batch_rows=16.*8 rows.*data\*fsdp=16"):
    config_lib.validate_devices(build(train__accumulate=2), devices=16, hosts=1)


@pytest.mark.parametrize(
  "values, key",
  [
    ({"mesh__tensor": 8}, "model.heads=4"),
    ({"mesh__tensor": 4, "model__kv_heads": 2}, "model.kv_heads=2"),
    ({"mesh__tensor": 4, "model__mlp": 510}, "model.mlp=510"),
    ({"mesh__tensor": 4, "model__vocab_size": 510}, "model.vocab_size=510"),
    ({"mesh__context": 4, "data__row_length": 126}, "row_length=126.*context=4"),
    ({"mesh__context": 4}, None),
    ({"mesh__fsdp": 8, "model__width": 24 * 9}, None),
    ({"mesh__fsdp": 8, "model__width": 196, "model__heads": 2}, "model.width=196"),
  ],
)
def test_sizes_that_do_not_divide_over_the_mesh_are_refused(values, key):
  values = {"model__kv_heads": values.get("model__heads", 4)} | values
  config = build(**values)
  if key is None:
    config_lib.validate_devices(config, devices=8, hosts=1)
    return
  with pytest.raises(ValueError, match=key):
    config_lib.validate_devices(config, devices=8, hosts=1)


def test_hosts_that_do_not_divide_the_lanes_learn_which_counts_do():
  config = build(data__lanes=8)
  for hosts in (1, 2, 4, 8):
    config_lib.validate_devices(config, devices=8, hosts=hosts)
  with pytest.raises(ValueError, match=r"lanes=8.*3 hosts.*\[1, 2, 4, 8\]"):
    config_lib.validate_devices(config, devices=8, hosts=3)


def test_a_row_may_not_be_shared_by_hosts_that_read_different_rows():
  wide = dict(model__heads=8, model__kv_heads=8, data__lanes=8, train__batch_rows=8)
  config = build(mesh__tensor=8, **wide)
  config_lib.validate_devices(config, devices=8, hosts=1)
  with pytest.raises(ValueError, match=r"mesh.tensor=8.*2 hosts.*data\*fsdp=1"):
    config_lib.validate_devices(config, devices=8, hosts=2)
  config = build(mesh__tensor=2, mesh__context=4, **wide)
  with pytest.raises(ValueError, match=r"mesh.context=4.*2 hosts.*data\*fsdp=1"):
    config_lib.validate_devices(config, devices=8, hosts=2)
  config = build(mesh__tensor=2, mesh__context=2, **wide)
  config_lib.validate_devices(config, devices=8, hosts=2)


def test_a_config_dict_in_and_json_out_hold_every_knob():
  saved = json.loads(json.dumps(dataclasses.asdict(Config())))
  flat = config_lib.flatten(Config())
  assert len(flat) == sum(len(v) if isinstance(v, dict) else 1 for v in saved.values())
  assert config_lib.from_dict(ml_collections.ConfigDict(saved)) == Config()
