"""The name under which feedrate 0.1 started its jobs: `python -m feedrate.search.job`. Goes with the next release."""

import sys

from feedrate.search.head import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
