"""The models of the Transfusion paper (arXiv 2408.11039), each number once.

Owns: their sizes, and of what rows and latents they are trained on. Not: the rest of
the training run (experiments/paper.py).
"""

from typing import NamedTuple


class Size(NamedTuple):
  """A transformer."""

  layers: int
  width: int
  heads: int
  mlp: int  # hidden width of SwiGLU


# Table 2, which has no mlp: that is Llama's rule, 2/3 of 4 x width, up to the next
# multiple of 256.
SIZES = {
  "0.16b": Size(16, 768, 12, 2_048),
  "0.37b": Size(24, 1_024, 16, 2_816),
  "0.76b": Size(24, 1_536, 24, 4_096),
  "1.4b": Size(24, 2_048, 16, 5_632),
  "7b": Size(32, 4_096, 32, 11_008),
}

# 32,000 pieces and BOI, EOI, rounded up to 252 x 128 = 2^9 x 63: so that the vocabulary
# divides over the devices of mesh.tensor; the 254 rows that no token has are idle.
VOCAB_SIZE = 32_256

ROW_LENGTH = 4_096  # elements (section 4.1)
LATENT_SHAPE = (32, 32, 8)  # h, w, c of an image of 256 x 256 pixels (section 4.1)
