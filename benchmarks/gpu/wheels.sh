#!/usr/bin/env bash
# wheels.sh FOLDER: the wheels that run.sh needs on a GPU machine without a network (Python 3.12, with the packages of present.txt).
# Needs make venv, and an index to fetch from. FOLDER/1, FOLDER/2, ... are each small enough for one transfer; on the machine
# put them into one folder again and pass that to run.sh --wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?wheels.sh needs a folder, which it makes}
if [ -e "$folder" ]; then echo "wheels.sh: $folder is there already; name another folder" >&2; exit 2; fi
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
bash .ci/wheel.sh "$build" >"$build/log" 2>&1 || { cat "$build/log" >&2; exit 1; }
.venv/bin/python benchmarks/gpu/wheels.py "$build"/*.whl "$folder"
