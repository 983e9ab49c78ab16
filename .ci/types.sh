#!/usr/bin/env bash
# Strict types, checked on what the wheel installs. The editable install is an import hook, which mypy does not run:
# on the work tree it would take every feedrate import for Any and pass the errors behind it.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bash .ci/wheel.sh "$work/dist" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
.venv/bin/python -m pip install --quiet --no-deps --no-index --target "$work/site" "$work"/dist/*.whl

# check SITE: mypy on the installed files, named in its messages as they are named in the repository
check() {
  (cd "$1" && MYPYPATH=$1 "$root/.venv/bin/mypy" --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" \
    --strict -p feedrate.search -p feedrate.trainables -p feedrate.analysis) | sed 's#^feedrate/##'
}

check "$work/site" | tee "$work/checked"
files=$(find "$work/site/feedrate" -name '*.py' | wc -l)
# mypy counts a folder without __init__.py, such as that of the hook for training scripts, as a file
folders=$(find "$work/site/feedrate" -mindepth 2 -type d ! -name __pycache__ ! -exec test -e {}/__init__.py \; -print | wc -l)
files=$((files + folders))
grep -q "no issues found in $files source files" "$work/checked" ||
  { echo "types: mypy did not check all $files files"; exit 1; }

# The check must be able to fail: a wrong use of one part's class in another part has to be reported.
cp -r "$work/site" "$work/planted"
cat >"$work/planted/feedrate/search/planted.py" <<'END'
from feedrate.trainables.config import LoaderConfig
planted: int = LoaderConfig
END
if check "$work/planted" >"$work/found"; then echo "types: mypy passed a planted error"; exit 1; fi
grep -q '^search/planted.py:2: error: Incompatible types in assignment' "$work/found" ||
  { cat "$work/found"; echo "types: mypy missed the planted error"; exit 1; }
