#!/usr/bin/env bash
# Trains with several processes on this machine, as if each were a host.
#
#   launch/local.sh N [--devices D] [--run] -- COMMAND...
#
# Starts COMMAND N times on CPUs, with D simulated devices each (4), and adds
# --distributed localhost:PORT,INDEX,N. Every line of output says its host. SIGTERM
# and Ctrl-C go on to all hosts. Ends when all have ended, with the status of the first
# that failed, or 0. Without --run it only prints the commands.
#
#   launch/local.sh 2 --run -- tfusion train --config experiments/digits.py:smoke \
#     --workdir runs/two

set -euo pipefail

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
fail() { echo "local.sh: $*; see local.sh --help" >&2; exit 2; }

is_count() { [[ "$1" =~ ^[1-9][0-9]*$ ]]; }

hosts='' devices=4 run=''
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --devices)
      [ $# -gt 1 ] || fail "--devices: give a number"
      devices=$2
      shift
      ;;
    --run) run=1 ;;
    --) shift; break ;;
    -*) fail "$1: no such option" ;;
    *)
      [ -z "$hosts" ] || fail "$1: the command stands after --"
      hosts=$1
      ;;
  esac
  shift
done
[ -n "$hosts" ] || fail "N is missing: give the number of hosts"
is_count "$hosts" || fail "N=$hosts: give a number from 1"
is_count "$devices" || fail "--devices $devices: give a number from 1"
[ $# -gt 0 ] || fail "COMMAND is missing: give it after --"

# A port to which nobody answers.
port=''
while [ -z "$port" ] || (: <"/dev/tcp/localhost/$port") 2>/dev/null; do
  port=$((20000 + RANDOM % 12000))
done
settings="JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo"
settings="$settings JAX_NUM_CPU_DEVICES=$devices"

if [ -z "$run" ]; then
  for ((host = 0; host < hosts; host++)); do
    printf '%s ' "$settings"
    printf '%q ' "$@"
    printf '%s\n' "--distributed localhost:$port,$host,$hosts"
  done
  exit 0
fi

say_host() {
  trap '' INT TERM # it speaks until its host is silent
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[host %s] %s\n' "$1" "$line"
  done
}

processes=() speakers=()
# shellcheck disable=SC2317,SC2329 # called by the traps
forward() {
  for process in ${processes[@]+"${processes[@]}"}; do
    kill -s "$1" "$process" 2>/dev/null || true
  done
}
trap 'forward TERM' TERM
trap 'forward INT' INT

# Under -m a process in the background hears SIGINT, and only what is forwarded to it:
# two for one Ctrl-C would stop it without a save.
set -m
for ((host = 0; host < hosts; host++)); do
  exec 3> >(say_host "$host")
  speakers+=($!)
  # shellcheck disable=SC2086 # words
  env $settings "$@" --distributed "localhost:$port,$host,$hosts" \
    >&3 2>&1 3>&- </dev/null &
  processes+=($!)
  exec 3>&-
done
set +m

status=0
left=("${processes[@]}")
while [ ${#left[@]} -gt 0 ]; do
  waiting=()
  for process in "${left[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      waiting+=("$process")
    else
      ended=0
      wait "$process" || ended=$?
      [ "$status" -ne 0 ] || status=$ended
    fi
  done
  left=(${waiting[@]+"${waiting[@]}"})
  [ ${#left[@]} -eq 0 ] || sleep 0.2
done
# The last lines; not for ever, for a child of a killed host may hold its output open.
for ((tries = 0; tries < 50; tries++)); do
  kill -0 "${speakers[@]}" 2>/dev/null || break
  sleep 0.1
done
exit "$status"
