#!/usr/bin/env bash
# run.sh [--cpu] [--wheels DIR] [--out DIR] [--seconds N]
#
# Everything that is to be learned on a machine with one GPU, in under ten minutes and without a network.
#   --cpu         rehearse on a machine without a GPU: small models and short times, with patience for a busy machine
#   --wheels DIR  install these wheels into a temporary folder first (wheels.sh made them); without it feedrate is importable already
#   --out DIR     where results go (default: $OUT, else gpu-results); at most 8 small files
#   --seconds N   begin no step that would end later than this (default 570, with --cpu 1800)
#
# Results are written as they come: results.jsonl (a line for each fact and for each step), log.txt (whatever was printed),
# and the run folder's best.json, search.json and trials.jsonl. Exit code 1 where a step failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

rehearsal='' wheels='' out=${OUT:-gpu-results} total='' patience=1
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) rehearsal=1 ;;
    --wheels) wheels=$2; shift ;;
    --out) out=$2; shift ;;
    --seconds) total=$2; shift ;;
    *) echo "run.sh: unknown argument $1; see the first lines of $0" >&2; exit 2 ;;
  esac
  shift
done
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(realpath "$out")
results=$out/results.jsonl log=$out/log.txt
: >"$results"
: >"$log"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
if [ -n "$rehearsal" ]; then patience=4; fi
total=${total:-$((patience > 1 ? 1800 : 570))}
if [ -n "$rehearsal" ]; then export FEEDRATE_GPU_REHEARSAL=1 CUDA_VISIBLE_DEVICES=''; fi
failed=0

# note STEP JSON-FIELDS: a line about a step itself
note() { printf '{"ran": "%s", %s}\n' "$1" "$2" | tee -a "$results"; }

# step NAME LEAST MOST COMMAND...: run it for MOST seconds at most, unless less than LEAST are left
step() {
  local name=$1 least=$2 most=$(($3 * patience)) began=$SECONDS left=$((total - SECONDS)) code
  shift 3
  if [ "$left" -lt "$least" ]; then
    note "$name" "\"skipped\": \"only $left of $total s were left\""
    return
  fi
  if [ "$most" -gt "$left" ]; then most=$left; fi
  echo "== $name" | tee -a "$log"
  timeout --kill-after=10 "$most" "$@" > >(tee -a "$log") 2>&1
  code=$?
  note "$name" "\"exit_code\": $code, \"wall_s\": $((SECONDS - began)), \"ended_after_s\": $SECONDS"
  if [ "$code" -ne 0 ]; then failed=1; fi
}

install_wheels() {
  local joined=$work/wheels first
  mkdir -p "$joined" "$work/site"
  find "$wheels" -name '*.whl' -exec cp {} "$joined" \;
  while IFS= read -r first; do # a wheel that is larger than one transfer came in parts, in folders of their own
    first=$(basename "$first")
    find "$wheels" -name "${first%-00}-*" -printf '%f %p\n' | sort | cut -d' ' -f2- | xargs -d '\n' cat >"$joined/${first%.part-00}"
  done < <(find "$wheels" -name '*.whl.part-00')
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --target "$work/site" "$joined"/*.whl
}

measure() { step "$1" "$2" "$3" "$python" -W ignore benchmarks/gpu/steps.py "${@:4}" --out "$results"; }

if [ -n "$wheels" ]; then
  if ! install_wheels >>"$log" 2>&1; then
    note install '"exit_code": 1'
    tail -5 "$log" >&2
    exit 1
  fi
  note install "\"exit_code\": 0, \"wall_s\": $SECONDS"
  export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
fi
feedrate=("$python" -P -m feedrate.search.cli.main)
if ! versions=$("${feedrate[@]}" version --json 2>>"$log"); then
  echo "run.sh: feedrate cannot be imported by $python; pass --wheels DIR, or PYTHON=.venv/bin/python" >&2
  exit 1
fi
printf '{"step": "versions", "facts": %s}\n' "$versions" | tee -a "$results"
if [ -z "$rehearsal" ]; then
  nvidia-smi >>"$log" 2>&1
  if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "run.sh: torch sees no GPU here; --cpu rehearses without one" >&2
    exit 1
  fi
fi

budget=45
if [ -n "$rehearsal" ]; then budget=20; fi
train=("$python" benchmarks/gpu/train.py)

step pictures 20 90 "$python" -c 'from feedrate.trainables.bundled.photos import photo_folder; print(photo_folder())'
data=$("$python" -c 'from feedrate.trainables.bundled.photos import photo_folder; print(photo_folder())' 2>>"$log")
if [ -n "$rehearsal" ]; then train+=("$data" --epochs 2 --batch-size 8 --num-workers 1 --size 64 --repeat 1); else train+=("$data" --epochs 20); fi

step tests 60 130 "$python" -P -m pytest tests/gpu -q -p no:cacheprovider -W default
for name in resnet50 float32 uint8; do
  measure "workload $name" 30 90 workload "$name"
done
measure pin 20 60 pin
measure search $((budget + 20)) $((budget + 75)) search --budget "$budget" --folder "$work"
cp "$work"/run/{best.json,search.json,trials.jsonl} "$out" 2>>"$log"
step "search of a script" $((budget + 20)) $((budget + 75)) "${feedrate[@]}" search --time-budget "${budget}s" --out "$work/script" -- "${train[@]}"
measure stock $((budget + 20)) $((budget + 60)) stock --budget "$budget" --folder "$work"
measure judge 30 90 judge
step train 30 60 "${feedrate[@]}" train -- "${train[@]}"
measure "two at once" 20 60 two
measure memory 10 40 memory
measure "workload decoding" 40 90 workload decoding
note end "\"wall_s\": $SECONDS, \"failed\": $failed"
exit $failed
