"""Promises of tfusion/pods: the real step, compiled for TPUs that are not here."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from tiny import config as tiny_config

from tfusion import cli, paper
from tfusion.bench.tpu import aot
from tfusion.config import Config, MeshConfig
from tfusion.config_file import read_config
from tfusion.pods import chips, kernels, pages, search, study, worker

libtpu = pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
GRADIENTS = (
  0.05  # of the bytes of gradients: norms, biases and metrics are summed whole
)

WHOLE = 1 << 16  # bytes, at most, of parameters that are not cut


def small(*, rows: int = 64, **mesh) -> Config:
  """Layers as wide as those of a real model, but two of them, and rows of a batch."""
  base = Config()
  return dataclasses.replace(
    base,
    model=dataclasses.replace(
      base.model,
      layers=2,
      width=2048,
      heads=16,
      kv_heads=16,
      mlp=5632,
      vocab_size=4096,
      image_shape=(32, 32, 8),
      remat="dots",
    ),
    data=dataclasses.replace(base.data, row_length=1024, image_slots=3, lanes=1),
    mesh=MeshConfig(**mesh),
    train=dataclasses.replace(base.train, batch_rows=rows),
  )


@pytest.fixture
def no_kernels(monkeypatch):
  """The time of the attention kernels is another test's."""
  monkeypatch.setattr(kernels, "times", lambda *_: kernels.Times({}))


@libtpu
@pytest.mark.libtpu
@pytest.mark.long
@pytest.mark.parametrize(
  "name",
  [
    *("v5p:2x2x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8"),
    *("v5e:16x16", "v5p:4x8x8", "v6e:16x16"),
  ],
)
def test_weights_are_gathered_and_gradients_scattered_and_none_is_summed_whole(
  name, no_kernels
):
  topology = chips.parse(name)
  rows = max(64, topology.devices)
  found = study.study(small(rows=rows, data=1, fsdp=-1), topology)
  assert found.fits and not found.compiled.error
  moved: dict[str, float] = {}
  for key, size in found.compiled.cost["bytes"].items():
    kind = key.partition(" ")[0]
    moved[kind] = moved.get(kind, 0) + size
  assert moved["all-reduce"] < GRADIENTS * moved["reduce-scatter"], moved
  # Every weight forward and backward, in bfloat16; every gradient once, in float32; the
  # embedding is looked up where it lies.
  table = found.config.model.vocab_size * found.config.model.width
  matrices = found.parameters - table
  assert moved["reduce-scatter"] == pytest.approx(4 * matrices, rel=0.25)
  assert moved["all-gather"] == pytest.approx(2 * 2 * matrices, rel=0.25)
  # Seven weights of a layer, forward and backward. Scatters of a v5e may be joined.
  layer = found.compiled.layer["count"]
  assert layer["all-gather fsdp_inner"] == layer["all-gather fsdp_outer"] == 14
  v5e = name.startswith("v5e")
  assert layer["reduce-scatter fsdp_outer"] == (5 if v5e else 7)
  assert layer["reduce-scatter fsdp_inner"] == (1 if v5e else 7)
  assert layer["all-reduce fsdp_outer+fsdp_inner"] == 1  # of the scales of norms
  # A shard of the state and no more, but for the scales of norms and biases, which all
  # chips have.
  sizes, share = found.compiled.arguments, found.parameters / topology.devices
  assert 4 * share <= sizes["parameters"] < 4 * share + WHOLE
  assert 8 * share <= sizes["optimizer"] < 8 * share + 2 * WHOLE
  # The matmuls are the model's: forward, backward, and no more than that again.
  own = found.compiled.cost["flops"] * topology.devices
  assert 0.9 < own / found.counts.exact < 1.4
  # Sparse cores scatter beside the matmuls, of which a v6e has too few here: one row of
  # 1,024 positions on each chip. A v5e scatters in steps beside some of them.
  if share := {"v5p": 0.5, "v5e": 0.8}.get(topology.generation):
    key = "reduce-scatter fsdp_outer"
    assert found.exposed[key] < share * found.compiled.cost["busy"][key]


