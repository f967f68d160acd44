"""Where rewards come from: one back end for each kind of `reward` section that alignpot runs itself.

    backend      what other code asks of a reward; dialogues and scorers
    registry     the back end of a section
    classifier   a reward model in this process; vllm: the same by vLLM
    endpoint     a reward model behind a server; kinds: what each server takes and gives; probe: whether it is the same
    judge        a chat model that compares or rates answers; judge_prompts: what it is asked, how its verdicts are read
    vllm_judge   the same run by vLLM in this process
    answers      rows to requests, from the cache or the service
    cache        paid answers on storage
    http         a client of HTTP services: many requests at once, retries, deadlines; replies: what a reply means
    function     a function of the user's; callers: in this process or in one of its own; worker: that process

A back end is cheap to make. It loads models and functions only where it builds its scorer, in the process that scores.
"""
