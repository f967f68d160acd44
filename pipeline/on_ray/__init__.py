"""The only folder that imports Ray.

session    joins or starts a cluster; placement: which model runs on which GPUs
engine     a step as a Ray dataset; actors: what its processes do with a shard
deaths     what happens to rows that kill their worker
metrics    numbers of a run for Prometheus
tasks      functions of one item as Ray tasks
shipment   what a submitted job consists of; submit: sends it; jobs: status, logs and stop
probe      whether a cluster takes us
"""
