"""Data sets as people have them, of a few rows: names, columns and types are theirs.

Each function writes one below a folder and returns that. The facts are those of the
programs and cards of these data sets.
"""

import base64
import bz2
import gzip
import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

from PIL import Image

URL = "https://example.org/"


def image(shade: int = 9, kind: str = "PNG", size: tuple[int, int] = (10, 9)) -> bytes:
  """An image of one colour."""
  out = io.BytesIO()
  Image.new("RGB", size, (shade % 256, 7, 7)).save(out, kind)
  return out.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))


def parquet(path: Path, rows: list[dict], schema=None) -> None:
  import pyarrow
  from pyarrow import parquet as parquet_lib

  path.parent.mkdir(parents=True, exist_ok=True)
  parquet_lib.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def lines(path: Path, rows: list[dict]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# img2dataset.

FAILED = 3  # of 12 rows


def img2dataset_rows(shard: int = 0) -> list[dict]:
  """The rows of a table: what was asked for, and what became of it."""
  rows = []
  for i in range(12):
    failed = i % 4 == 3
    error = ("HTTP Error 404: Not Found", "image decoding error")[i == 7]
    status = ("failed_to_download", "failed_to_resize")[i == 7]
    rows.append(
      {
        "url": f"{URL}{i}.jpg",
        "caption": f"shade number {i}",
        "uid": f"{i:032x}",
        "key": f"{shard:05d}{i:04d}",
        "status": status if failed else "success",
        "error_message": error if failed else None,
        "width": None if failed else 10,
        "height": None if failed else 9,
        "original_width": None if failed else 640,
        "original_height": None if failed else 480,
        "exif": None if failed else json.dumps({"Image Make": "Canon"}),
        "sha256": None if failed else hashlib.sha256(bytes([i])).hexdigest(),
      }
    )
  return rows


def img2dataset(root: Path) -> Path:
  """Two archives with their tables and numbers, as --output_format=webdataset gives."""
  for shard in range(2):
    rows, members = img2dataset_rows(shard), {}
    for row in rows:
      if row["status"] == "success":
        members[f"{row['key']}.jpg"] = image(int(row["key"]), "JPEG")
        members[f"{row['key']}.txt"] = row["caption"].encode()
        members[f"{row['key']}.json"] = json.dumps(row, indent=4).encode()
    tar(root / f"{shard:05d}.tar", members)
    parquet(root / f"{shard:05d}.parquet", rows)
    stats = {
      "count": 12,
      "successes": 9,
      "failed_to_download": 2,
      "failed_to_resize": 1,
    }
    stats |= {"duration": 1.5, "start_time": 0.0, "end_time": 1.5}
    stats |= {"status_dict": {"success": 9}}
    (root / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))
  return root


def img2dataset_parquet(root: Path) -> Path:
  """One table with the images in it, as --output_format=parquet gives."""
  rows = []
  for row in img2dataset_rows():
    good = row["status"] == "success"
    data = image(int(row["key"]), "JPEG") if good else None
    rows.append({"jpg": data, "txt": row["caption"] if good else None} | row)
  parquet(root / "00000.parquet", rows)
  (root / "00000_stats.json").write_text("{}")
  return root


# Hugging Face.


def hf(root: Path) -> Path:
  """Rows with the struct of the datasets package, either half of which may be null."""
  import pyarrow as pa

  (root / "data").mkdir(parents=True)
  (root / "README.md").write_text("# A data set\n")
  (root / "data" / "b.png").write_bytes(image(2))
  schema = pa.schema(
    [
      ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
      ("text", pa.string()),
    ]
  )
  rows = [
    {"image": {"bytes": image(1), "path": "a.png"}, "text": "bytes and a path"},
    {"image": {"bytes": image(3), "path": None}, "text": "bytes"},
    {"image": {"bytes": None, "path": "b.png"}, "text": "a path"},
    {"image": {"bytes": None, "path": None}, "text": "neither"},
    {"image": None, "text": "no image"},
    {"image": {"bytes": image(4), "path": None}, "text": None},
  ]
  parquet(root / "data" / "train-00000-of-00001.parquet", rows, schema)
  return root


# Pages of the web.


def digest(url: str) -> str:
  return hashlib.sha256(url.encode()).hexdigest()


