#!/usr/bin/env bash
# wheel.sh FOLDER [PYTHON]: builds the wheel into FOLDER from a copy of the files that git knows or would add.
# Built in place, setuptools would leave build/ behind and pack files from it that were deleted since.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
python=${2:-.venv/bin/python}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi # git still lists a file that was deleted and not committed
  done |
  xargs -0 cp --parents -t "$copy"
"$python" -m build --wheel --no-isolation --outdir "$out" "$copy"
