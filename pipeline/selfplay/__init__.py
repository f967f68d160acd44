"""Self-play: answers sampled from the policy, pairs made of them, prompts made of prompts, the next policy.

    rounds.py        the command: rounds of expansion, evolution and training; rounds_table.py shows them
    expansion.py     prompts -> subset of pairs; prompts of a subset -> new prompts
    policies.py      training, and measuring on held-out prompts
    estimate.py      a config -> tokens and GPU-hours, before anything is loaded

From table to table, in the columns of `pipeline.schema`:

    held_out.py      given prompts -> those to train on, and those to measure on
    candidates.py    prompts -> K responses each; sampler.py says what an engine takes and gives
    annotate.py      responses -> rewards
    combined.py      several rewards -> one of each response, to pick pairs by
    pairing.py       responses and rewards -> pairs
    evolve.py        prompts of selected pairs -> drafts of new prompts; templates/ say how they are asked for
    filters.py       drafts -> new prompts; language.py tells languages apart
    evaluation.py    rewards of two policies on the same prompts -> win rate, with intervals
"""
