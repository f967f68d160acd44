"""The only folder that imports Ray.

session    joins or starts a cluster; placement: which model runs on which GPUs
engine     the stages of a step as pools of actors; envelope: how a shard travels between them
deaths     what happens to rows that kill their worker
tasks      functions of one item as Ray tasks; remote: one call on a node of the cluster
submit     jobs of a cluster through its Job API
"""
