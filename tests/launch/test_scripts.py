"""The scripts of launch/: what they print, refuse, and do when a run ends."""

import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ["jobset.sh", "local.sh", "slurm.sbatch", "tpu_vm.sh", "xpk.sh"]
TRAIN = ["tfusion", "train", "--config", "experiments/paper.py:size=7b"]
# What each cannot do without.
PLACE = {"--project": "my-project", "--zone": "my-zone"}
SET = {"--name": "first", "--image": "registry.example/tf:1", "--bucket": "my-bucket"}
NEEDED = {
  "tpu_vm.sh": PLACE | SET | {"--type": "v5p-128"},
  "xpk.sh": PLACE | SET | {"--type": "v5p-128", "--cluster": "my-cluster"},
  "jobset.sh": SET | {"--cluster": "my-cluster", "--topology": "v5p:4x4x4"},
  "slurm.sbatch": {"--nodes": "2"},
}
KEPT = ["--workdir", "gs://my-bucket/first", "--distributed", "auto"]


def run(script: str, *args: str, **more) -> subprocess.CompletedProcess:
  return subprocess.run(
    [str(LAUNCH / script), *args], capture_output=True, text=True, timeout=60, **more
  )


def options(script: str, **changed: str) -> list[str]:
  values = NEEDED[script] | {f"--{name}": value for name, value in changed.items()}
  return [word for pair in values.items() for word in pair]


def dry(script: str, *command: str, **changed: str) -> str:
  out = run(script, *options(script, **changed), "--", *(command or TRAIN))
  assert out.returncode == 0, out.stderr
  return out.stdout


# All of them.


def test_every_script_is_known_to_these_tests():
  there = {path.name for path in LAUNCH.iterdir() if os.access(path, os.X_OK)}
  assert there == set(SCRIPTS)


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_the_shell_can_read_it(script):
  subprocess.run(["bash", "-n", LAUNCH / script], check=True)
  assert "set -euo pipefail" in (LAUNCH / script).read_text() or script == "common.sh"


