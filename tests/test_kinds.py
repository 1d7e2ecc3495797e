"""Kinds as model.kinds writes them: what is taken, what is refused, and with what."""

import dataclasses

import pytest
import tiny

from tfusion import config as config_lib
from tfusion import kinds
from tfusion.kinds import Kind

IMAGE = Kind("image", (16, 24, 3), (2, 2))
SEVERAL = (
  "tall:24x16x3,like=image",
  "audio:64x1,patch=4,weight=1,slots=2",
  "clip:4x8x8x4,patch=2x4x4,target=v,schedule=linear,shift=3",
  "pose:7",
)


def test_without_others_there_are_images_alone():
  assert tiny.config().model.every_kind == (Kind("image", (4, 4, 2), (2, 2)),)


def test_every_number_of_dimensions_is_cut_into_patches():
  image, tall, audio, clip, pose = kinds.parse(SEVERAL, IMAGE)
  assert [kind.grid for kind in (image, tall, audio, clip, pose)] == [
    (8, 12),
    (12, 8),
    (16,),
    (2, 2, 2),
    (),
  ]
  assert [k.patches for k in (image, tall, audio, clip, pose)] == [96, 96, 16, 8, 1]
  assert [k.patch_numbers for k in (image, tall, audio, clip, pose)] == [
    *(12, 12, 4),
    2 * 4 * 4 * 4,
    7,
  ]
  assert (tall.owner, tall.patch, audio.owner) == ("image", (2, 2), "audio")
  assert [k.sides for k in (image, audio, pose)] == [(8, 12), (1, 16), (1, 1)]
  with pytest.raises(ValueError, match="clip: .* has no rows and columns"):
    clip.sides  # noqa: B018


def test_what_a_kind_says_goes_before_what_the_run_says():
  config = tiny.config(model__kinds=SEVERAL[2:], sample__sampler="dpmpp_2m")
  image, clip, pose = (
    config_lib.diffusion_of(config, kind) for kind in config.model.every_kind
  )
  assert image == pose == config.diffusion
  assert clip == dataclasses.replace(
    config.diffusion, target="v", schedule="linear", t_shift=3.0
  )


def test_a_row_has_as_many_slots_as_it_has_room_for_or_as_a_kind_says():
  config = tiny.config(
    model__kinds=("long:32x1,patch=2", "short:2x1", "few:4x1,slots=1"),
    data__row_length=64,
    data__image_slots=9,
  )
  assert config_lib.slots_of(config) == (9, 3, 9, 1)


@pytest.mark.parametrize(
  "spec, says",
  [
    ("image:4x4x3", "a second kind of the name 'image'"),
    ("Audio:4x1", "'Audio' is no name of a kind: small letters and digits"),
    ("text:4x1", "'text' is no name of a kind"),
    ("image_bins:4x1", "'image_bins' is no name of a kind"),
    ("other:16x24x3", "image has this shape too, and by shapes sources tell"),
    ("pose:7,patch=1", "a vector is one patch; leave patch away"),
    ("audio", "'': expected sizes such as 192x320x3; write NAME:SHAPE"),
    ("audio:4xa", "'4xa': expected sizes"),
    ("audio:0x1", "'0x1': sizes are above 0"),
    ("a:2x2x2x2x1", "4 dimensions and channels; at most 3"),
    ("audio:9x1,patch=2", "patches of 2 do not divide the 9 cells"),
    ("audio:8x1,patch=2x2", "patches of 2x2 do not divide the 8 cells"),
    ("audio:8x1,pitch=2", "'pitch=2': known once each are"),
    ("audio:8x1,patch=2,patch=4", "'patch=4': known once each are"),
    ("tall:8x4x3,like=photo", "no kind before it has this name; it knows ['image']"),
    ("tall:8x4x1,like=image", "layers are shared by kinds of as many dimensions and"),
    ("tall:8x3x3,like=image", "patches of 2x2 do not divide the 8x3 cells"),
    ("tall:8x4x3,like=image,patch=4", "['patch'] are those of image, whose layers"),
    ("audio:8x1,layers=unet", "layers=unet: is of images h, w, c in square patches"),
    ("audio:8x1,weight=-1", "weight=-1: expected a number above 0"),
    ("audio:8x1,weight=nan", "weight=nan: expected a number above 0"),
    ("audio:8x1,slots=1.5", "slots=1.5: expected a number above 0"),
    ("audio:8x1,target=w", "target=w: choose one of ('eps', 'x0', 'v')"),
  ],
)
def test_what_cannot_be_is_refused_by_its_entry_with_a_reason(spec, says):
  with pytest.raises(ValueError) as refused:
    kinds.parse((spec,), IMAGE)
  assert f"model.kinds: {spec!r}: " in str(refused.value) and says in str(refused.value)


def test_layers_are_not_shared_with_what_has_none():
  with pytest.raises(ValueError, match="has none of its own; write like=image"):
    kinds.parse(("tall:24x16x3,like=image", "wide:8x16x3,like=tall"), IMAGE)


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(model__patches="none"), "are of patches, and model.patches=none has none"),
    (
      dict(model__kinds=("a:8x1,schedule=linear",)),
      "sample.sampler='ddpm': a of model.kinds has the schedule linear",
    ),
    (dict(model__kinds=("a:64x1",)), "one a and one token take 68 elements"),
    (
      dict(model__kinds=("clip:2x2x2x1",), model__positions="axial"),
      "clip has 3 dimensions, but model.positions=axial",
    ),
    (
      dict(
        model__kinds=("a:8x8x1,patch=4,layers=unet",),
        model__patches="unet",
        model__unet_widths=(8, 16),
        data__row_length=64,
      ),
      "patches of 4, as a of model.kinds has, take 3 widths",
    ),
  ],
)
def test_a_run_that_its_kinds_do_not_fit_is_refused(changes, says):
  changes = dict(model__kinds=("a:8x1",)) | changes
  with pytest.raises(ValueError) as refused:
    tiny.config(**changes)
  assert says in str(refused.value)
