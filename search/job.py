"""The old name of `head.py`: feedrate 0.1 started its jobs as `python -m feedrate.search.job`. Remove it in the next release."""

import sys

from feedrate.search.head import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