@pytest.mark.long
@libtpu
@pytest.mark.libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_said_with_what_to_change(tmp_path, capsys, no_kernels):
  # 7B on four chips of a v5e.
  config = ["--config", "experiments/paper.py:size=7b", "--topology", "v5e:2x2"]
  rest = ["--config.train.batch_rows=64", "--json", str(tmp_path / "out.json")]
  assert cli.main(["compile", *config, *rest]) == 2
  said = capsys.readouterr().out
  assert "does not fit. Try --config.train.accumulate=2" in said
  assert "--config.model.remat=full" in said and "a larger topology" in said
  assert re.search(r"parameters 6\.\d\d, optimizer 12\.\d\d", said)
  written = json.loads((tmp_path / "out.json").read_text())
  assert written["fits"] is False and written["error"]


def test_kernels_take_their_live_tiles_at_the_share_that_their_instructions_allow(
  monkeypatch,
):
  config = read_config("experiments/paper.py:size=7b", [])
  topology = chips.parse("v5p-128")
  counted = study.counts_lib.count(config)
  shares = {"forward": {"full": 0.8, "masked": 0.5}}
  shares |= {"backward": {"full": 1.0, "masked": 1.0}}
  monkeypatch.setattr(kernels, "_shares", lambda *_: (shares, ""))
  found = kernels.times(config, topology, counted).seconds
  tile = 2.0 * 512**2 * 128 * 32 * 8 / topology.chip.flops  # 8 rows of 32 heads
  forward = counted.full_tiles / 0.8 + counted.masked_tiles / 0.5
  assert found["attend_forward"] == pytest.approx(2 * tile * forward)
  tiles = counted.full_tiles + counted.masked_tiles
  assert found["attend_backward"] == pytest.approx(5 * tile * tiles)
  assert kernels.times(config, chips.parse("h100:64"), counted).seconds == {}
  # A fourth of the row in three calls: with its own keys, those ahead, those behind.
  ring = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=16, context=4))
  on_ring = kernels.times(ring, topology, counted).seconds["attend_backward"]
  assert on_ring == pytest.approx(4 * found["attend_backward"] / 4 / 3)


def test_kernels_whose_instructions_cannot_be_counted_are_taken_at_the_peak(
  monkeypatch,
):
  found = study.kernels.static.Pass("no body does that", {}, {}, 0)
  passes = dict.fromkeys(("forward", "backward"), found)
  monkeypatch.setattr(kernels.static, "measure", lambda *_: passes)
  config = tiny_config()
  config = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=4))
  counted = study.counts_lib.count(config)
  times = kernels.times(config, chips.parse("v5e:2x2"), counted)
  assert "at the peak" in times.note and "no body does that" in times.note
  assert times.seconds["attend_forward"] > 0
  kernels._shares.cache_clear()


@libtpu
@pytest.mark.libtpu
@pytest.mark.long
def test_the_sampler_is_compiled_with_its_cache(no_kernels):
  config = small(data=1, fsdp=2, tensor=2)
  config = dataclasses.replace(
    config,
    sample=dataclasses.replace(config.sample, steps=10, max_elements=1024),
    eval=dataclasses.replace(config.eval, batch=8),
  )
  found = study.study(config, chips.parse("v5e:2x2"), program="sampler")
  assert found.fits and found.seconds > 0
  sizes = found.compiled.arguments
  assert set(sizes) == {"parameters", "cache"}
  # Keys and values in bfloat16: rows over fsdp, heads over tensor.
  assert sizes["cache"] == 2 * 2 * config.model.layers * 8 * 1024 * 2048 // 4
  lines = "\n".join(pages.lines(found))
  assert "8 images in 10 steps of denoising" in lines and "for the images" in lines


@pytest.mark.slow
@libtpu
@pytest.mark.libtpu
def test_a_topology_that_the_compiler_does_not_know_is_refused(no_kernels):
  config = dataclasses.replace(small(data=-1), train=Config().train)
  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, batch_rows=60)
  )
  with pytest.raises(
    ValueError, match="--topology=v5p:3x5x1: the compiler for TPUs kno"
  ):
    study.study(config, chips.parse("v5p:3x5x1"))


@pytest.mark.parametrize(
  "mesh, says",
  [
    (dict(data=3), "does not fit 64 devices"),
    (dict(fsdp=5, data=1), "does not fit 64 devices"),
    (dict(data=1, fsdp=-1, tensor=128), "does not fit 64 devices"),
  ],
)
def test_a_mesh_that_does_not_divide_is_refused_before_any_work(
  mesh, says, monkeypatch
):
  monkeypatch.setattr(worker, "compile_for", pytest.fail)
  with pytest.raises(ValueError, match=says):
    study.study(small(**mesh), chips.parse("v5p-128"))


