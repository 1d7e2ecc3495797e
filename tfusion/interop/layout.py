"""How weights of other programs are laid out, in terms of our parameters.

Owns: the form in which a layout is written down. Not: any layout (llama.py, bagel.py).

d width  h heads  k head dim  f mlp  v vocab
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Theirs(NamedTuple):
  """The tensor that a parameter of ours is, or is stacked of."""

  name: str  # with {} for the number of the layer, if ours has an axis of layers
  # For each axis of theirs the axes of ours that it is, without that of layers.
  axes: tuple[tuple[int, ...], ...]


VECTOR, TABLE = ((0,),), ((0,), (1,))
TURNED = ((1,), (0,))  # [outputs, inputs]
OF_HEADS = ((1, 2), (0,))  # [h k, d] of ours [d, h, k]
TO_WIDTH = ((2,), (0, 1))  # [d, h k] of ours [h, k, d]
BIASES = ((0, 1),)  # [h k] of ours [h, k]


class Layout(NamedTuple):
  """What the files of a folder hold."""

  kind: str  # what they call the network
  knobs: dict[str, Any]  # of `model.`
  noise: dict[str, Any]  # of `diffusion.`, that images were learned with
  names: Mapping[str, Theirs]  # by the dotted path of our parameter
  tables: tuple[str, str]  # the names of embedding and head, which have a row a piece
  is_tied: bool = False  # whether the head has the numbers of the embedding
  stem: str = "model"  # of the names of the files
  ignored: str = ""  # a regular expression of tensors that are no parameters of ours

  def find(self, path: str) -> Theirs | None:
    """The tensor that a parameter is, or begins as: of those that patches have of
    their own, where it has none for them, text's; None: it is made new."""
    found = self.names.get(path) or self.names.get(of_text(path))
    if found and self.is_tied and found.name == self.tables[1]:
      return found._replace(name=self.tables[0])
    return found


def of_text(path: str) -> str:
  """The parameter of text beside one that patches have of their own; else the path.

  Args:
    path: dotted, of a parameter of ours.
  """
  path = path.replace("transformer.blocks.image.", "transformer.blocks.")
  return path.replace("transformer.image_norm.", "transformer.norm.")
