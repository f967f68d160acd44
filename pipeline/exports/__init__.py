"""A complete subset in the layouts of trainers: one file a format, each a function from rows to rows.

    formats.py       the formats by name
    layout.py        what a format is, and what it may rely on
    turns.py         checks of dialogues that several formats share
    survey.py        what the rows have, and which of them a format cannot hold
    export.py        the command; files and manifest are written as those of a subset

A row that a format cannot hold is never bent into shape: it is counted, named by id, and refused or left out. Knows
nothing of Ray, torch or the trainers.
"""
