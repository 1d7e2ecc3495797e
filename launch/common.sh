# shellcheck shell=bash disable=SC2034
# What the scripts of this folder share: options, and printing instead of running.
# Sourced, not run. A script sets `$run` and its options to '' or a default first.

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

fail() {
  echo "$(basename "$0"): $*; see $(basename "$0") --help" >&2
  exit 2
}

# read_args "NEEDED..." "OPTIONAL..." ARGS...
# Sets a variable for every option that has a value, and `run` and `command`.
read_args() {
  local needed=$1 optional=$2 option value
  shift 2
  run='' command=()
  while [ $# -gt 0 ]; do
    case "$1" in
      --help | -h) usage; exit 0 ;;
      --run) run=1 ;;
      --) shift; command=("$@"); break ;;
      --*)
        option=${1#--}
        [[ " $needed $optional " == *" $option "* ]] || fail "$1: no such option"
        [[ $# -gt 1 && "$2" != --* && -n "$2" ]] || fail "$1: give a value"
        printf -v "$option" %s "$2"
        shift
        ;;
      *) fail "$1: the command stands after --" ;;
    esac
    shift
  done
  for option in $needed; do
    value=${!option}
    [ -n "$value" ] || fail "--$option is missing"
  done
  [ ${#command[@]} -gt 0 ] || fail "COMMAND is missing: give it after --"
}

need_count() { # need_count OPTION
  [[ "${!1}" =~ ^[1-9][0-9]*$ ]] || fail "--$1 ${!1}: give a number from 1"
}

need_name() { # need_name OPTION: a name that Kubernetes and Google's cloud take
  [[ "${!1}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--$1 ${!1}: give lower-case letters, digits and dashes, 40 at most"
}

# The words of a command, quoted where a shell would need it.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s\n' "${line# }"
}

# Adds to `command` where the run is kept and that there are several hosts.
complete_command() { # complete_command BUCKET NAME
  case " ${command[*]} " in
    *" --workdir"[\ =]*) fail "--workdir: it is gs://BUCKET/NAME; leave it out" ;;
    *" --distributed"[\ =]*) fail "--distributed: it is auto here; leave it out" ;;
  esac
  local bucket=${1#gs://}
  command+=(--workdir "gs://${bucket%/}/$2" --distributed auto)
}