def obelics(root: Path) -> Path:
  """Pages whose images are addresses; of one, nothing is stored but that."""
  rows = []
  for i in range(4):
    url = f"{URL}{i}.jpg"
    about = {"document_url": URL, "unformatted_src": url, "src": url}
    about |= {
      "formatted_filename": f"picture {i}",
      "alt_text": "alt",
      "rendered_width": 9,
    }
    general = {"url": URL, "warc_filename": "crawl.warc.gz", "warc_record_offset": 1}
    rows.append(
      {
        "images": [None, url, None, f"{URL}lost{i}.jpg"],
        "metadata": json.dumps(
          [None, about, None, about | {"formatted_filename": None}]
        ),
        "general_metadata": json.dumps(general | {"warc_record_length": 2}),
        "texts": [f"page {i}", None, "and then", None],
      }
    )
  parquet(root / "data" / "train-00000-of-00001.parquet", rows)
  return root


def omnicorpus(root: Path) -> Path:
  """The same with metadata in structs, the images by the SHA-256 of their addresses."""
  rows = []
  for i in range(3):
    url = f"{URL}{i}.jpg"
    about = {"aesthetic_prob": 0.5, "bytes": 9, "d_hash": "0f", "d_hash_dup_count": 1}
    about |= {"height": 9, "img_url_sha": digest(url), "p_hash": "0f"}
    about |= {"p_hash_dup_count": 1, "unsafe_prob": 0.0, "width": 10}
    general = {"domain": ["example.org"], "fluency_prob": 0.9, "id": i, "url": URL}
    general |= {"non_advertisement_prob": 0.9, "politics_prob": 0.0}
    general |= {"porn_prob": 0.0, "toxic_prob": 0.0}
    rows.append(
      {
        "general_metadata": general,
        "images": [url, None],
        "texts": [None, f"below image {i}"],
        "metadata": [about, None],
      }
    )
  parquet(root / "CC-MAIN-2016-26" / "shard_0.parquet", rows)
  return root


def store(folder: Path, names: list[str]) -> None:
  """Puts images under these names into the folder of images beside a table."""
  (folder / "images").mkdir(parents=True, exist_ok=True)
  for number, name in enumerate(names):
    (folder / "images" / name).write_bytes(image(100 + number))


def mmc4_rows() -> list[dict]:
  return [
    {
      "text_list": ["One.", "Two.", "Three."],
      "url": URL,
      "image_info": [
        {
          "image_name": f"{k}{i}.jpg",
          "raw_url": f"{URL}{k}{i}.jpg",
          "face_detections": None,
          "matched_text_index": k,
          "matched_sim": 0.3,
        }
        for k in (2, 0)
      ],
      "similarity_matrix": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]],
      "could_have_url_duplicate": 0,
    }
    for i in range(3)
  ]


def mmc4(root: Path) -> Path:
  """Lines of JSON whose images lie in a folder, but for those of the last page."""
  lines(root / "docs_shard_0_v2.jsonl", mmc4_rows())
  store(root, [f"{k}{i}.jpg" for i in range(2) for k in (2, 0)])
  return root


def mmc4_archive(root: Path) -> Path:
  """OpenFlamingo's form: a .json for each page, the images in it."""
  members = {}
  for number, row in enumerate(mmc4_rows()):
    for info in row["image_info"]:
      info["image_base64"] = base64.b64encode(
        image(info["matched_text_index"])
      ).decode()
    members[f"{number:08d}-0000.json"] = json.dumps(row).encode()
  tar(root / "000000000.tar", members)
  return root


def tiff(shades: list[int]) -> bytes:
  """A TIFF with a page of each shade."""
  pages = [Image.new("RGB", (10, 9), (shade, 7, 7)) for shade in shades]
  out = io.BytesIO()
  pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
  return out.getvalue()


def mint(root: Path) -> Path:
  """PDF files: text in a .json, images as the pages of a .tiff; one has lost a page."""
  members = {}
  for i in range(3):
    key = f"{i:032x}"
    row = {
      "pdf_name": f"{i}.pdf",
      "url": URL,
      "images": ["page_0_image_85", None, "page_1_image_7", None],
      "texts": [None, f"first {i}", None, "second"],
      "image_metadata": [
        {"height": 9, "page": page, "sha256": "0f", "width": 10, "xref": 85}
        for page in range(2)
      ],
      "language_id_whole_page_fasttext": {"en": 0.9},
    }
    members[f"{key}.json"] = json.dumps(row).encode()
    members[f"{key}.tiff"] = tiff([10, 200] if i < 2 else [10])
  shard = "CC-MAIN-20240101000000-20240102000000-00001.tar"
  tar(root / "CC-MAIN-2024-01-shard-0" / shard, members)
  return root


# What unified models are trained on.


def bagel_t2i(root: Path) -> Path:
  """Images with several captions."""
  rows = [
    {"image": image(i), "captions": json.dumps({"0": f"short {i}", "1": f"long {i}"})}
    for i in range(3)
  ]
  parquet(root / "t2i" / "0.parquet", rows)
  return root / "t2i"


