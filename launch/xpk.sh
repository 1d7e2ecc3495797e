#!/usr/bin/env bash
# A training on a GKE cluster that xpk has made.
#
# Owns: the arguments of `xpk workload create`. Not: the cluster, the image.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/xpk.sh --project P --zone Z --cluster C --name W --image I --type T
         [--slices S] [--run] -- tfusion train ...

Starts the command on all hosts of S slices, and again when it is stopped or killed.
Prints what it would run; runs it with --run.

  --project P  project of Google Cloud
  --zone Z     zone of the cluster
  --cluster C  cluster, made by `xpk cluster create`
  --name W     name of the workload, new for each start by hand
  --image I    address of the image that launch/Dockerfile makes
  --type T     such as v5p-128 or v6e-256
  --slices S   how many slices (1)
  --run        run it

xpk itself: pip install xpk, best in an environment of its own.
END
}

fail() {
  echo "launch/xpk.sh: $1" >&2
  exit 2
}

project='' zone='' cluster='' name='' image='' type='' slices=1 run=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --run) run=yes ;;
    --project | --zone | --cluster | --name | --image | --type | --slices)
      [ -n "${2-}" ] || fail "$1: its value is missing"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --) shift && break ;;
    *) fail "$1: unknown; --help lists the options" ;;
  esac
  shift
done
for option in project zone cluster name image type; do
  [ -n "${!option}" ] || fail "--$option is missing"
done
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices $slices: give a number from 1"
[ $# -gt 0 ] || fail "the command is missing: give it after --, as in -- tfusion train ..."

# xpk starts again after the statuses 127 to 255, so after 130, 134, 137 and 143, and not
# after 2. A pod that is told to go gets five minutes to save.
command=(xpk workload create --project="$project" --zone="$zone" --cluster="$cluster"
  --workload="$name" --docker-image="$image" --tpu-type="$type" --num-slices="$slices"
  --max-restarts=100 --termination-grace-period-seconds=300
  --command="exec $(printf '%q ' "$@")--distributed auto")
if [ -z "$run" ]; then
  printf '%q ' "${command[@]}" && echo
else
  exec "${command[@]}"
fi
