#!/usr/bin/env bash
# Trains on a TPU slice of its own VMs: asks for it, waits, starts, starts again.
#
#   launch/tpu_vm.sh --project P --zone Z --name NAME --type v5p-128 --image IMAGE \
#     --bucket B [--runtime R] [--spot yes] [--restarts 100] [--run] -- COMMAND...
#
# Asks for a queued resource NAME, waits until it is there, and runs COMMAND in a
# container on every worker, with --workdir gs://B/NAME --distributed auto. The lines
# of all workers are printed. If the slice was preempted, it is deleted and asked for
# again; if the run was stopped or killed (143, 137, 134, 130, 75), it starts again. Any
# other status ends the script: 0 is complete, 2 is for you to mend. The container
# goes on when this script is interrupted; start the script again to watch it on. When
# the script ends the slice is still rented; it prints how to delete it.
#
#   --type      as gcloud names it: v5p-128, v5litepod-256, v6e-256
#   --runtime   software of the VMs, if not what the type usually has
#   --spot      yes: preemptible, cheaper
#   --restarts  how often it is started again, at most
#
# Without --run it only prints the commands.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

project='' zone='' name='' type='' image='' bucket='' runtime='' spot='' restarts=100
run='' command=()
read_args "project zone name type image bucket" "runtime spot restarts" "$@"
need_name name
need_count restarts
case "$spot" in '' | yes | no) ;; *) fail "--spot $spot: give yes or no" ;; esac
if [ -z "$runtime" ]; then
  case "$type" in
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) fail "--runtime is missing: $type is not one of v5p-*, v5litepod-*, v6e-*" ;;
  esac
fi
complete_command "$bucket" "$name"

place=(--project "$project" --zone "$zone")
queued=(gcloud compute tpus queued-resources)
create=("${queued[@]}" create "$name" --node-id "$name" "${place[@]}"
  --accelerator-type "$type" --runtime-version "$runtime")
[ "$spot" != yes ] || create+=(--spot)
describe=("${queued[@]}" describe "$name" "${place[@]}" "--format=value(state.state)")
delete=("${queued[@]}" delete "$name" "${place[@]}" --force --quiet)

# On every worker. A container that runs already is only watched.
start=$(quoted sudo docker run --detach --name "$name" --privileged --network host \
  "$image" "${command[@]}")
ENDED='tfusion ended with status'
remote="set -e
if [ \"\$(sudo docker inspect --format '{{.State.Running}}' $name 2>&1)\" != true ]; then
  sudo gcloud auth configure-docker ${image%%/*} --quiet
  sudo docker rm $name >/dev/null 2>&1 || true
  $start
fi
sudo docker logs --follow --tail 1000 $name 2>&1
echo \"$ENDED \$(sudo docker wait $name)\""
ssh=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all
  --command "$remote")

if [ -z "$run" ]; then
  quoted "${create[@]}"
  echo "# until it says ACTIVE:"
  quoted "${describe[@]}"
  quoted "${ssh[@]}"
  echo "# if the slice was preempted, and then from the start:"
  quoted "${delete[@]}"
  exit 0
fi

wait_for_slice() {
  local state
  while true; do
    # Nothing is there yet, or gcloud says why not when it is asked to create it.
    state=$("${describe[@]}" 2>/dev/null) || state=''
    case "$state" in
      ACTIVE) return ;;
      '') "${create[@]}" ;;
      FAILED | SUSPENDED)
        echo "tpu_vm.sh: $name is $state; deleting it and asking again"
        "${delete[@]}"
        ;;
      *) echo "tpu_vm.sh: $name is $state" ;;
    esac
    sleep 30
  done
}

# The status of all workers as one: what is for the user to mend counts most; empty if
# the connection was lost before all had ended.
status_of() { # status_of LOG STATUS_OF_GCLOUD
  local found
  found=$(sed -n "s/.*$ENDED \([0-9][0-9]*\).*/\1/p" "$1")
  if grep -qx 2 <<<"$found"; then
    echo 2
  elif grep -qvx 0 <<<"${found:-0}"; then
    grep -vx 0 <<<"$found" | head -n 1
  elif [ -n "$found" ] && [ "$2" -eq 0 ]; then
    echo 0
  fi
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((again = 0; again <= restarts; again++)); do
  wait_for_slice
  ended=0
  "${ssh[@]}" 2>&1 | tee "$log" || ended=${PIPESTATUS[0]}
  status=$(status_of "$log" "$ended")
  case "$status" in
    143 | 137 | 134 | 130 | 75) echo "tpu_vm.sh: status $status; starting again" ;;
    '') echo "tpu_vm.sh: the workers were lost; starting again" ;;
    *) break ;;
  esac
  sleep 30
done
[ "$again" -le "$restarts" ] || echo "tpu_vm.sh: started again $restarts times; enough" >&2
echo "tpu_vm.sh: the slice is still rented; to delete it:"
quoted "${delete[@]}"
exit "${status:-1}"
