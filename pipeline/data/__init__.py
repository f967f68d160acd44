"""Datasets on disks and object stores: how they are written, committed, read and checked.

    place         a folder or object that a URL names; tells a fault from a missing object
    hub           datasets of the Hugging Face Hub as files, for sources (s3: the client of S3)
    tables        tables of Iceberg, Delta and Lance, for sources: a snapshot as files (snapshots, iceberg, delta,
                  lance; table_libraries: how their libraries are reached)
    commit        the one way to make something visible: create if absent
    run           claim (run.json), what is done, manifest last: for everything that writes
    manifest      _SUCCESS.json: what a complete run says of itself
    sealed        JSON objects with a digest of their content
    parts         one Parquet object a shard, kept and dropped rows together
    files         files for others: Hugging Face, Parquet, JSON Lines (formats in writers)
    dataset       reads any complete dataset by its manifest
    verify        checks a dataset whole; lazy: where the datasets of a lazy run lie

Nothing is renamed or overwritten, and readers never trust a listing. Loads neither Ray nor torch.
"""