def lint(*command: str) -> None:
  if not shutil.which(command[0]):
    pytest.skip(f"no {command[0]} here: pip install '.[dev]'")
  out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert out.returncode == 0, out.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_shellcheck_finds_nothing(script):
  lint("shellcheck", "--external-sources", f"launch/{script}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_option(script):
  out = run(script, "--help")
  assert out.returncode == 0 and not out.stderr
  assert f"launch/{script} " in out.stdout and "Without --run" in out.stdout
  # The first line of the call of read_args, or the pattern that takes a value.
  line = r'^read_args "(.*)" "(.*)" "\$@"$|^ +(--\w+(?: \| --\w+)*)\)$'
  found = re.findall(line, (LAUNCH / script).read_text(), re.MULTILINE)
  names = re.findall(r"[a-z]+", str(found))
  assert names and set(NEEDED.get(script, {})) <= {f"--{name}" for name in names}
  for name in names:
    assert f"--{name} " in out.stdout


@pytest.mark.parametrize(
  ("script", "left_out"), [(s, option) for s in NEEDED for option in NEEDED[s]]
)
def test_an_argument_that_is_missing_is_named(script, left_out):
  values = {k: v for k, v in NEEDED[script].items() if k != left_out}
  args = [word for pair in values.items() for word in pair]
  out = run(script, *args, "--run", "--", *TRAIN)
  assert out.returncode == 2 and not out.stdout
  assert out.stderr.startswith(f"{script}: {left_out} is missing")


@pytest.mark.parametrize("script", NEEDED)
@pytest.mark.parametrize(
  ("more", "says"),
  [
    ([], "COMMAND is missing"),
    (["--"], "COMMAND is missing"),
    (["tfusion"], "tfusion: the command stands after --"),
    (["--colour", "red"], "--colour: no such option"),
    (["--restarts", "--run", "--", "tfusion"], "--restarts: give a value"),
    (["--restarts", "many", "--", "tfusion"], "--restarts many: give a number"),
    (["--", "tfusion", "--distributed", "auto"], "--distributed: it is auto here"),
  ],
)
def test_a_wrong_argument_is_named(script, more, says):
  out = run(script, *options(script), *more)
  assert out.returncode == 2 and not out.stdout
  assert out.stderr.startswith(f"{script}: {says}")


@pytest.mark.parametrize("script", sorted(set(NEEDED) - {"slurm.sbatch"}))
def test_the_workdir_lies_in_the_bucket(script):
  assert "gs://my-bucket/first" in dry(script)
  assert dry(script, bucket="gs://my-bucket/") == dry(script)
  out = run(script, *options(script), "--", *TRAIN, "--workdir=runs/7b")
  assert out.returncode == 2 and "--workdir: it is gs://BUCKET/NAME" in out.stderr


@pytest.mark.parametrize("script", sorted(set(NEEDED) - {"slurm.sbatch"}))
@pytest.mark.parametrize("name", ["My-run", "run_1", "7b", "run-", "a" * 41])
def test_a_name_that_a_cloud_would_refuse_is_refused_at_once(script, name):
  out = run(script, *options(script, name=name), "--", *TRAIN)
  assert out.returncode == 2 and f"--name {name}: give lower-case" in out.stderr
  assert "a" * 40 in dry(script, name="a" * 40)


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_no_file_names_a_project_a_bucket_or_a_registry(path):
  text = path.read_text()
  assert not re.search(r"gs://[a-z]|gcr\.io|pkg\.dev", text)
  assert not re.search(r"--(project|bucket|cluster)[ =][a-z]", text)


def commands_of_pages() -> list[str]:
  found = []
  for page in [LAUNCH / "README.md", ROOT / "docs" / "commands.md"]:
    text = page.read_text().replace("\\\n", " ") if page.exists() else ""
    found += re.findall(r"^ {4,}(launch/\S+ .*)$", text, re.MULTILINE)
  return found


@pytest.mark.parametrize("command", commands_of_pages())
def test_a_command_of_the_pages_is_read_without_an_error(command):
  words = [word for word in shlex.split(command) if word != "--run"]
  out = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert out.returncode == 0, out.stderr


# Slurm.


def test_slurm_submits_itself():
  words = shlex.split(dry("slurm.sbatch", tasks="8", gpus="1", time="1:00:00"))
  script = str(LAUNCH / "slurm.sbatch")
  assert words == [
    *("sbatch", "--job-name", "tfusion", "--nodes", "2", "--ntasks-per-node", "8"),
    *("--time", "1:00:00", "--gpus-per-task", "1"),
    *(script, "--in-job", "100", *TRAIN),
  ]
  asked = re.findall(r"^#SBATCH (\S+)$", pathlib.Path(script).read_text(), re.M)
  assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= set(asked)


def stand_in(folder: pathlib.Path, name: str, code: str) -> None:
  """A program that writes down how it was called, and does as it is told."""
  path = folder / name
  path.write_text(f'#!/bin/bash\necho "{name} $*" >>{folder}/calls\n{code}\n')
  path.chmod(0o755)


def calls(folder: pathlib.Path) -> list[str]:
  path = folder / "calls"
  return path.read_text().splitlines() if path.exists() else []


def with_path(folder: pathlib.Path, **more: str) -> dict[str, str]:
  return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", **more}


@pytest.mark.parametrize(
  ("status", "state", "count", "requeued"),
  [
    *((status, "RUNNING", "0", True) for status in (143, 130, 75, 137, 134)),
    *((status, "RUNNING", "0", False) for status in (0, 1, 2)),
    (143, "COMPLETING", "0", False),  # cancelled by its owner
    (137, "RUNNING", "3", False),  # --restarts 3
    (137, "RUNNING", "2", True),
  ],
)
def test_a_slurm_job_goes_back_into_the_queue_if_a_restart_helps(
  status, state, count, requeued, tmp_path
):
  stand_in(tmp_path, "srun", f"exit {status}")
  stand_in(tmp_path, "squeue", f"echo {state}")
  for name in ("scontrol", "scancel", "sleep"):
    stand_in(tmp_path, name, "exit 0")
  env = with_path(tmp_path, SLURM_JOB_ID="5", SLURM_RESTART_COUNT=count)
  out = run("slurm.sbatch", "--in-job", "3", *TRAIN, env=env)
  assert out.returncode == status
  assert calls(tmp_path)[0] == (
    f"srun --kill-on-bad-exit=0 {shlex.join(TRAIN)} --distributed auto"
  )
  assert ("scontrol requeue 5" in calls(tmp_path)) == requeued


# TPU VMs.


def test_a_slice_is_asked_for_with_the_software_of_its_type():
  for kind, software in (
    ("v5p-128", "v2-alpha-tpuv5"),
    ("v5litepod-256", "v2-alpha-tpuv5-lite"),
    ("v6e-256", "v2-alpha-tpuv6e"),
  ):
    words = shlex.split(dry("tpu_vm.sh", type=kind).splitlines()[0])
    assert words == [
      *("gcloud", "compute", "tpus", "queued-resources", "create", "first"),
      *("--node-id", "first", "--project", "my-project", "--zone", "my-zone"),
      *("--accelerator-type", kind, "--runtime-version", software),
    ]
  assert " --spot" in dry("tpu_vm.sh", spot="yes").splitlines()[0]
  out = run("tpu_vm.sh", *options("tpu_vm.sh", type="v9-8"), "--", *TRAIN)
  assert out.returncode == 2 and "--runtime is missing: v9-8" in out.stderr


def test_all_workers_run_the_command_in_a_container():
  words = shlex.split(dry("tpu_vm.sh", "tfusion", "train", "a 'b'"), comments=True)
  ssh = words[words.index("ssh") :]
  assert ssh[1] == "first" and "--worker=all" in ssh
  remote = ssh[ssh.index("--command") + 1]
  (started,) = [line for line in remote.splitlines() if "docker run" in line]
  words = shlex.split(started)
  end = words.index("registry.example/tf:1")
  assert words[end + 1 :] == ["tfusion", "train", "a 'b'", *KEPT]
  subprocess.run(["bash", "-n"], input=remote, text=True, check=True)


@pytest.mark.slow
def test_gcloud_knows_every_command_and_option(tmp_path):
  if not shutil.which("gcloud"):
    pytest.skip("no gcloud here: Google's Cloud SDK has it")
  env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)}

  def fault(command: str) -> str | None:
    lint = ["gcloud", "meta", "lint-gcloud-commands", "--command-string", command]
    out = subprocess.run(lint, env=env, capture_output=True, text=True, check=True)
    return json.loads(out.stdout)[0]["error_message"]

  words = shlex.split(dry("tpu_vm.sh", spot="yes"), comments=True)
  starts = [i for i, word in enumerate(words) if word == "gcloud"]
  commands = [words[a:b] for a, b in itertools.pairwise([*starts, len(words)])]
  assert [command[4] for command in commands] == ["create", "describe", "ssh", "delete"]
  for command in commands:
    assert fault(shlex.join(command)) is None
  assert "unrecognized arguments: --spots" in fault(
    shlex.join([*commands[0], "--spots"])
  )