def bagel_edit(root: Path) -> Path:
  """Edits of two steps, the first in two wordings; and the numbers of row groups."""
  rows = [
    {
      "image_list": [image(i), image(i + 1), image(i + 2)],
      "instruction_list": [[f"redden {i}", "more red"], ["again"]],
    }
    for i in range(3)
  ]
  parquet(root / "editing" / "seedxedit_multi" / "chunk_0.parquet", rows)
  info = root / "editing" / "parquet_info" / "seedxedit_multi_nas.json"
  info.parent.mkdir(parents=True)
  info.write_text(json.dumps({"/data/chunk_0.parquet": {"num_row_groups": 1}}))
  return root / "editing"


CONVERSATION = [
  {"from": "human", "value": "<image>\nWhat is it?"},
  {"from": "gpt", "value": "A red square."},
  {"from": "human", "value": "How red?"},
  {"from": "gpt", "value": "Very."},
]


def bagel_vlm(root: Path) -> Path:
  """Conversations whose images lie in a folder beside them."""
  rows = [
    {"id": i, "image": f"{i}.png", "conversations": CONVERSATION} for i in range(2)
  ]
  rows.append({"id": 2, "image": None, "conversations": CONVERSATION[2:]})
  rows.append({"id": 3, "video": "a.mp4", "conversations": CONVERSATION})
  lines(root / "vlm" / "llava_ov_si.jsonl", rows)
  store(root / "vlm", ["0.png", "1.png"])
  return root / "vlm"


def llava(root: Path) -> Path:
  """One list in a .json, as LLaVA's own files are."""
  rows = [
    {"id": f"{i}", "image": f"coco/{i}.png", "conversations": CONVERSATION}
    for i in range(3)
  ]
  root.mkdir(parents=True, exist_ok=True)
  (root / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))
  (root / "coco").mkdir()
  for i in range(3):
    (root / "coco" / f"{i}.png").write_bytes(image(i))
  return root


def onevision(root: Path) -> Path:
  """LLaVA-OneVision-Data: a folder of parquet for each of its subsets."""
  for subset in ("chartqa", "geo3k"):
    rows = [
      {
        "id": f"{subset}_{i}",
        "image": {"bytes": image(i), "path": f"{i}.png"},
        "conversations": CONVERSATION,
        "data_source": subset,
      }
      for i in range(2)
    ]
    parquet(root / subset / "train-00000-of-00001.parquet", rows)
  return root


# Energon.

CAPTIONING = """\
sample_type:
  __module__: megatron.energon
  __class__: CaptioningSample
field_map:
  image: jpg
  caption: json[caption]
"""
VQA = """\
__module__: megatron.energon
__class__: VQAWebdataset
field_map:
  image: jpg
  context: json[question]
  answers: json[answers]
"""
CRUDE = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
SPLIT = """\
exclude:
- shards/shard_000.tar/sample_0001
- shards/shard_003.tar
split_parts:
  train:
  - shards/shard_{000..001}.tar
  - shards/shard_003.tar
  val:
  - shards/shard_002.tar
  test: []
"""


def energon(root: Path, dataset: str = CAPTIONING) -> Path:
  """Five archives: two to train on, one held out, one excluded, one in no split."""
  for shard in range(5):
    members = {}
    for i in range(3):
      row = {"caption": f"shade {shard}{i}", "question": "What?", "answers": ["a", "b"]}
      members[f"sample_{i:04d}.jpg"] = image(shard + i, "JPEG")
      members[f"sample_{i:04d}.json"] = json.dumps(row).encode()
    tar(root / "shards" / f"shard_{shard:03d}.tar", members)
  meta(root, dataset, SPLIT)
  return root


def meta(root: Path, dataset: str, split: str) -> None:
  (root / ".nv-meta").mkdir(parents=True)
  (root / ".nv-meta" / "dataset.yaml").write_text(dataset)
  (root / ".nv-meta" / "split.yaml").write_text(split)
  counts = {f"shards/shard_{i:03d}.tar": 3 for i in range(5)}
  info = {"energon_version": "7.1.0", "shard_counts": counts}
  (root / ".nv-meta" / ".info.json").write_text(json.dumps(info))
  (root / ".nv-meta" / "index.uuid").write_text("0" * 36)


