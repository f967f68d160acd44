"""Select a subset of a scored dataset: `python jobs/select_pairs.py CONFIG.yaml [--set ...]`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["select", *sys.argv[1:]])
