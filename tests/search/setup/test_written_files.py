"""written_files.py: the files that a training script wrote."""

import subprocess
import sys

SCRIPT = """
from pathlib import Path
from feedrate.search.setup.written_files import WrittenFiles
before = WrittenFiles(".")
print("feedrate's own words", flush=True)
Path("model.pt").write_text("weights")
Path("remark").write_text(before.remark())
"""


def test_where_feedrate_itself_writes_is_no_result_of_the_script(tmp_path):
    """`feedrate search ... > search.log` in the folder of the script."""
    with (tmp_path / "search.log").open("w") as log:
        subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, stdout=log, stderr=log, check=True)
    assert "while it was measured: model.pt. A script" in (tmp_path / "remark").read_text()