# Two workers each; what gcloud says of them.
ENDED = "tfusion ended with status"


@pytest.mark.parametrize(
  ("states", "endings", "status", "creations", "starts"),
  [
    (["", "WAITING", "ACTIVE"], [(0, 0)], 0, 1, 1),
    (["ACTIVE"], [(143, 143), (0, 0)], 0, 0, 2),
    (["ACTIVE"], [(137, 134), (0, 0)], 0, 0, 2),
    (["ACTIVE"], [(134, 2)], 2, 0, 1),
    (["ACTIVE"], [(1, 134)], 1, 0, 1),
    # Preempted: nobody says a status. Deleted, asked for again.
    (["ACTIVE", "SUSPENDED", "", "ACTIVE"], [(), (0, 0)], 0, 1, 2),
    # A worker was lost, the others did not say so.
    (["ACTIVE"], [(0,), (0, 0)], 0, 0, 2),
    (["ACTIVE"], [(143, 143)] * 4, 143, 0, 4),  # --restarts 3
  ],
)
def test_a_slice_is_started_again_after_preemption(
  states, endings, status, creations, starts, tmp_path
):
  for n, state in enumerate(itertools.islice([*states, *["ACTIVE"] * 9], 9)):
    (tmp_path / f"state{n}").write_text(state)
  for n, ending in enumerate(endings):
    lines = [f"step 1\n{ENDED} {one}\n" for one in ending]
    (tmp_path / f"ending{n}").write_text("".join(lines))
    (tmp_path / f"status{n}").write_text(f"{int(len(ending) < 2)}")
  code = f"""
    next() {{
      n=$(cat {tmp_path}/$1 2>/dev/null || echo 0)
      echo $((n + 1)) >{tmp_path}/$1
      echo $n
    }}
    case "$*" in
      *describe*) cat {tmp_path}/state$(next described) ;;
      *ssh*) n=$(next started); cat {tmp_path}/ending$n; exit $(<{tmp_path}/status$n) ;;
    esac
  """
  stand_in(tmp_path, "gcloud", code)
  stand_in(tmp_path, "sleep", "exit 0")
  args = [*options("tpu_vm.sh"), "--restarts", "3", "--run", "--", *TRAIN]
  out = run("tpu_vm.sh", *args, env=with_path(tmp_path))
  assert out.returncode == status, out.stdout + out.stderr
  called = "\n".join(calls(tmp_path))
  assert called.count("queued-resources create") == creations
  assert called.count("tpu-vm ssh") == starts
  assert called.count("queued-resources delete") == states.count("SUSPENDED")
  # It does not delete what the user rents, but says how.
  assert "gcloud compute tpus queued-resources delete first" in out.stdout


