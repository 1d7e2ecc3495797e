"""Promises of tfusion/pods/timeline.py: what runs at the same time, what waits."""

import pytest

from tfusion.pods import chips
from tfusion.pods.hlo import Program
from tfusion.pods.links import Links, Place
from tfusion.pods.timeline import Cost, Timeline

CHIP = chips.CHIPS["v5e"]
MATMUL = 2.0 * 1024**3 / CHIP.flops  # seconds of %y below
# 8 devices, 7/8 of 32 MiB over one link, 7 hops.
GATHER = 32 * 2**20 * 7 / 8 / CHIP.link_rate + 7e-6
LINE = "replica_groups={{0,1,2,3,4,5,6,7}}"
X = "f32[1024,1024]{1,0:S(1)}"  # on the chip: reading it costs nothing


def run(body: str, more: str = "", kernel_seconds=lambda name: 0.0, **options) -> Cost:
  """The cost of a program whose entry has these lines, on a line of eight devices."""
  text = f"""{more}
ENTRY %main (x: f32[1024,1024], w: f32[1048576]) -> f32[1] {{
  %x = {X} parameter(0)
  %w = f32[1048576]{{0:S(1)}} parameter(1)
{body}
}}
"""
  topology = chips.Topology("v5e", (8, 1))
  places = [Place((n, 0), 0, (n,)) for n in range(8)]
  links = Links(topology, places, ["fsdp"])
  return Timeline(Program(text), CHIP, links, kernel_seconds, **options).total()


def matmul(name: str) -> str:
  return f"  %{name} = {X} convolution(%x, %x), dim_labels=bf_io->bf"


START = (
  "  %start = (f32[1048576]{0:S(1)}, f32[8388608]{0:S(1)}) all-gather-start(%w), "
  + LINE
  + ", dimensions={0}"
)
DONE = "  %done = f32[8388608]{0:S(1)} all-gather-done(%start)"


def test_a_gather_runs_beside_what_stands_between_its_start_and_its_end():
  alone = run("\n".join([START, DONE]))
  assert alone.seconds == pytest.approx(GATHER)
  beside = run("\n".join([START, matmul("y"), DONE]))
  assert beside.flops == 2 * 1024**3
  assert beside.seconds == pytest.approx(max(GATHER, MATMUL))
  key = ("all-gather", "fsdp")
  assert beside.exposed[key] == pytest.approx(GATHER - MATMUL)
  assert beside.busy[key] == pytest.approx(GATHER) and beside.count[key] == 1
  assert beside.bytes[key] == 32 * 2**20


def test_a_gather_that_is_not_split_stops_everything():
  whole = f"  %g = f32[8388608]{{0:S(1)}} all-gather(%w), {LINE}, dimensions={{0}}"
  cost = run("\n".join([whole, matmul("y")]))
  assert cost.seconds == pytest.approx(GATHER + MATMUL)
  assert cost.exposed["all-gather", "fsdp"] == pytest.approx(GATHER)


def test_collectives_take_turns_on_the_links():
  second = START.replace("%start", "%again")
  done = DONE.replace("%start", "%again").replace("%done", "%last")
  cost = run("\n".join([START, second, DONE, done]))
  assert cost.seconds == pytest.approx(2 * GATHER)


SCATTER = """
%all-reduce-scatter (p: f32[8388608]) -> f32[1048576] {
  %p = f32[8388608]{0} parameter(0)
  %r = f32[8388608]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %ds = f32[1048576]{0} dynamic-slice(%r, %r), dynamic_slice_sizes={1048576}
}
"""


def test_an_all_reduce_that_keeps_a_shard_is_a_reduce_scatter():
  body = """  %big = f32[8388608]{0:S(1)} broadcast(%w)
  %s = f32[1048576]{0:S(1)} fusion(%big), kind=kCustom, calls=%all-reduce-scatter"""
  cost = run(body, SCATTER)
  assert set(cost.count) == {("reduce-scatter", "fsdp")}
  assert cost.seconds == pytest.approx(GATHER)  # as many bytes, once around


