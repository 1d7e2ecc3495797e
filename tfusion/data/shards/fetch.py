"""Shards of a bucket, copied to this machine once.

Owns: the copies. Not: reading them (source.py), what they are (manifest.py).

A run reads documents in random order, up to a few thousand a second. array_record reads
gs:// itself, but by a request for each record, which takes as long as the network does;
s3:// it does not know. So the shards that a run trains on are copied before it begins,
to a folder that is called after their manifest: other shards at the same address get
another. A copy takes its name when its SHA-256 is that of the manifest; what is there
under its name is whole, and is not copied again. For more than the disks of the hosts
can hold, a bucket is mounted, and the shards are read in place.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from tfusion import buckets, files
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards.manifest import Manifest, Shard
from tfusion.progress import Progress

THREADS = 8
MIB = 2**20


def to_local(folder: Path, manifest: Manifest, shards: tuple[Shard, ...]) -> Path:
  """The folder of this machine to read shards from; copies what it lacks.

  Args:
    folder: of the shards; one of this machine is returned as it is.
    manifest: of the folder.
    shards: of the manifest, those that are wanted.

  Raises:
    ValueError: the disk has no room for them, or one is not what the manifest says.
    OSError: one cannot be copied.
  """
  if not buckets.is_bucket(folder):
    return folder
  about = json.dumps(dataclasses.asdict(manifest)).encode()
  place = files.cache_of(folder) / f"shards-{hashlib.sha256(about).hexdigest()[:16]}"
  place.mkdir(parents=True, exist_ok=True)
  wanted = {shard.name: shard.sha256 for shard in shards}
  wanted[manifest_lib.TOKENIZER] = manifest.tokenizer_sha256
  if manifest.autoencoder_sha256:
    wanted[manifest_lib.AUTOENCODER] = manifest.autoencoder_sha256
  missing = {name: sha for name, sha in wanted.items() if not (place / name).is_file()}
  sizes = {shard.name: shard.bytes for shard in shards}
  _check_room(folder, place, sum(sizes.get(name, 0) for name in missing))
  progress, done = Progress(f"{folder}: files copied", len(missing)), 0
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    copies = [
      pool.submit(_copy, folder / name, place / name, sha)
      for name, sha in missing.items()
    ]
    try:
      for copy in concurrent.futures.as_completed(copies):
        copy.result()
        progress.show(done := done + 1)
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return place


def _check_room(folder: Path, place: Path, needed: int) -> None:
  free = shutil.disk_usage(place).free
  if needed > free:
    raise ValueError(
      f"shards:{folder}: its shards take {needed / MIB:,.0f} MiB more, and"
      f" {free / MIB:,.0f} MiB are free at {place}, where they are copied to; make"
      " room, set XDG_CACHE_HOME to a folder of a larger disk, or mount the bucket and"
      " name the folder there"
    )


def _copy(source: Path, target: Path, sha256: str) -> None:
  with files.whole(target) as aside:
    found = buckets.of(source)
    assert found is not None, "only what lies in a bucket is copied"
    found.download(aside)
    if (got := manifest_lib.sha256(aside)) != sha256:
      raise ValueError(
        f"{source}: is another file (sha256 {got[:16]}...) than its manifest says"
        f" ({sha256[:16]}...); put that one back, or {manifest_lib.AGAIN}"
      )
