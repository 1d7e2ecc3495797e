"""Emoji by the package transfusion-pytorch: trained for some minutes, drawn, judged.

Owns: the package on the documents of experiments/emoji.py:few. Not: our own program,
which `tfusion train` and `tfusion eval` run; nothing here imports tfusion, so that the
package has an environment of its own.

tests/bench/README.md has the commands.

The package is used as its README does (velocity, Adam, an average of the weights for
sampling, guidance 3); what is ours are the sizes, the rate, and its patches as latents.
n images  p pixels of a patch
"""

import argparse
import copy
import importlib.metadata
import json
import random
import time

import numpy as np

PACKAGE = "transfusion-pytorch"
CAPTIONS = ("{}", "{}", "an emoji: {}")  # of tfusion/data/emoji.py
CAPTION_FIRST = 0.8
SAID_EVERY = 30.0  # seconds
AT_ONCE = 25  # drawings


def export(path: str) -> None:
  """Writes what the emoji are called and look like; needs tfusion, and the font."""
  from tfusion.data import emoji

  drawn = emoji.load("few", 32)
  np.savez(
    path,
    names=[one.name for one in drawn.emoji],
    held_out=[one.held_out for one in drawn.emoji],
    images=drawn.images,
  )


def cut(image_hwc: np.ndarray, patch: int) -> np.ndarray:
  """Pixels to patches, f32[h / patch, w / patch, p]."""
  h, w, c = image_hwc.shape
  x = image_hwc.reshape(h // patch, patch, w // patch, patch, c)
  return x.transpose(0, 2, 1, 3, 4).reshape(h // patch, w // patch, -1)


def joined(patches: np.ndarray, patch: int) -> np.ndarray:
  """The inverse of `cut`."""
  rows, columns = patches.shape[:2]
  x = patches.reshape(rows, columns, patch, patch, -1).transpose(0, 2, 1, 3, 4)
  return x.reshape(rows * patch, columns * patch, -1)


def nearest(known: np.ndarray, made: np.ndarray) -> np.ndarray:
  """Of each image the number of the known one whose pixels are nearest."""
  known, made = (x.reshape(len(x), -1) for x in (known, made))
  return np.argmin((known**2).sum(1)[None] - 2 * made @ known.T, axis=1)


def main() -> None:
  """Trains, draws every emoji from its name, and prints how many are right."""
  import torch
  from transfusion_pytorch import Transfusion

  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("emoji", help="the file that `export` wrote")
  parser.add_argument("--minutes", type=float, default=20.0)
  parser.add_argument("--patch", type=int, default=8)
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--depth", type=int, default=4)
  parser.add_argument("--batch", type=int, default=20, help="documents in an update")
  parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
  parser.add_argument("--clean", action="store_true", help="predict the image")
  args = parser.parse_args()
  random.seed(0)
  torch.manual_seed(0)

  with np.load(args.emoji) as file:
    names, held_out = file["names"].tolist(), file["held_out"]
    images = file["images"].astype(np.float32) / 127.5 - 1
  latents = [torch.from_numpy(cut(x, args.patch).copy()) for x in images]
  grid = latents[0].shape[:2]
  model = Transfusion(
    num_text_tokens=256,
    dim_latent=latents[0].shape[-1],
    modality_default_shape=tuple(grid),
    add_pos_emb=True,
    model_output_clean=args.clean,
    transformer=dict(dim=args.dim, depth=args.depth, heads=args.dim // 64, dim_head=64),
  )
  average = copy.deepcopy(model)
  optimizer = torch.optim.Adam(model.parameters(), lr=args.rate)
  seen = [i for i, out in enumerate(held_out) if not out]

  def said(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()))

  def document(number: int) -> list[torch.Tensor]:
    own = [said(random.choice(CAPTIONS).format(names[number])), latents[number]]
    return own if random.random() < CAPTION_FIRST else own[::-1]

  start = told = time.monotonic()
  end = start + 60 * args.minutes
  updates = 0
  while time.monotonic() < end:
    loss = model([document(random.choice(seen)) for _ in range(args.batch)])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    updates += 1
    with torch.no_grad():
      keep = min(0.995, updates / (updates + 10))
      for own, new in zip(average.parameters(), model.parameters()):
        own.lerp_(new, 1 - keep)
    if time.monotonic() - told > SAID_EVERY:
      told = time.monotonic()
      print(
        f"update {updates}  loss {loss.item():.4f}  left {end - told:.0f} s", flush=True
      )

  average.eval()
  made = []
  for first in range(0, len(names), AT_ONCE):
    # What follows a caption in training: that an image begins.
    prompts = [[said(name)] for name in names[first : first + AT_ONCE]]
    drawn = average.sample_many(
      prompts, force_modality_at_start=0, max_length=100, cfg_scale=3.0
    )
    for parts in drawn:
      latent = next(part for part in parts if not torch.is_tensor(part))[1]
      made.append(joined(latent.numpy(), args.patch))
    print(f"drawn {len(made)} of {len(names)}", flush=True)
  right = nearest(images, np.clip(np.stack(made), -1, 1)) == np.arange(len(names))
  found = vars(args) | {
    "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
    "parameters": sum(p.numel() for p in model.parameters()),
    "updates": updates,
    "seen_right": float(right[~held_out].mean()),
    "held_out_right": float(right[held_out].mean()),
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main()
