"""Promises of tfusion/pods/hlo.py: what a line of a compiled program says."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tfusion.pods.hlo import Program

TEXT = """HloModule jit_f, is_scheduled=true

%fused (p0: f32[4,64,32], p1: s32[]) -> bf16[64,32] {
  %p0 = f32[4,64,32]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %ds = f32[1,64,32]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, %zero), \
dynamic_slice_sizes={1,64,32}
  %bitcast.1 = f32[64,32]{1,0:T(8,128)} bitcast(%ds)
  ROOT %convert = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} convert(%bitcast.1)
}

%cond (c: (s32[], f32[8,64])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[8,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %bound = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (b: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %b = (s32[]{:T(128)}, f32[8,64]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%b), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i.1, %two)
  %x = f32[8,64]{1,0} get-tuple-element(%b), index=1
  ROOT %both = (s32[]{:T(128)}, /*index=1*/f32[8,64]{1,0}) tuple(%next, %x)
}

ENTRY %main (w: f32[4,64,32], n: s32[], s: (s32[], f32[8,64])) -> f32[8,32] {
  %w = f32[4,64,32]{2,1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %s = (s32[]{:T(128)}, f32[8,64]{1,0}) parameter(2)
  %loop = (s32[]{:T(128)}, f32[8,64]{1,0}) while(%s), condition=%cond, body=%body
  %x.1 = f32[8,64]{1,0} get-tuple-element(%loop), index=1
  %slice = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %n), kind=kLoop, calls=%fused,\
 backend_config={"window_config":{"estimated_cycles":"1234"}}
  ROOT %y = f32[8,32]{1,0} convolution(%x.1, %slice), dim_labels=bf_io->bf
}
"""


def test_shapes_cycles_and_bytes_of_each_line_are_read():
  program = Program(TEXT)
  assert program.entry == "main"
  lines = {o.name: o for o in program.computations["main"]}
  assert lines["slice"].cycles == 1234 and lines["y"].cycles == 0
  assert lines["y"].shapes[0].dims == (8, 32) and lines["y"].is_root
  assert not lines["slice"].shapes[0].in_hbm  # S(1) is a memory on the chip
  # It reads one slice of four, 8,192 bytes, and a counter; it writes nothing to HBM.
  assert program.hbm_bytes("main", lines["slice"]) == 64 * 32 * 4 + 4
  assert program.flops_of("main", lines["y"]) == 2 * 8 * 64 * 32
  assert lines["slice"].attribute("calls") == "fused"


def test_a_loop_runs_until_its_bound_in_steps_of_what_it_adds():
  program = Program(TEXT)
  (loop,) = (o for o in program.computations["main"] if o.kind == "while")
  assert program.trips(loop) == 4  # 0, 2, 4, 6
  by_one = Program(TEXT.replace("constant(2)", "constant(1)"))
  assert by_one.trips(loop) == 8
  by_data = Program(TEXT.replace("constant(8)", "copy(%bound)"))
  assert by_data.trips(loop) is None


def test_a_text_without_an_entry_is_no_program():
  with pytest.raises(ValueError, match="no entry"):
    Program("HloModule nothing\n")


@pytest.mark.parametrize(
  "window, in_size, out_size, meetings",
  [
    ("", 1, 1, 1),
    ("window={size=3 pad=1_1}", 5, 5, 13),  # two of the taps hang over the ends
    ("window={size=16 pad=15_15 rhs_reversal=1}", 1, 16, 16),  # a matmul in disguise
    ("window={size=2 stride=2}", 6, 3, 6),
    ("window={size=1 lhs_dilate=2}", 3, 5, 3),
  ],
)
def test_a_convolution_counts_what_meets_numbers(window, in_size, out_size, meetings):
  size = window.partition("size=")[2][:2].strip(" }") or "1"
  text = f"""ENTRY %main (a: f32[7,{in_size},5], b: f32[{size},5,11]) -> f32[1] {{
  %a = f32[7,{in_size},5]{{2,1,0}} parameter(0)
  %b = f32[{size},5,11]{{2,1,0}} parameter(1)
  ROOT %y = f32[7,{out_size},11]{{2,1,0}} convolution(%a, %b), {window}, \
dim_labels=b0f_0io->b0f
}}
"""
  program = Program(text)
  (y,) = (o for o in program.computations["main"] if o.kind == "convolution")
  assert program.flops_of("main", y) == 2 * 7 * 11 * 5 * meetings


GROUPED = """HloModule jit_g, is_scheduled=true

ENTRY %main (n: s32[1], x: bf16[96,8], w: bf16[2,8,5], g: bf16[96,5]) -> f32[2,8,5] {
  %n = s32[1]{0} parameter(0)
  %x = bf16[96,8]{1,0} parameter(1)
  %w = bf16[2,8,5]{2,1,0} parameter(2)
  %g = bf16[96,5]{1,0} parameter(3)
  %ragged-dot-none.3 = bf16[96,5]{1,0} custom-call(%n, %x, %w), \
custom_call_target="tpu_custom_call"
  %attend_forward.1 = bf16[96,5]{1,0} custom-call(%n, %x, %w), \
custom_call_target="tpu_custom_call"
  ROOT %tgmm.2 = f32[2,8,5]{2,1,0} custom-call(%n, %x, %g), \
custom_call_target="tpu_custom_call"
}
"""


def test_of_a_grouped_matmul_each_row_meets_one_weight():
  program = Program(GROUPED)
  flops = {o.name: program.flops_of("main", o) for o in program.computations["main"]}
  assert flops["ragged-dot-none.3"] == flops["tgmm.2"] == 2 * 96 * 8 * 5
  assert flops["attend_forward.1"] == 0  # whose time is known otherwise


def test_the_operations_of_a_program_that_runs_here_are_those_of_its_matmuls():
  def layer(x, w):
    return jnp.tanh(x @ w), None

  @jax.jit
  def run(x, ws):
    return jax.lax.scan(layer, x, ws)[0]

  x, ws = jnp.ones((16, 32)), jnp.ones((5, 32, 32))
  program = Program(run.lower(x, ws).compile().as_text())

  @functools.cache
  def flops(computation: str) -> float:
    total = 0.0
    for operation in program.computations[computation]:
      if operation.kind == "while":
        total += flops(operation.attribute("body")) * program.trips(operation)
      else:
        total += program.flops_of(computation, operation)
    return total

  calls = [o for own in program.computations.values() for o in own]
  if any("matmul" in o.target for o in calls):
    pytest.skip("this CPU's matmuls are calls to a library, which hides their sizes")
  assert flops(program.entry) == 5 * 2 * 16 * 32 * 32