# Kubernetes.


def test_xpk_gets_the_command_in_one_piece():
  words = shlex.split(dry("xpk.sh", "tfusion", "train", "a b", slices="2"))
  assert words[:3] == ["xpk", "workload", "create"]
  given = dict(zip(words[3::2], words[4::2], strict=True))
  assert shlex.split(given.pop("--command")) == ["tfusion", "train", "a b", *KEPT]
  assert given == {
    **PLACE,
    **{"--cluster": "my-cluster", "--workload": "first", "--tpu-type": "v5p-128"},
    **{"--num-slices": "2", "--docker-image": "registry.example/tf:1"},
    **{"--max-restarts": "100", "--restart-on-exit-codes": "75"},
    "--termination-grace-period-seconds": "150",
  }


def test_with_run_xpk_is_called_as_it_was_printed(tmp_path):
  stand_in(tmp_path, "xpk", "exit 3")
  out = run(
    "xpk.sh", *options("xpk.sh"), "--run", "--", *TRAIN, env=with_path(tmp_path)
  )
  assert out.returncode == 3
  assert calls(tmp_path) == [" ".join(shlex.split(dry("xpk.sh")))]


@pytest.mark.parametrize(
  ("topology", "accelerator", "hosts"),
  [
    ("v5p:4x4x4", "tpu-v5p-slice", 16),
    ("v5p:2x2x1", "tpu-v5p-slice", 1),
    ("v5e:16x16", "tpu-v5-lite-podslice", 64),
    ("v6e:8x8", "tpu-v6e-slice", 16),
  ],
)
def test_the_jobset_has_one_pod_a_host_and_starts_again_unless_it_is_a_mistake(
  topology, accelerator, hosts
):
  text = dry("jobset.sh", "tfusion", 'a "b"\\', "${NAME}&", topology=topology)
  assert text.startswith("# kubectl --context my-cluster apply --filename -")
  whole = yaml.safe_load(text)
  assert whole["kind"] == "JobSet" and whole["metadata"]["name"] == "first"
  again = whole["spec"]["failurePolicy"]
  assert again["maxRestarts"] == 100
  (rule,) = again["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (jobs,) = whole["spec"]["replicatedJobs"]
  job = jobs["template"]["spec"]
  assert jobs["replicas"] == 1 and job["backoffLimit"] == 0
  assert job["completions"] == job["parallelism"] == hosts
  (rule,) = job["podFailurePolicy"]["rules"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {
    **{"containerName": container["name"], "operator": "In", "values": [1, 2]}
  }
  assert pod["restartPolicy"] == "Never"  # a failure policy needs it
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
  }
  assert container["command"] == ["tfusion", 'a "b"\\', "${NAME}&", *KEPT]
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert hosts * chips == eval(topology.partition(":")[2].replace("x", "*"))


@pytest.mark.parametrize(
  ("topology", "says"),
  [
    ("v5p-128", "give a shape"),
    ("v5p:4x4x", "give a shape"),
    ("h100:64x2", "give one of v5p, v5e, v6e"),
    ("v5p:1x1x2", "2 chips are no whole hosts"),
  ],
)
def test_a_topology_that_gke_does_not_have_is_refused(topology, says):
  out = run("jobset.sh", *options("jobset.sh", topology=topology), "--", *TRAIN)
  assert out.returncode == 2 and f"--topology {topology}: {says}" in out.stderr


def test_the_manifest_goes_to_kubectl(tmp_path):
  stand_in(tmp_path, "kubectl", f"cat >{tmp_path}/manifest")
  args = [*options("jobset.sh", slices="2"), "--run", "--", *TRAIN]
  out = run("jobset.sh", *args, env=with_path(tmp_path))
  assert out.returncode == 0, out.stderr
  assert calls(tmp_path) == ["kubectl --context my-cluster apply --filename -"]
  whole = yaml.safe_load((tmp_path / "manifest").read_text())
  assert whole["spec"]["replicatedJobs"][0]["replicas"] == 2
  assert "${" not in json.dumps(whole)


# The image.


def test_the_image_holds_what_pip_and_the_experiments_need():
  text = (LAUNCH / "Dockerfile").read_text()
  copied = {
    word
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
    for word in line.split()[:-1]
  }
  assert all((ROOT / name).exists() for name in copied)
  assert {"setup.py", "README.md", "tfusion", "experiments"} <= copied
  extras = (ROOT / "setup.py").read_text().partition("extras_require")[2]
  assert '"tpu": [' in extras and '"cuda": [' in extras


def test_hadolint_finds_nothing():
  lint("hadolint", "--no-color", "launch/Dockerfile")


@pytest.mark.slow
def test_the_package_can_be_built_of_what_the_image_holds(tmp_path):
  for line in re.findall(
    r"^COPY (.*)$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE
  ):
    *sources, target = line.split()
    for name in sources:
      if (ROOT / name).is_dir():
        shutil.copytree(ROOT / name, tmp_path / target)
      else:
        shutil.copy(ROOT / name, tmp_path / target)
  build = "import setuptools.build_meta as b; print(b.build_wheel('wheel'))"
  out = subprocess.run(
    [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True
  )
  assert out.returncode == 0, out.stderr
  (wheel,) = (tmp_path / "wheel").glob("*.whl")
  held = set(zipfile.ZipFile(wheel).namelist())
  tracked = subprocess.run(
    ["git", "ls-files", "tfusion"], cwd=ROOT, capture_output=True, text=True
  ).stdout.split()
  code = {name for name in tracked if not name.endswith(".md")}
  assert code and code <= held
