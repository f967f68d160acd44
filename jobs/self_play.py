"""Self-play, all rounds, on the Ray cluster this job runs on: `python jobs/self_play.py CONFIG.yaml [--set ...]`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["self-play", *sys.argv[1:]])
