"""What the data of a run hold and how far they have been read: data.json.

Owns: the file, and the lines on the console. Not: how it is counted (data/tally.py,
data/notices.py, data/census.py).
"""

from pathlib import Path

from tfusion.data import census, notices
from tfusion.data.pipeline import Corpus, HostBatches
from tfusion.data.tally import Tally
from tfusion.sharding import gather_json
from tfusion.training import events
from tfusion.training.log import Log


class DataReport:
  """Counts of the sources and of what all lanes have given; every method is called on
  all hosts."""

  def __init__(self, workdir: Path, corpus: Corpus, data: HostBatches):
    """Counts what the sources hold; reads no document.

    Args:
      workdir: gets data.json.
      corpus: of the run.
      data: the batches of this host, which know how far they have come.
    """
    self._workdir, self._corpus, self._data = workdir, corpus, data
    self._contents = census.of(corpus.train, corpus.test)

  def say_found(self, log: Log) -> None:
    """Says what the sources hold."""
    for line in notices.found_lines(self._corpus.train, self._corpus.test):
      log.say(line)

  def say_read(self, step: int, log: Log) -> None:
    """Says what has been read, and what is odd about it."""
    tally = self._tally()
    log.say(f"step {step}  read: {tally.summary()}")
    for warning in tally.warnings():
      log.say(f"step {step}  warning: {warning}")

  def write(self) -> None:
    """Writes data.json."""
    tally = self._tally()
    values = {
      "sources": tally.counts(),
      "row_fill": tally.fill(),
      "found": notices.found(self._corpus.train, self._corpus.test),
      "contents": self._contents,
    }
    events.write_json(self._workdir, "data.json", values)

  def _tally(self) -> Tally:
    return self._data.tally(gather_json)
