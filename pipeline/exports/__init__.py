"""A complete subset in the formats of trainers, on the Hugging Face Hub, and in tables of data platforms.

    formats.py       the formats by name; each one is an `ExportFormat` in the file of its trainer
    layout.py        what a format is, and checks that several formats share
    export.py        the command; files and manifest are written like those of a subset
    hub.py, card.py  a subset pushed to the hub in one commit, and its card
    tables/          rows published in a table of Iceberg, Delta Lake or Lance in one commit
    parquet.py       the Parquet files that both write

A pair that a format cannot hold is never changed to fit: it is counted, named by id, and refused or left out. Nothing
here loads Ray, torch or a trainer.
"""
