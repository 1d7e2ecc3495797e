"""What launch/ gives to Kubernetes, read by others' tools: schemas, and xpk itself."""

import copy
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ["tfusion", "train", "--config", "experiments/paper.py:size=7b"]
COMMON = ["--cluster", "my-cluster", "--name", "first", "--slices", "2"]
COMMON += ["--image", "registry.example/tf:1", "--bucket", "my-bucket"]


def printed(script: str, *args: str) -> str:
  command = [str(LAUNCH / script), *COMMON, *args]
  return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# JobSet, by the schemas of Kubernetes and of JobSet.


def jobset() -> dict:
  text = printed("jobset.sh", "--topology", "v5p:4x4x4", "--", *TRAIN, 'a "b"\\')
  return yaml.safe_load(text)


def check(manifest: dict, version: str) -> None:
  """Raises an error if a JobSet, or the job in it, is none."""
  why = "no schemas of Kubernetes here: pip install '.[dev]'"
  kubernetes = pytest.importorskip("kubernetes_validate", reason=why)
  jsonschema = pytest.importorskip("jsonschema", reason=why)
  schema = (pathlib.Path(__file__).parent / "jobset.schema.json").read_text()
  jsonschema.validate(manifest, json.loads(schema))
  for jobs in manifest["spec"]["replicatedJobs"]:
    job = {"apiVersion": "batch/v1", "kind": "Job", **jobs["template"]}
    job["metadata"] = {"name": manifest["metadata"]["name"]}
    kubernetes.validate(job, version, strict=True)


VERSIONS = [
  "1.31",
  "1.37",
]  # the first with failure policies of pods for all; the newest


@pytest.mark.parametrize("version", VERSIONS)
def test_the_jobset_is_one_by_the_schemas(version):
  check(jobset(), version)


@pytest.mark.parametrize(
  ("path", "value", "says"),
  [
    ("spec failurePolicy maxRestart", 3, "maxRestart"),
    ("spec failurePolicy rules 0 action", "Fail", "'Fail' is not one of"),
    ("spec failurePolicy rules 0 onJobFailureReasons", ["Mistake"], "Mistake"),
    ("spec replicatedJobs 0 template spec backoffLimit", "none", "'none'"),
    ("spec replicatedJobs 0 template spec podFailurePolicy rules 0 action", 2, "2 is"),
    ("spec replicatedJobs 0 template spec template spec restart", "Never", "restart"),
  ],
)
def test_a_manifest_with_a_slip_is_refused_by_the_schemas(path, value, says):
  manifest = copy.deepcopy(jobset())
  inner, names = manifest, path.split()
  for name in names[:-1]:
    inner = inner[int(name) if name.isdecimal() else name]
  inner[names[-1]] = value
  with pytest.raises(Exception, match=says) as raised:
    check(manifest, VERSIONS[-1])
  assert type(raised.value).__name__ == "ValidationError"


# xpk, which prints the manifest that it would apply.


def xpk(tmp_path: pathlib.Path, *command: str) -> dict:
  """The JobSet that xpk makes of what launch/xpk.sh calls."""
  if not shutil.which("xpk"):
    pytest.skip("no xpk here: pip install xpk, in an environment of its own")
  place = ["--project", "my-project", "--zone", "us-east5-a", "--type", "v5p-128"]
  (line,) = printed("xpk.sh", *place, "--", *command).splitlines()
  out = subprocess.run(
    [*shlex.split(line), "--dry-run"],
    env=os.environ | {"HOME": str(tmp_path), "TELEMETRY_ENABLED": "false"},
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stdout + out.stderr
  manifest = out.stdout.partition("apiVersion: ")[2].partition("\n[XPK]")[0]
  return yaml.safe_load(f"apiVersion: {manifest}")


@pytest.mark.slow
def test_xpk_takes_every_option_and_makes_the_same_of_them_as_we_would(tmp_path):
  ours, theirs = jobset(), xpk(tmp_path, *TRAIN)
  assert theirs["kind"] == "JobSet" and theirs["metadata"]["name"] == "first"
  again = theirs["spec"]["failurePolicy"]
  assert again["maxRestarts"] == ours["spec"]["failurePolicy"]["maxRestarts"] == 100
  jobs = [whole["spec"]["replicatedJobs"][0] for whole in (ours, theirs)]
  assert [job["replicas"] for job in jobs] == [2, 2]
  own, made = (job["template"]["spec"] for job in jobs)
  assert made["parallelism"] == made["completions"] == own["parallelism"] == 16
  (rule,) = made["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
  restarted = set(rule["onExitCodes"]["values"])
  assert {143, 130, 75, 137, 134} <= restarted and not {0, 1, 2} & restarted
  own, made = own["template"]["spec"], made["template"]["spec"]
  assert made["nodeSelector"] == own["nodeSelector"]
  for name in ("terminationGracePeriodSeconds", "restartPolicy"):
    assert made[name] == own[name]
  (own,), (made,) = own["containers"], made["containers"]
  assert made["image"] == own["image"] and made["resources"] == own["resources"]
  (command,) = [
    line for line in made["command"][2].splitlines() if "tfusion train" in line
  ]
  assert shlex.join([*TRAIN, "--workdir", "gs://my-bucket/first"]) in command


@pytest.mark.slow
def test_in_the_shell_of_xpk_the_run_is_told_to_stop_and_its_status_is_kept(tmp_path):
  made = xpk(tmp_path, "tfusion", "train", "a b")["spec"]["replicatedJobs"][0]
  (container,) = made["template"]["spec"]["template"]["spec"]["containers"]
  stand_in = tmp_path / "tfusion"
  stand_in.write_text("""#!/bin/bash
    trap 'echo "saved $2"; exit 143' TERM
    echo up
    for ((i = 0; i < 300; i++)); do sleep 0.1; done
  """)
  stand_in.chmod(0o755)
  process = subprocess.Popen(
    container["command"],
    env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline().startswith("XPK Start")
  assert process.stdout.readline() == "up\n"
  process.send_signal(signal.SIGTERM)
  said, _ = process.communicate(timeout=30)
  assert process.returncode == 143
  assert "saved a b\n" in said and "EXIT_CODE=143" in said
