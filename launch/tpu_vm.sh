#!/usr/bin/env bash
# A training on TPU VMs, as a queued resource, started again after each preemption.
#
# Owns: the queued resource, what runs on its workers, when to start again. Not: how a
# run is saved and goes on (docs/resuming.md).
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh --project P --zone Z --name N --type T --runtime R --setup S
         [--slices S] [--spot | --reserved] [--poll S] [--run] -- tfusion train ...

Asks for TPUs, waits for them, installs tfusion on all workers, trains on all of them,
and does the same again after a preemption or a kill. Prints what it would run; runs it
with --run. May be stopped and repeated: what runs on the TPUs goes on meanwhile.

  --project P  project of Google Cloud
  --zone Z     zone of the TPUs
  --name N     name of the queued resource
  --type T     such as v5p-128
  --runtime R  software of the VMs, such as v2-alpha-tpuv5
  --setup S    command that installs tfusion on a worker and mounts the disk that all
               see; run there before each start, so it must bear repetition
  --slices S   how many slices (1)
  --spot       may be preempted at any time
  --reserved   from a reservation
  --poll S     seconds between two looks at the state (30)
  --run        run it

The TPUs are paid for until you delete them; the last line says how.
END
}

fail() {
  echo "launch/tpu_vm.sh: $1" >&2
  exit 2
}

say() { echo "launch/tpu_vm.sh: $1"; }

project='' zone='' name='' type='' runtime='' setup='' slices=1 tier='' poll=30 run=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --run) run=yes ;;
    --spot | --reserved) tier=$1 ;;
    --project | --zone | --name | --type | --runtime | --setup | --slices | --poll)
      [ -n "${2-}" ] || fail "$1: its value is missing"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --) shift && break ;;
    *) fail "$1: unknown; --help lists the options" ;;
  esac
  shift
done
for option in project zone name type runtime setup; do
  [ -n "${!option}" ] || fail "--$option is missing"
done
for option in slices poll; do
  [[ ${!option} =~ ^[1-9][0-9]*$ ]] || fail "--$option ${!option}: give a number from 1"
done
[ $# -gt 0 ] || fail "the command is missing: give it after --, as in -- tfusion train ..."

where=(--project="$project" --zone="$zone")
create=(gcloud compute tpus queued-resources create "$name" "${where[@]}"
  --accelerator-type="$type" --runtime-version="$runtime")
if [ "$slices" -eq 1 ]; then
  create+=(--node-id="$name")
else
  create+=(--node-count="$slices" --node-prefix="$name")
fi
[ -z "$tier" ] || create+=("$tier")
delete=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)
state=(gcloud compute tpus queued-resources describe "$name" "${where[@]}"
  "--format=value(state.state)")
ssh=(gcloud alpha compute tpus queued-resources ssh "$name" "${where[@]}")
every=(--node=all --worker=all)

# The training outlives the connection. Its status is written when it ends.
train="mkdir -p ~/tfusion-launch; cd ~/tfusion-launch; rm -f status"
train+="; setsid nohup bash -c '\"\$@\"; echo \$? >status' train"
train+=" $(printf '%q ' "$@")--distributed auto </dev/null >>log 2>&1 &"
# 0: runs; else its status. Without a process and a status, the VM has been restarted.
look='cd ~/tfusion-launch && if [ -f status ]; then echo "status $(cat status)"'
look+='; elif pgrep -f "[-]-distributed auto" >/dev/null; then echo "status running"'
look+='; else echo "status 137"; fi; tail -n 1 log'

if [ -z "$run" ]; then
  for part in create state; do
    printf '%q ' gcloud >/dev/null
    if [ $part = create ]; then printf '%q ' "${create[@]}"; else printf '%q ' "${state[@]}"; fi
    echo
  done
  printf '%q ' "${ssh[@]}" "${every[@]}" --command="$setup" && echo
  printf '%q ' "${ssh[@]}" "${every[@]}" --command="$train" && echo
  printf '%q ' "${ssh[@]}" --command="$look" && echo
  echo "# again from the first after a preemption, from the third after a kill"
  printf '%q ' "${delete[@]}" && echo
  exit 0
fi

# Until the TPUs are there.
acquire() {
  local now before=''
  while :; do
    now=$("${state[@]}" 2>/dev/null) || now=NONE
    [ "$now" = "$before" ] || say "$name: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      NONE) "${create[@]}" ;;
      SUSPENDED | FAILED) "${delete[@]}" ;;
    esac
    sleep "$poll"
  done
}

# Prints the last status of the training: a number, or LOST with the TPUs.
follow() {
  local seen line before=''
  while sleep "$poll"; do
    if seen=$("${ssh[@]}" --command="$look" 2>/dev/null); then
      line=$(sed -n 2p <<<"$seen")
      [ "$line" = "$before" ] || say "$line" >&2
      before=$line
      case $(sed -n 1p <<<"$seen") in
        "status running") ;;
        "status "*)
          sed -n '1s/status //p' <<<"$seen"
          return
          ;;
      esac
    elif [ "$("${state[@]}" 2>/dev/null || echo NONE)" != ACTIVE ]; then
      echo LOST
      return
    fi
  done
}

while :; do
  acquire
  if "${ssh[@]}" --command="$look" 2>/dev/null | grep -qx "status running"; then
    say "$name: a training is running there already; following it"
  else
    "${ssh[@]}" "${every[@]}" --command="$setup" || {
      say "the setup failed; mend --setup and repeat the command" >&2
      exit 2
    }
    "${ssh[@]}" "${every[@]}" --command="$train" || continue # lost meanwhile
  fi
  ended=$(follow)
  say "$name: ended with $ended"
  case $ended in
    LOST | 143 | 130 | 137 | 134) ;;
    *) break ;;
  esac
done
printf 'delete the TPUs: ' && printf '%q ' "${delete[@]}" && echo
exit "$ended"
