"""Self-play's own part: answers sampled from the policy, pairs made of them, prompts made of prompts.

    sampler.py           what a sampling engine takes and gives; vllm_sampler and transformers_sampler are the engines
    held_out.py          given prompts -> those to train on, and those to measure on
    candidates.py        prompts -> K responses each
    annotate.py          responses -> rewards
    pairing.py           responses and rewards -> pairs
    evolve.py, filters   prompts of selected pairs -> new prompts; strategies and templates/ say how they are asked for
    evaluation.py        rewards of two policies on the same prompts -> win rate, with intervals; rounds_table
    estimate.py          a config -> tokens and GPU-hours, before anything is loaded

Functions from table to table, in the columns of `pipeline.schema`. Knows nothing of Ray.
"""
