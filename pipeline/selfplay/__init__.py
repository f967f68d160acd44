"""Self-play: answers sampled from the policy, pairs made of them, prompts made of prompts, the next policy.

    rounds.py            the command: rounds of expansion, evolution and training; rounds_table.py shows them
    expansion.py         prompts -> candidates -> annotated -> pairs -> scored -> subset
    evolution.py         prompts of a subset -> new prompts
    policies.py          training, and measuring on held-out prompts
    plan.py              the stages that hold a model
    estimate.py          a config -> tokens and GPU-hours, before anything is loaded

From table to table, in the columns of `pipeline.schema`:

    held_out.py          given prompts -> those to train on, and those to measure on
    candidates.py        prompts -> K responses each; sampler.py says what an engine takes and gives
    annotate.py          responses -> rewards
    pairing.py           responses and rewards -> pairs
    evolve.py, filters   prompts of selected pairs -> new prompts; strategies and templates/ say how they are asked for
    evaluation.py        rewards of two policies on the same prompts -> win rate, with intervals
"""
