"""Where a suite stands, from files alone."""

import re

import pytest
from tiny_ablations import put, put_searches

from tfusion.ablations import ablate, board, code, pages, results, suites, tables
from tfusion.ablations.board import Place

OTHER = "0123456789ab"  # a version of the code
SUITE = suites.TABLE8
NO_LIMIT, LIMIT = SUITE.arms


@pytest.fixture
def place(tmp_path):
  found = Place("tiny", 2, tmp_path / "runs", tmp_path / "out" / results.ROOM)
  found.results.mkdir(parents=True)
  return found


def fill(place, arm, values, version="", *, best=1.0, metric="scenes_cider"):
  put_searches(place, arm, version, best=best)
  for seed, value in enumerate(values):
    spec = board.spec_of(place, arm, seed, version)
    put(place, spec, version, **{metric: value})


def test_of_nothing_nothing_is_known(place):
  found = board.gather(place, SUITE)
  assert (found.done, found.wanted, found.stale) == (0, 4, 0)
  assert all(found.difference(claim) is None for claim in SUITE.claims)
  assert found.standings[0].rate is None


def test_the_rate_with_the_least_held_out_loss_is_taken(place):
  put_searches(place, LIMIT, best=2.0)
  assert board.rate_of(place, LIMIT) == 2.0
  spec = board.spec_of(place, LIMIT, 1)
  written = place.spec(LIMIT, 1).config().optim.peak_lr
  assert spec.config().optim.peak_lr == pytest.approx(2 * written)


def test_a_rate_is_not_known_before_every_try_is_done(place):
  for spec in board.searches(place, LIMIT)[1:]:
    put(place, spec)
  assert board.rate_of(place, LIMIT) is None
  assert board.spec_of(place, LIMIT, 0) is None
  assert board.rate_of(place._replace(search=False), LIMIT) == 1.0


def test_arms_are_compared_over_the_seeds_that_both_have(place):
  fill(place, NO_LIMIT, [10.0, 20.0])
  fill(place, LIMIT, [13.0])
  found = board.gather(place, SUITE)
  difference = found.difference(SUITE.claims[0])
  assert (difference.mean, difference.seeds) == (3.0, 1)
  assert (found.done, found.wanted) == (3, 4)


def test_runs_of_other_code_are_counted_as_stale_and_never_mixed_in(place):
  fill(place, NO_LIMIT, [10.0, 20.0], OTHER)
  fill(place, LIMIT, [30.0, 40.0], OTHER)
  fill(place, LIMIT, [13.0])
  found = board.gather(place, SUITE)
  assert found.version == code.version() and not found.is_stale
  assert found.standing("no limit").values("scenes_cider") == {}
  assert found.standing("t up to 500").values("scenes_cider") == {0: 13.0}
  assert (found.done, found.stale) == (1, 3)
  assert "3 more were done by other code: stale" in tables.ours(found).sentence


def test_where_all_is_stale_it_is_shown_and_said(place):
  fill(place, NO_LIMIT, [10.0, 20.0], OTHER)
  found = board.gather(place, SUITE)
  assert found.is_stale and found.version == OTHER and found.done == 2
  assert f"All by code {OTHER}, which is not today's" in tables.ours(found).sentence


def test_a_run_that_failed_says_why(place):
  put_searches(place, LIMIT)
  spec = board.spec_of(place, LIMIT, 1)
  workdir = place.workdir(spec)
  workdir.mkdir(parents=True)
  (workdir / board.FAILED).write_text("status 1\nno memory\n")
  found = board.gather(place, SUITE)
  assert [seat.failed for seat in found.standing("t up to 500").seats] == [
    "",
    "status 1\nno memory",
  ]
  assert "1 failed" in tables.ours(found).rows[1][-1]
  text = tables.markdown(found, command="tfusion ablate table8")
  assert "t up to 500, seed 1 failed:" in text and "no memory" in text


def test_the_parity_ratio_of_power_laws_is_exact(place):
  suite = suites.TABLE3
  # value = flops ** -0.5 for ours, and twice that for theirs, which needs 4 x as many.
  for arm, flops in zip(suite.arms, [1e12, 4e12, 16e12] * 2, strict=True):
    put_searches(place, arm)
    factor = 1.0 if arm.name.startswith("Transfusion") else 2.0
    for seed in range(2):
      spec = board.spec_of(place, arm, seed)
      put(place, spec, flops=flops, text_perplexity=factor * (flops / 1e12) ** -0.5)
  found = board.gather(place, suite).parity("text_perplexity")
  assert found.value == pytest.approx(0.25)
  assert found.low == pytest.approx(0.25) and found.high == pytest.approx(0.25)


def test_the_tables_are_ours_the_claims_and_the_papers(place):
  fill(place, NO_LIMIT, [10.0, 20.0])
  fill(place, LIMIT, [13.0, 23.0])
  found = board.gather(place, SUITE)
  ours, claims, theirs = tables.of(found)
  assert ours.rows[0][:2] == ["no limit", "15 +- 7.1"]
  assert ours.rows[1][0] == "t up to 500" and ours.rows[1][-2:] == ["x1", "2"]
  assert claims.rows[0][-4:] == ["3", "3 to 3", "2 of 2", "holds"]
  assert claims.rows[1][-1] == "not known yet"
  assert theirs.rows[1] == "0.76B 500 10.3 5.9 52.1 29.4 16.5 25.4".split()


@pytest.mark.slow
def test_a_page_shows_all_of_it(place):
  fill(place, NO_LIMIT, [10.0, 20.0])
  fill(place, LIMIT, [13.0, 23.0])
  found = board.gather(place, SUITE)
  html, text = pages.write(place, found, place.results.parent, command="tfusion x")
  shown = html.read_text()
  assert "holds" in shown and "15 +- 7.1" in shown and "<svg" not in shown
  assert "error" not in re.sub(r"data:\S+|standard error|mean squared error", "", shown)
  assert "    tfusion x" in text.read_text()
  assert "Commit abc1234" in text.read_text()


def test_pages_alone_are_refused_where_nothing_is_done(tmp_path):
  with pytest.raises(ValueError, match="holds no run of table8 at --scale=tiny"):
    ablate.ablate("table8", folder=tmp_path / "r", out=tmp_path / "o", show=True)


@pytest.mark.parametrize(
  "more,said",
  [
    ({"seeds": 0}, "--seeds=0: give a number from 1 to 20"),
    ({"scale": "huge"}, "--scale=huge: choose one of tiny, small, smoke, full"),
    ({"devices": "cuda:0"}, "--devices=cuda:0: 'cuda:0' is none; write gpu:0"),
    ({"devices": "gpu:0,gpu:0"}, "named twice"),
    ({"folder": "a,b"}, "a,b: has a comma or a colon"),
    ({"experiment": "none.py"}, "there is no file none.py"),
  ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, more, said):
  where = {"folder": tmp_path / "r", "out": tmp_path / "o"} | more
  with pytest.raises(ValueError, match=re.escape(said)):
    ablate.ablate("table8", **where)
  assert not (tmp_path / "r").exists()


def test_a_damaged_result_is_named(place):
  put_searches(place, LIMIT)
  path = next(place.results.glob("*.json"))
  path.write_text("{")
  with pytest.raises(ValueError, match=path.name):
    board.gather(place, SUITE)
