"""Steps: rows in, stages, parts out.

    work          stages, and the plain loop; guard: errors and hangs of a stage; shards: the rows they work on
    step          one step: plan, pending shards, commits, manifest
    rows          marks rows as dropped; score_stages, reward_stage, fp8_ranks: the stages of scoring
    score         the scored dataset; lazy, lazy_rows: rounds that score only what can be selected; summary: what a run
                  did; select: subsets; compare: metrics side by side

A stage is a callable that takes the table of one shard and returns it with more columns. It returns every row once, in
order, and marks unusable rows as dropped. Steps know neither Ray nor a cluster: `pipeline.on_ray` puts the same stages
into actors.
"""
