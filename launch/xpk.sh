#!/usr/bin/env bash
# Trains on a GKE cluster that xpk made, as one of its workloads.
#
#   launch/xpk.sh --project P --zone Z --cluster C --name NAME --type v5p-128 \
#     --image IMAGE --bucket B [--slices 1] [--restarts 100] [--run] -- COMMAND...
#
# The workload NAME runs COMMAND on every host, with --workdir gs://B/NAME --distributed
# auto. xpk starts it again after 75 and statuses from 127 on (143, 137, ...: stopped or
# killed) and not after 2, which is for you to mend. Needs xpk from PyPI (1.16 was tried,
# in an environment of its own), gcloud and kubectl.
#
#   --type      as xpk names it: v5p-128, v5litepod-256, v6e-256
#   --slices    that many of them train together
#   --restarts  how often it is started again, at most
#
# Without --run it only prints the command.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

project='' zone='' cluster='' name='' type='' image='' bucket='' slices=1 restarts=100
run='' command=()
read_args "project zone cluster name type image bucket" "slices restarts" "$@"
need_name name
need_count slices
need_count restarts
complete_command "$bucket" "$name"

create=(xpk workload create --project "$project" --zone "$zone" --cluster "$cluster"
  --workload "$name" --tpu-type "$type" --num-slices "$slices" --docker-image "$image"
  --max-restarts "$restarts" --restart-on-exit-codes 75
  --termination-grace-period-seconds 150
  --command "$(quoted "${command[@]}")")
if [ -z "$run" ]; then
  quoted "${create[@]}"
else
  "${create[@]}"
fi
