"""A row's page shows its texts, special tokens, images and intervals."""

import base64
import io
import re

import numpy as np
from PIL import Image
from tiny_sources import ALL, FIRST_CODE, changed, latent, tokenizer

from tfusion import sequence
from tfusion.data import lanes
from tfusion.inspect import row_page
from tfusion.inspect.replay import TakenRow

PATCHES = ALL.model.patches_per_image
blank = lambda images: np.zeros((len(images), 4, 4, 3), np.uint8)  # noqa: E731


def packed(*documents, config=ALL):
  made = [
    sequence.lay_out(d, special=tokenizer().special, patches_per_image=(PATCHES,))
    for d in documents
  ]
  return lanes.pack(made, config, tokenizer())


def page_of(row, names, show):
  ends = np.flatnonzero(row.tokens_l == tokenizer().special.bos)[1:]
  ends = [0, *ends, np.sum(row.hi_l >= row.lo_l)]
  taken = TakenRow(row, 5, names, tuple(np.diff(ends)))
  return row_page.page(taken, tokenizer(), title="Step 3", show=show)


def images_of(page):
  found = re.findall(r"base64,([^\"]+)", page)
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]


def text(words, weight=1.0):
  return sequence.Text(tokenizer().encode(words), weight)


def test_a_page_shows_names_texts_special_tokens_and_what_is_only_read():
  row = packed((text("1 < 2"), text("quiet", 0.0), text("9")), (text("7"),))
  page = page_of(row, ("numbers[3]", "<b>[4], piece 2"), None)
  read = '<span class="read">{}</span>'.format
  assert f"{read('<b>BOS</b>')}1 &lt; 2{read('quiet')}9<b>EOS</b>" in page
  assert f"{read('<b>BOS</b>')}7<b>EOS</b>" in page
  assert "numbers[3]: positions 0 to 11" in page and "&lt;b&gt;[4], piece 2" in page
  words = " ".join(page.split())
  assert "Lane 5; 14 of 64 positions filled, 0 of 3 image slots used" in words


def test_images_stand_where_they_are_with_their_weight_and_noise():
  first, second = latent(0) / 64, latent(1) / 64
  shown = sequence.Image(second, weight=0.0, noise_cap=0.0)
  codes = sequence.Codes(np.arange(FIRST_CODE, FIRST_CODE + 9))
  half = sequence.Image(first, weight=0.5)
  row = packed((half, text("3"), shown), (text("4"), codes))
  asked = []

  def show(x):
    asked.append(x)
    return [np.full((4, 4, 3), 10 * len(asked) + n, np.uint8) for n in range(len(x))]

  page = page_of(row, ("a[0]", "b[0]"), show)
  np.testing.assert_array_equal(asked[0], [first, second])
  np.testing.assert_array_equal(
    asked[1], [np.arange(9) + FIRST_CODE - tokenizer().vocab_size]
  )
  plain = re.sub(r"<img[^>]*>", "IMG", re.sub(r"</?(span|small)[^>]*>", "", page))
  assert "BOS</b><b>BOI</b>IMG16 patches, t up to T, weight 0.5<b>EOI</b>3" in plain
  clean = "clean: to be read, no noise to learn"
  assert f"3<b>BOI</b>IMG16 patches, {clean}<b>EOI</b>" in plain
  assert "4<b>BOI</b>IMG9 codes<b>EOI</b><b>EOS</b>" in plain
  made = images_of(page)
  assert [x[0, 0, 0] for x in made[:3]] == [10, 11, 20]


def test_a_page_says_how_noisy_an_image_to_be_read_may_be_and_what_is_not_learned():
  capped = sequence.Image(latent(0) / 64, noise_cap=0.5)
  dropped = sequence.drop_text((text("5"), capped))
  page = page_of(packed((capped, text("3")), dropped), ("a[0]", "b[0]"), blank)
  plain = re.sub(r"<img[^>]*>", "IMG", re.sub(r"</?small[^>]*>", "", page))
  noise = "IMG16 patches, t up to 0.5 T: to be read, weight 1"
  read = '<span class="read">{}</span>'.format
  eoi = read("<b>EOI</b>")
  assert f"<b>BOI</b>{noise}{eoi}3<b>EOS</b>" in plain
  boi = read("<b>BOI</b>")
  assert f"{boi}{noise}{eoi}{read('(what follows is not learned)')}" in plain


def test_documents_that_see_each_other_are_told_apart_all_the_same():
  together = changed(ALL, data=dict(isolate_documents=False))
  row = packed((text("12"),), (text("345"),), config=together)
  assert set(row.lo_l[:7]) == {0}
  page = page_of(row, ("a[0]", "b[0]"), None)
  assert "a[0]: positions 0 to 2" in page and "b[0]: positions 3 to 6" in page


def test_the_band_is_the_mask():
  row = packed((text("12"), sequence.Image(latent(1))), (text("345"),))
  plot = row_page.band(row)
  scale = plot.shape[0] // 64
  small = plot[::scale, ::scale]
  keys = np.arange(64)
  mask = (row.lo_l[:, None] <= keys) & (keys <= row.hi_l[:, None])
  np.testing.assert_array_equal((small < 255).any(-1), mask)
  orange = (small == row_page.PATCH).all(-1).any(1)
  np.testing.assert_array_equal(orange, row.patch_l >= 0)


def test_a_page_has_its_title_and_ends_with_the_band():
  row = packed((text("12"), sequence.Image(latent(1))))
  page = page_of(row, ("a[0]",), blank)
  assert "<title>Step 3</title>" in page and "<h1>Step 3</h1>" in page
  np.testing.assert_array_equal(images_of(page)[-1], row_page.band(row))


def test_the_band_of_a_short_row_is_large_enough_to_see():
  assert row_page.BAND_PX // 2 < len(row_page.band(packed())) <= row_page.BAND_PX


def test_the_band_of_a_long_row_stays_small():
  empty = packed()
  long = empty._replace(
    lo_l=np.zeros(8192, np.int32),
    hi_l=np.arange(8192, dtype=np.int32),
    patch_l=np.full(8192, -1, np.int32),
  )
  side = len(row_page.band(long))
  assert 600 < side <= row_page.BAND_PX
