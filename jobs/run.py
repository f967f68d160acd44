"""Score, select and report in one job: `python jobs/run.py CONFIG.yaml [--set ...]`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
