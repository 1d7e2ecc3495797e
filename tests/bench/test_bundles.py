"""Promises of tfusion/bench/bundles.py, on instructions written by hand."""

import pytest

from tfusion.bench import bundles

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


def find(text: str, tile: bundles.Tile = TILE) -> dict[str, bundles.Body]:
  return bundles.find_bodies(bundles.read_pieces(text), tile, V5E)


@pytest.mark.parametrize("masked_first", [False, True])
def test_the_masked_body_is_the_one_with_more_selects(masked_first):
  pieces = [body(empty=10), body(masks=40)]
  first, second = reversed(pieces) if masked_first else pieces
  found = find(program(BRANCH, *first, FALL, BRANCH, *second, FALL))
  assert found["full"].mask_ops == 0 and found["masked"].mask_ops == 40
  assert (found["full"].bundles, found["masked"].bundles) == (42, 72)
  assert found["full"].vmatmuls == found["masked"].vmatmuls == 32
  # 32 vmatmuls bring 16 rows each to one of 4 MXUs.
  assert found["full"].mxu_cycles == 128 == found["full"].cycles


def test_a_body_takes_its_bundles_where_the_mxus_wait():
  found = find(program(BRANCH, *body(empty=200), FALL, BRANCH, *body(masks=300), FALL))
  assert found["full"].cycles == 232 and found["masked"].cycles == 332


def test_a_kernel_that_masks_every_tile_has_one_body_and_it_is_masked():
  assert set(find(program(BRANCH, *body(masks=40), FALL))) == {"masked"}
  assert set(find(program(BRANCH, *body(), FALL))) == {"full"}


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
  found = find(program(BRANCH, *head, *turn, back, *body(matmuls=0, empty=5), FALL))
  full = found["full"]
  assert full.trips == 4 and full.vmatmuls == 8 + 4 * 6
  # Before the loop, four turns with the branch, after it.
  assert full.bundles == 9 + 4 * 10 + 5


@pytest.mark.parametrize(
  "matmuls, match", [(31, "the tile needs 128"), (33, "the tile needs 128")]
)
def test_other_matmuls_than_those_of_the_tile_are_an_error(matmuls, match):
  with pytest.raises(ValueError, match=match):
    find(program(BRANCH, *body(matmuls=matmuls), FALL))


def test_bodies_that_their_masks_do_not_tell_apart_are_an_error():
  text = program(BRANCH, *body(masks=3), FALL, BRANCH, *body(masks=12), FALL)
  with pytest.raises(ValueError, match="12 comparisons.* another has 3: .* 32 more"):
    find(text)


def test_full_bodies_may_select_for_reasons_of_their_own():
  text = program(BRANCH, *body(masks=72), FALL, BRANCH, *body(masks=40), FALL)
  found = find(text)
  assert found["full"].mask_ops == 40 and found["masked"].mask_ops == 72


def test_of_several_bodies_of_a_kind_the_longest_counts():
  kinds = [body(empty=1), body(masks=40), body(empty=7), body(masks=44)]
  found = find(program(*[line for kind in kinds for line in (BRANCH, *kind, FALL)]))
  assert found["full"].bundles == 39 and found["masked"].bundles == 76


def test_a_kernel_without_matmuls_is_an_error():
  with pytest.raises(ValueError, match="nothing multiplies"):
    find(program(BRANCH, *body(matmuls=0, empty=9), FALL))


def test_a_matmul_of_unknown_rows_is_an_error():
  text = program(BRANCH, bundle("%1 = vmatmul.s8.gmra.mxu0 %v1"), FALL)
  with pytest.raises(ValueError, match="vmatmul.s8"):
    find(text)


def test_a_text_without_bundles_is_an_error():
  with pytest.raises(ValueError, match="changed its format"):
    bundles.read_pieces("something else\n")


def test_a_short_head_dim_leaves_part_of_an_mxu_unused():
  short = bundles.Tile(TILE.flops // 2, TILE.scores, padding=2.0)
  assert find(program(BRANCH, *body(), FALL), short)["full"].vmatmuls == 32


@pytest.mark.parametrize(
  "name, ghz, tflops",
  [("v5e", 1.5, 197), ("v5p", 1.75, 459 / 2), ("v6e", 1.75, 918), ("tpu7x", 2.2, 1153)],
)
def test_peaks_are_those_of_the_documentation(name, ghz, tflops):
  peak = bundles.GENERATIONS[name].flops_per_cycle * ghz / 1e3
  assert peak == pytest.approx(tflops, rel=0.01)