OFFLOADED = """
%scatter (p: f32[8388608]) -> f32[1048576] {
  %p = f32[8388608]{0} parameter(0)
  ROOT %r = f32[1048576]{0} reduce-scatter(%p), replica_groups={{0,1,2,3,4,5,6,7}}
}
"""


def test_what_another_engine_runs_is_hidden_behind_a_matmul():
  body = f"""  %big = f32[8388608]{{0:S(1)}} broadcast(%w)
  %s = ((f32[8388608]{{0}}), f32[1048576]{{0}}) call-start(%big), to_apply=%scatter
{matmul("y")}
  %d = f32[1048576]{{0:S(1)}} call-done(%s)"""
  cost = run(body, OFFLOADED)
  assert cost.seconds == pytest.approx(max(MATMUL, GATHER))
  assert set(cost.exposed) == {("reduce-scatter", "fsdp")}


LOOP = """
%cond (c: s32[]) -> pred[] {
  %c = s32[]{:T(128)} parameter(0)
  %bound = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%c, %bound), direction=LT
}

%body (x: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024]{1,0:S(1)} parameter(0)
  ROOT %y = f32[1024,1024]{1,0:S(1)} convolution(%x, %x), dim_labels=bf_io->bf
}
"""


def test_a_loop_takes_its_body_as_often_as_it_runs():
  cost = run(f"  %l = {X} while(%x), condition=%cond, body=%body", LOOP)
  assert cost.seconds == pytest.approx(6 * MATMUL) and cost.flops == 6 * 2 * 1024**3


def test_a_loop_that_data_end_runs_as_often_as_is_said():
  body = f"  %l = {X} while(%x), condition=%cond, body=%body"
  by_data = LOOP.replace("constant(6)", "copy(%c)")
  cost = run(body, by_data, open_trips=2)
  assert cost.seconds == pytest.approx(2 * MATMUL)
  with pytest.raises(ValueError, match="the loop l has no constant bound"):
    run(body, by_data)


def test_an_operation_takes_its_bytes_or_its_cycles_where_these_are_more():
  moved = run("  %c = f32[100000000]{0:T(128)} broadcast(%w)")
  assert moved.seconds == pytest.approx(4e8 / CHIP.hbm_rate)
  said = 'backend_config={"estimated_cycles":"1500000"}'
  counted = run(f"  %c = f32[8]{{0:S(1)}} broadcast(%w), {said}")
  assert counted.seconds == pytest.approx(1e-3)  # at 1.5 GHz


def test_a_kernel_of_ours_takes_the_seconds_that_it_is_given():
  body = '  %attend_forward.3 = f32[8]{0:S(1)} custom-call(%w), \
custom_call_target="tpu_custom_call"'
  cost = run(body, kernel_seconds={"attend_forward.3": 0.5}.get)
  assert cost.seconds == cost.kernels == 0.5


def test_what_a_gather_passes_through_on_its_way_is_looked_at_once():
  """Each fusion is handed both results of the one before: of 60, by 2^60 ways."""
  pair, fused = f"({X}, {X})", "%async_collective_fusion.1"
  steps = [f"  %f0 = {pair} fusion(%x, %start), kind=kLoop, calls={fused}"]
  for n in range(60):
    steps += [
      f"  %a{n} = {X} get-tuple-element(%f{n}), index=0",
      f"  %b{n} = {X} get-tuple-element(%f{n}), index=1",
      f"  %f{n + 1} = {pair} fusion(%a{n}, %b{n}), kind=kLoop, calls={fused}",
    ]
  end = "  ROOT %done = f32[8388608]{0} all-gather-done(%f60)"
  found = run("\n".join([START, *steps, end]))
  assert found.seconds == pytest.approx(GATHER)
  assert sum(found.exposed.values()) == pytest.approx(GATHER)
