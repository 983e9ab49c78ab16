#!/bin/sh
# Drives feedrate from a shell by --json alone: submit, wait, look at it, fetch, export. tests/search/service/test_jobs.py runs it.
#
#   tests/search/service/drive.sh WORKLOAD URL [OPTION OF SUBMIT ...]
#
# Progress goes to standard error; standard output gets the setting and its rate.
set -eu

workload=$1 url=$2
shift 2

field() { # field OBJECT NAME[.NAME...]: one value of a JSON object
  printf '%s' "$1" | python3 -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."):
    value = value[name]
print(value if isinstance(value, str) else json.dumps(value))' "$2"
}

submitted=$(feedrate submit "$workload" --address "$url" "$@" --json)
id=$(field "$submitted" id)

while true; do
  state=$(feedrate status "$id" --address "$url" --json) || break # exit code 1: the search failed
  echo "$(field "$state" status): $(field "$state" progress)" >&2
  [ "$(field "$state" search_exit_code)" = null ] || break
  sleep 1
done
if [ "$(field "$state" status)" != SUCCEEDED ]; then
  field "$state" ended_by >&2
  exit 1
fi

fetched=$(feedrate fetch "$id" --address "$url" --json)
exported=$(feedrate export "$(field "$fetched" folder)" --json)
field "$exported" best.dataloader
field "$exported" best.throughput.samples_per_second
