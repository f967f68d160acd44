"""Score preference pairs on the Ray cluster this job runs on: `python jobs/score_pairs.py CONFIG.yaml [--set ...]`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
