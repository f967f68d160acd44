"""Steps: rows in, stages, parts out.

    work          stages, and the plain loop; placed: where models go on GPUs; guard: errors and hangs of a stage;
                  shards: the rows they work on
    step          one step: plan, pending shards, commits, manifest
    rows          marks rows as dropped; score_stages, reward_stage, fp8_ranks: the stages of scoring
    score         the scored dataset; rows_to_score: what it reads; lazy, lazy_rows: rounds that score only what can be
                  selected; grouped: shards by prompt; dry_run: what it would take; refusals: what a chat template says
                  in refusing rows
    reward        rewards alone; annotate: their stages, also of self-play; prompts: prompts by their rewards
    select        subsets; pages: their pages, written again; compare: metrics side by side; calibrate: two configs side
                  by side; suspicious: pairs for people to look at
    summary       what a run did; totals: what its shards took; told: what observers hear

A stage is a callable that takes the table of one shard and returns it with more columns. It returns every row once, in
order, and marks unusable rows as dropped. Steps know neither Ray nor a cluster: `pipeline.on_ray` puts the same stages
into actors.
"""
