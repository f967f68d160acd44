"""What happens to a shard between reading and committing, as plain functions from table to table.

A stage is a callable that takes the table of one shard and returns it with columns added; it returns every row
once, in order, and marks a row it cannot use as dropped instead of leaving it out. Stages know neither Ray nor
storage: `run_plain` is the plain loop, `pipeline.flows` puts the same stages into Ray actors.
"""
