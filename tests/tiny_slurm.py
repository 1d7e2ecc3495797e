"""A Slurm of one node on this machine, from Debian's packages, for a test.

Owns: munged, slurmctld and slurmd, their files in one folder, their end. Not: jobs.

It is a usual one, but quicker: a job that is put back into the queue waits there until
its old credential has expired, which takes two minutes by default, and here 5 s.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
MinJobAge=3600
KillWait=10
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
  """Why there can be none here; empty if there can."""
  path = f"{os.environ['PATH']}:/usr/sbin"
  gone = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
  if gone:
    return f"no {', '.join(gone)}: install munge, slurmctld, slurmd, slurm-client"
  return "" if os.getuid() == 0 else "only root may start a Slurm"


def free_ports(count: int) -> list[int]:
  """Ports that nobody listens to."""
  with contextlib.ExitStack() as stack:
    found = [stack.enter_context(socket.socket()) for _ in range(count)]
    for each in found:
      each.bind(("localhost", 0))
    return [each.getsockname()[1] for each in found]


@contextlib.contextmanager
def started(folder: pathlib.Path) -> Iterator[dict[str, str]]:
  """Starts it in an empty folder; yields the environment for its commands."""
  host = socket.gethostname().partition(".")[0]
  for name in ("state", "spool"):
    (folder / name).mkdir()
  conf = folder / "slurm.conf"
  conf.write_text(
    CONF.format(host=host, folder=folder, ports=free_ports(2), cpus=os.cpu_count())
  )
  key = folder / "munge.key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  env = os.environ | {"SLURM_CONF": str(conf)}
  env["PATH"] += ":/usr/sbin"
  env = {k: v for k, v in env.items() if not k.startswith("SLURM_JOB")}
  munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
  munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
  munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
  daemons = [munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]]
  running = []
  try:
    for command in daemons:
      with open(folder / f"{command[0]}.out", "w") as out:
        running.append(
          subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        )
      time.sleep(0.5)
    for _ in range(60):
      state = subprocess.run(
        ["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True
      ).stdout
      if "idle" in state:
        break
      time.sleep(0.5)
    else:
      logs = "".join(p.read_text() for p in folder.glob("*.log"))
      raise OSError(f"Slurm did not start ({state!r}): {logs}")
    yield env
  finally:
    # Else they would outlive it.
    for _ in range(40):
      left = subprocess.run(["squeue", "-h"], env=env, capture_output=True).stdout
      if not left:
        break
      subprocess.run(["scancel", "--user", "root"], env=env, capture_output=True)
      time.sleep(0.5)
    for daemon in reversed(running):
      daemon.terminate()
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        daemon.kill()
