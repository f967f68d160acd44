"""Models: loading, prompts, packing, and the engines that score completions and dialogues.

    loading             tokenizers and models of config sections; adapters: what comes with an adapter; shared: one
                        set of weights with and without it; fingerprints
    cpu, fp8            dtypes and memory of a CPU; layers in 8 bits
    prompts             messages to token ids: chat templates, response marks, truncation
    layout              how models share GPUs, by the bytes of each
    first_rows          what the first rows show of texts and template
    packing             groups of completions of one prompt to flat steps without padding (numpy only)
    backbone            the decoder, run one packed step or one sequence at a time; attention, layers: how
    engine              numbers in steps that fit memory, compared with the model's own forward; agreement: how far off
                        they may be
    scores              what an engine gives: numbers, and reasons for those left out
    logprobs, rewards   the two engines; vllm_scoring, vllm_logprobs, vllm_rewards: by vLLM, for models larger than one
                        GPU; vllm_engine: its environment and arguments
    vllm_chat           answers of a chat model in this process

Nothing is imported here: torch and transformers load with the module that needs them.
"""
