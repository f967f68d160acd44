"""Subsets and scored datasets as rows of tables: `alignpot publish` and `output.table`.

    publish.py       the command: look, refuse or commit, look again if somebody else was faster
    table.py         what a table of any format is to it, and the column types that formats hold
    rows.py          the rows, and the Parquet files that hold them
    iceberg.py, delta.py, lance.py    the formats; each one imports its library

A format writes the files first, where no reader sees them, and then makes one commit. The commit holds the digest of
the rows' fingerprint. It fails if the table has changed since it was looked at. So of two publishers one is first, and
the other finds the digest.
"""
