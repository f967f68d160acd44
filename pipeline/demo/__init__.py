"""A demo that is real throughout: a small instruct model, preference pairs sampled from it, and a fitted reward model.

    prompts.jsonl              113 prompts written for this project, with facts that a right answer states
    pairs.jsonl                preference pairs sampled from SmolLM2-135M-Instruct (sample_pairs.py says how)
    reward_head.safetensors    a score head fitted on those pairs (reward.py says what it is worth)
    smollm2.py                 the policy, out of a wheel
    run.py                     puts all of it and a config into one folder

Nothing is imported here, so that naming the package loads neither torch nor transformers.
"""
