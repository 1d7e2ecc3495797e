#!/usr/bin/env bash
# Trains on a GKE cluster with JobSet, without xpk: fills in launch/jobset.yaml.
#
#   launch/jobset.sh --cluster C --name NAME --topology v5p:4x4x4 --image IMAGE \
#     --bucket B [--slices 1] [--restarts 100] [--run] -- COMMAND...
#
# Every host runs COMMAND, with --workdir gs://B/NAME --distributed auto. All start again
# if one is killed or preempted, and not after status 2, which is for you to mend, or 1,
# an error of ours.
# Needs kubectl, and JobSet on the cluster.
#
#   --cluster   the context of kubectl
#   --topology  as for tfusion compile, by shape: v5p:4x4x4, v5e:16x16, v6e:16x16
#   --slices    that many of them train together
#   --restarts  how often all are started again, at most
#
# Without --run it only prints the manifest, and the command to which it would go.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

cluster='' name='' topology='' image='' bucket='' slices=1 restarts=100
run='' command=()
read_args "cluster name topology image bucket" "slices restarts" "$@"
need_name name
need_count slices
need_count restarts
complete_command "$bucket" "$name"

shape=${topology#*:}
[[ "$shape" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  fail "--topology $topology: give a shape, such as v5p:4x4x4"
case "${topology%%:*}" in
  v5p) accelerator=tpu-v5p-slice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  *) fail "--topology $topology: give one of v5p, v5e, v6e" ;;
esac
chips=$((${shape//x/*}))
# The machines of multi-host slices have 4 chips each.
[ $((chips % 4)) -eq 0 ] || fail "--topology $topology: $chips chips are no whole hosts"
hosts=$((chips / 4))

words=''
for word in "${command[@]}"; do # as JSON, which YAML reads
  word=${word//\\/\\\\}
  words+=", \"${word//\"/\\\"}\""
done
manifest=$(<"$(dirname "$0")/jobset.yaml")
fill() { manifest=${manifest//"\${$1}"/"$2"}; }
fill NAME "$name"
fill RESTARTS "$restarts"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$shape"
fill IMAGE "$image"
fill COMMAND "[${words#, }]"

apply=(kubectl --context "$cluster" apply --filename -)
if [ -z "$run" ]; then
  echo "# $(quoted "${apply[@]}") <<EOF"
  printf '%s\n' "$manifest"
  echo "# EOF"
else
  printf '%s\n' "$manifest" | "${apply[@]}"
fi
