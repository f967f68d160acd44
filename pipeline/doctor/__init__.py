"""`alignpot doctor`: looks at a machine and at all that a config needs, and says what to do about each fault.

check       one check: a name, a look, a time limit
examine     which checks a config needs, and their findings as text or JSON
machine     versions, memory, scratch disk, GPUs
cluster     Ray: token mode, cluster, dashboard
data        source, stores, clock
hub         models, and the token of the hub
"""
