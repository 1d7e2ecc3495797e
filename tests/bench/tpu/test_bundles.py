"""Promises of tfusion/bench/tpu/bundles.py, on instructions written by hand."""

import pytest

from tfusion.bench.tpu import bundles

V5E = bundles.GENERATIONS["v5e"]
ROWS, KEYS, DIM = 256, 128, 128
# Two matmuls of 256 rows with a 128 x 128 operand: 2 * 256 rows on 4 MXUs.
TILE = bundles.Tile(flops=2 * 2 * ROWS * KEYS * DIM, scores=ROWS * KEYS)
MATMUL = "%{n} = vmatmul.bf16.gmra.mxu0 %v1_v2"
MASK = "%v{n}_v3 = vsel %vm1_vm1, %v1_v1, 0.0"


def bundle(*instructions: str, label: str = "", loops: str = ">") -> str:
  """One line of a dump, without its address."""
  code = "  ;;  ".join(instructions)
  return f"{label:>2}: {loops} {{ {code} }}"


def program(*lines: str) -> str:
  """A dump: some other work, these lines, the end."""
  lines = [bundle("%s1 = smov 0", loops=""), *lines, bundle("%9 = vsyncpa [#a], 1")]
  numbered = [f"{hex(i):>6} {line}" for i, line in enumerate(lines)]
  return "= control target key start\nLB: loop body\n\n" + "\n".join(numbered)


def body(*, matmuls: int = 32, masks: int = 0, empty: int = 0) -> list[str]:
  """A straight piece that ends where its `if` ends."""
  lines = [bundle(MATMUL.format(n=i)) for i in range(matmuls)]
  lines += [bundle(MASK.format(n=i), "%5 = vst [vmem:%s1] %v1") for i in range(masks)]
  lines += [bundle() for _ in range(empty)]
  return lines


BRANCH = bundle("%7 = sbr.rel (%p1_p0) target = $region7")
FALL = bundle("%p2_p1 = scmp.ne.s32.totalorder %s1, 0", label="PF")


def find(text: str, *kinds: str, rare: int = 0, **tiles) -> dict[str, bundles.Body]:
  tiles = dict.fromkeys(kinds, TILE) | tiles
  return bundles.find_bodies(bundles.read_pieces(text), tiles, V5E, rare=rare)


def branches(*bodies: list[str]) -> str:
  """A program that goes into some of these."""
  return program(*[line for lines in bodies for line in (BRANCH, *lines, FALL)])


@pytest.mark.parametrize("masked_first", [False, True])
def test_the_masked_body_is_the_one_with_more_selects(masked_first):
  pieces = [body(empty=10), body(masks=40)]
  found = find(branches(*pieces[:: -1 if masked_first else 1]), "full", "masked")
  assert found["full"].mask_ops == 0 and found["masked"].mask_ops == 40
  assert (found["full"].bundles, found["masked"].bundles) == (42, 72)
  assert found["full"].vmatmuls == found["masked"].vmatmuls == 32
  # 32 vmatmuls bring 16 rows each to one of 4 MXUs.
  assert found["full"].mxu_cycles == 128 == found["full"].cycles


def test_a_body_takes_its_bundles_where_the_mxus_wait():
  found = find(branches(body(empty=200), body(masks=300)), "full", "masked")
  assert found["full"].cycles == 232 and found["masked"].cycles == 332


def test_tiles_of_two_sizes_are_told_apart_by_their_matmuls():
  half = bundles.Tile(TILE.flops // 2, TILE.scores // 2)
  found = find(branches(body(matmuls=16, masks=20), body()), full=TILE, masked=half)
  assert found["full"].vmatmuls == 32 and found["masked"].vmatmuls == 16


def test_a_body_for_what_seldom_happens_is_left_out():
  for seldom in (body(masks=90), body(matmuls=40, masks=1)):
    text = branches(seldom, body(masks=50), body())
    found = find(text, "full", "masked", rare=1)
    assert found["full"].mask_ops == 0 and found["masked"].mask_ops == 50
    with pytest.raises(ValueError, match="3 bodies with matmuls, .* expected 2"):
      find(text, "full", "masked")


def test_a_loop_in_a_body_is_run_as_often_as_the_matmuls_need():
  head = body(matmuls=8, empty=1)
  turn = body(matmuls=6, empty=3)
  turn[0] = bundle(
    MATMUL.format(n=0) + " /* Start region 3 :: Start region 4 */",
    label="LB",
    loops=">>",
  )
  turn[1:] = [line.replace(": >", ": >>", 1) for line in turn[1:]]
  back = bundle("%8 = sbr.rel (!%p1_p0) target = $region3", loops=">>")
  full = find(branches([*head, *turn, back, *body(matmuls=0, empty=5)]), "full")["full"]
  assert full.trips == 4 and full.vmatmuls == 8 + 4 * 6
  # Before the loop, four turns with the branch, after it.
  assert full.bundles == 9 + 4 * 10 + 5


@pytest.mark.parametrize("matmuls", [31, 33])
def test_other_matmuls_than_those_of_the_tile_are_an_error(matmuls):
  with pytest.raises(ValueError, match="needs the MXUs for 128 cycles; no body does"):
    find(branches(body(matmuls=matmuls)), "full")


@pytest.mark.parametrize("masks", [(3, 12), (3, 3), (40, 71)])
def test_bodies_that_their_masks_do_not_tell_apart_are_an_error(masks):
  with pytest.raises(ValueError, match="a vector of scores, and the full one"):
    find(branches(*(body(masks=n) for n in masks)), "full", "masked")


def test_a_masked_body_without_a_mask_is_an_error():
  with pytest.raises(ValueError, match="has 0.97 comparisons and selects a vector"):
    find(branches(body(masks=31)), "masked")


def test_two_bodies_that_could_both_be_the_masked_one_are_an_error():
  with pytest.raises(ValueError, match="several bodies have 50"):
    find(branches(body(), body(masks=50), body(masks=50)), "full", "masked", rare=1)


def test_full_bodies_may_select_for_reasons_of_their_own():
  found = find(branches(body(masks=72), body(masks=40)), "full", "masked")
  assert found["full"].mask_ops == 40 and found["masked"].mask_ops == 72


def test_a_kernel_without_matmuls_is_an_error():
  with pytest.raises(ValueError, match="0 bodies with matmuls"):
    find(branches(body(matmuls=0, empty=9)), "full")


def test_a_matmul_of_unknown_rows_is_an_error():
  with pytest.raises(ValueError, match="vmatmul.s8"):
    find(branches([bundle("%1 = vmatmul.s8.gmra.mxu0 %v1")]), "full")


def test_a_text_without_bundles_is_an_error():
  with pytest.raises(ValueError, match="changed its format"):
    bundles.read_pieces("something else\n")


def test_a_short_head_dim_leaves_part_of_an_mxu_unused():
  short = bundles.Tile(TILE.flops // 2, TILE.scores, padding=2.0)
  assert find(branches(body()), full=short)["full"].vmatmuls == 32


@pytest.mark.parametrize(
  "name, ghz, tflops",
  [("v5e", 1.5, 197), ("v5p", 1.75, 459 / 2), ("v6e", 1.75, 918), ("tpu7x", 2.2, 1153)],
)
def test_peaks_are_those_of_the_documentation(name, ghz, tflops):
  peak = bundles.GENERATIONS[name].flops_per_cycle * ghz / 1e3
  assert peak == pytest.approx(tflops, rel=0.01)
