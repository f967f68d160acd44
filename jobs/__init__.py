"""What is run from a checkout and is no part of the wheel: scripts for `ray job submit`, a study, makers of data."""
