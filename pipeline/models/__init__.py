"""Models: loading, prompts, packing, and the engines that score completions and dialogues.

    loading         tokenizers, models and adapters from configs; their fingerprints
    prompts         messages -> token ids, the one place of chat templates, response marks and truncation
    packing         groups of completions with one prompt -> flat steps without padding (numpy only)
    attention       exact attention over such a step, registered with transformers
    logprobs        summed log-probabilities of completions under a causal language model
    rewards         scores of dialogues under a sequence classifier
    engines         both from their config sections

Nothing is imported here: torch and transformers load with the module that needs them.
"""