def bridge(root: Path) -> Path:
  """What Megatron-Bridge writes of BAGEL's data sets: crude samples of three kinds."""
  source = {"parquet": "chunk_0.parquet", "row_group": 0, "row": 0}
  common = {"dataset_group": "t2i", "dataset_name": "t2i", "source": source}
  captions = {"captions": {"0": "short", "1": "long"}}
  edit = {"instruction_list": [["redden"]], "image_count": 2}
  vlm = {"conversations": CONVERSATION, "image_names": ["0.png"]}
  members = {
    "t2i-chunk_0-rg0-row0.image": image(1),
    "t2i-chunk_0-rg0-row0.json": json.dumps(common | captions).encode(),
    "edit-chunk_0-rg0-row1.image0": image(2),
    "edit-chunk_0-rg0-row1.image1": image(3),
    "edit-chunk_0-rg0-row1.json": json.dumps(common | edit).encode(),
    "vlm-0.image0": image(4),
    "vlm-0.json": json.dumps(common | vlm).encode(),
  }
  tar(root / "shards" / "shard_000.tar", members)
  meta(root, CRUDE, "split_parts:\n  train:\n  - shards/shard_000.tar\nexclude: []\n")
  return root


# MDS.


def mds_shard(rows: list[dict[str, bytes]], columns: dict[str, str]) -> bytes:
  """A shard of values that are encoded already, by column."""
  config = {"column_names": sorted(columns), "column_sizes": [None] * len(columns)}
  config |= {"column_encodings": [columns[name] for name in sorted(columns)]}
  config |= {"compression": None, "format": "mds", "hashes": [], "size_limit": 67108864}
  text = json.dumps(config | {"version": 2}, sort_keys=True).encode()
  samples = []
  for row in rows:
    values = [row[name] for name in sorted(columns)]
    fixed = {"int": 8}
    sizes = [len(row[n]) for n in sorted(columns) if columns[n] not in fixed]
    samples.append(struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(values))
  at = 4 + 4 * (len(samples) + 1) + len(text)
  places = [at]
  for sample in samples:
    places.append(places[-1] + len(sample))
  head = struct.pack(f"<{len(places) + 1}I", len(samples), *places)
  return head + text + b"".join(samples)


def mds_entry(columns: dict[str, str], raw: bytes, samples: int, number: int) -> dict:
  """What index.json says of a shard."""
  names = sorted(columns)
  return {
    "column_encodings": [columns[name] for name in names],
    "column_names": names,
    "column_sizes": [8 if columns[name] == "int" else None for name in names],
    "compression": None,
    "format": "mds",
    "hashes": ["sha1"],
    "raw_data": {
      "basename": f"shard.{number:05d}.mds",
      "bytes": len(raw),
      "hashes": {"sha1": hashlib.sha1(raw).hexdigest()},
    },
    "samples": samples,
    "size_limit": 67108864,
    "version": 2,
    "zip_data": None,
  }


def pil(shade: int) -> bytes:
  """An image as the encoding `pil` has it."""
  opened = Image.new("RGB", (10, 9), (shade, 7, 7))
  return struct.pack("<3I", 10, 9, 3) + b"RGB" + opened.tobytes()


def mds(root: Path, *, compression: str = "", encoding: str = "jpeg") -> Path:
  """Two splits of a shard each."""
  columns = {"image": encoding, "caption": "str", "id": "int"}
  for split in ("train", "val"):
    rows = [
      {
        "image": pil(i) if encoding == "pil" else image(i, "JPEG"),
        "caption": f"{split} {i}".encode(),
        "id": struct.pack("<q", i),
      }
      for i in range(3)
    ]
    raw = mds_shard(rows, columns)
    entry, folder = mds_entry(columns, raw, len(rows), 0), root / split
    folder.mkdir(parents=True)
    name = entry["raw_data"]["basename"]
    if compression:
      packed = pack(raw, compression)
      name = f"{name}.{compression}"
      entry |= {"compression": f"{compression}:7"}
      entry["zip_data"] = {"basename": name, "bytes": len(packed), "hashes": {}}
      (folder / name).write_bytes(packed)
    else:
      (folder / name).write_bytes(raw)
    index = {"shards": [entry], "version": 2}
    (folder / "index.json").write_text(json.dumps(index))
  return root


def lance(root: Path) -> Path:
  """Two splits, a table each, of fragments of two rows and one."""
  import pyarrow as pa
  import pytest

  lance = pytest.importorskip("lance")
  for split in ("train", "val"):
    rows = [
      {"caption": f"{split} {i}", "image": image(i), "added": i, "embedding": [0.5, i]}
      for i in range(3)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(2, "added", table["added"].cast(pa.timestamp("ns")))
    lance.write_dataset(table, root / f"{split}.lance", max_rows_per_file=2)
  return root


def pack(data: bytes, compression: str) -> bytes:
  """Compresses a shard as the streaming package does."""
  if compression in ("gz", "bz2"):
    return (gzip if compression == "gz" else bz2).compress(data)
  import pyarrow

  name = {"br": "brotli"}.get(compression, compression)
  return pyarrow.compress(data, name, asbytes=True)
