"""Promises of tfusion/files.py: a file is there whole or not at all."""

import errno
import os
import stat

import pytest

from tfusion import files


@pytest.mark.parametrize("data", ["a\u00e9\n", b"a\xc3\xa9\n"])
def test_text_and_bytes_are_written_as_they_are_and_nothing_is_left_beside(
  tmp_path, data
):
  path = tmp_path / "values.json"
  path.write_bytes(b"before")
  files.write_whole(path, data)
  assert path.read_bytes() == b"a\xc3\xa9\n"
  assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
  path = tmp_path / "shard"
  path.write_bytes(b"before")
  with pytest.raises(RuntimeError), files.whole(path) as aside:
    aside.write_bytes(b"half")
    assert path.read_bytes() == b"before"
    raise RuntimeError("killed")
  assert path.read_bytes() == b"before"
  assert list(tmp_path.iterdir()) == [path]
  with pytest.raises(OSError), files.whole(path):
    pass  # wrote nothing
  assert path.read_bytes() == b"before"


def test_bytes_last_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
  path, done = tmp_path / "config.json", []
  fsync, replace = os.fsync, os.replace

  def synced(handle):
    folder = stat.S_ISDIR(os.fstat(handle).st_mode)
    done.append("folder" if folder else os.fstat(handle).st_size)
    fsync(handle)

  def replaced(old, new):
    done.append("renamed")
    replace(old, new)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(os, "replace", replaced)
  files.write_whole(path, "12345")
  assert done == [5, "renamed", "folder"]


@pytest.mark.parametrize(
  "number, said", [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_a_folder_that_cannot_be_synchronised_is_no_error_but_a_bad_disk_is(
  tmp_path, monkeypatch, number, said
):
  fsync = os.fsync

  def refuse(handle):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
      raise OSError(number, os.strerror(number))
    fsync(handle)

  monkeypatch.setattr(os, "fsync", refuse)
  if said:
    with pytest.raises(OSError):
      files.write_whole(tmp_path / "a", b"a")
  else:
    files.write_whole(tmp_path / "a", b"a")
  assert (tmp_path / "a").read_bytes() == b"a"