def test_slices_lie_along_data_alone(monkeypatch):
  monkeypatch.setattr(worker, "compile_for", pytest.fail)
  with pytest.raises(ValueError, match=r"mesh.data=1: must divide by the 2 slices"):
    study.study(small(data=1, fsdp=-1), chips.parse("v5e:4x8", slices=2))


@pytest.mark.long
@pytest.mark.slow
def test_gpus_are_estimated_by_the_compiler_for_cpus(monkeypatch):
  config = tiny_config(train__batch_rows=8)
  config = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=-1))
  found = study.study(config, chips.parse("h100:8"))
  assert found.fits and found.seconds == 0
  lines = "\n".join(pages.lines(found))
  assert "estimate of a device's memory" in lines and "predicted" not in lines
  sizes = found.compiled.arguments
  assert sizes["optimizer"] >= 2 * sizes["parameters"] > 0
  assert found.compiled.activations > 0


def test_a_search_tries_meshes_parts_and_remat_that_fit_the_devices():
  config = read_config("experiments/paper.py:size=0.37b", [])
  tried = search.candidates(config, chips.parse("v5p-128"))
  assert len(tried) == len({str(c) for c in tried}) >= 12
  assert {c.model.remat for c in tried} == {"dots", "full"}
  assert {c.mesh.tensor for c in tried} == {1, 2, 4}
  for one in tried:
    assert one.mesh.data * one.mesh.fsdp * one.mesh.tensor == 64


def test_the_paper_s_experiment_says_what_was_compiled_for_each_size():
  root = Path(__file__).parents[2]
  rows = json.loads((root / "experiments/results/compile.json").read_text())
  text = (root / "experiments/paper.py").read_text()
  said = dict.fromkeys(paper.SIZES)
  for line in text.splitlines():
    match = re.fullmatch(r" +(\S+b) +([\d.]+) +([\d.]+)", line)
    if match:
      said[match[1]] = [match[2], match[3]]
  columns = [*pages.COLUMNS, "commit"]
  for size, own in said.items():
    row = dict(zip(columns, rows[f"{size} v5p-128"], strict=True))
    assert own == [row["GiB"], row["days for 0.5T"]], size
    assert row["parts"] == "2" and "--config.train.accumulate=2" in text
    assert chips.parse("v5p-128").chip.hbm_bytes / chips.GIB == pytest.approx(
      95.7, 1e-3
    )


def fake(config: Config, topology: chips.Topology, **compiled) -> study.Study:
  cost = dict(seconds=2.0, kernels=0.25, flops=1e15, count={"all-gather fsdp": 3})
  cost |= dict(bytes={"all-gather fsdp": 1 << 20}, busy={"all-gather fsdp": 0.5})
  cost |= dict(exposed={"all-gather fsdp": 0.1})
  values = dict(error="", compile_seconds=9.0, activations=1 << 30, temporaries=1 << 29)
  values |= dict(arguments={"parameters": 1 << 30}, peak=3 << 30, cost=cost, layer={})
  counted = study.counts_lib.count(config)
  made = worker.Compiled(**values | compiled)
  mesh = {"data": 1, "fsdp": 64, "context": 1, "tensor": 1}
  return study.Study(topology, mesh, "step", config, 10**9, counted, made)


def test_lines_and_rows_say_what_a_step_takes():
  config = read_config("experiments/paper.py:size=0.37b", [])
  found = fake(config, chips.parse("v5p-128"))
  lines = "\n".join(pages.lines(found))
  for part in (
    "1,000,000,000 parameters on v5p:4x4x4 (64 devices): mesh fsdp 64",
    "3.00 of 95.74 GiB",
    "3 all-gather fsdp, 1 MiB, 500.0 ms on the links, 100.0 ms of it exposed",
    "predicted: 2,000.0 ms for a step, of which attention 250.0 ms and exposed",
  ):
    assert part in lines
  elements = 512 * 4096 / 2.0 * 86_400
  assert found.elements_per_day == pytest.approx(elements)
  assert f"0.5T in {0.5e12 / elements:,.1f} days" in lines
  row = pages.row(found)
  assert len(row) == len(pages.COLUMNS) and row[0] == "v5p:4x4x4" and row[5] == "2,000"
  large = fake(config, chips.parse("v5e-64"), peak=20 << 30)
  assert not large.fits and "20.0 (does not fit)" in pages.row(large)
  table = list(pages.table([large, found]))
  assert "v5p" in table[2] and "v5e" in table[3]  # what fits first
