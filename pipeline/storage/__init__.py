"""Object storage and the two kinds of dataset on it: scored, written shard by shard, and subset, written for trainers.

    filesystem, faults    open a URL; read so that a fault is never taken for absence; say what is wrong
    commit                the one way to make something visible: create if absent
    runs                  run.json: fingerprint and plan, for both kinds
    parts, manifest       scored: one object per shard, then _SUCCESS.json
    scored, duplicates    scored: read back, and find ids that repeat
    subset, subset_files  subset: Hugging Face and Parquet layouts

Nothing is renamed or overwritten, and readers never trust a listing. Loads neither Ray nor torch.
"""
