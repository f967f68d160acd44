"""Steps: rows in, stages, parts out.

    step        one step: plan, pending shards, commits, manifest; plan: the stages of a step
    work        the stages over a shard, and the plain loop; guard: errors and hangs of a stage
    rows        marking rows as dropped; tokenise, score_stages, fp8_ranks: the stages of scoring
    score       the scored dataset; select: subsets of it; compare: metrics side by side
    summary, timeline: what a step did, in numbers

A stage is a callable that takes the table of one shard and returns it with columns added. It returns every row once, in
order, and marks a row that it cannot use as dropped. Steps know neither Ray nor a cluster: `pipeline.on_ray` puts the
same stages into actors.
"""
