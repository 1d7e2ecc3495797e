"""A worker refuses a job that it cannot do as the others do it."""

import dataclasses

import pytest

from tfusion.prepare import encoder, part, worker


@pytest.fixture
def job(tmp_path):
  (tmp_path / worker.JOB).write_text('{"schema": 1}')
  return part.Job(str(tmp_path), 1, encoder.Settings(((8, 8, 3),), "pixels"))


def test_a_process_like_the_one_that_began_the_job_can_work_for_it(job):
  needs = worker.needs_of(job)
  assert worker.fault(needs) == ""
  assert dict(needs.versions)["numpy"] and dict(needs.versions)["Python"]


def test_versions_that_differ_are_named_with_what_is_needed(job):
  needs = worker.needs_of(job)
  here = dict(needs.versions)
  others = here | {"numpy": "0.1", "nothing": "1.0"}
  said = worker.fault(dataclasses.replace(needs, versions=tuple(others.items())))
  assert f"numpy {here['numpy']}, not 0.1" in said
  assert "nothing missing, not 1.0" in said
  assert "install the same versions on every worker" in said and "pillow" not in said


@pytest.mark.parametrize("left", [None, '{"schema": 2}'])
def test_a_folder_that_is_not_the_one_of_the_job_is_named_before_work(
  job, left, tmp_path
):
  needs = worker.needs_of(job)
  (tmp_path / worker.JOB).unlink()
  if left:
    (tmp_path / worker.JOB).write_text(left)
  with pytest.raises(ValueError, match="does not see the job.json of this job in"):
    worker.write((0, None), job, needs)
  assert not list(tmp_path.glob("*.array_record"))
