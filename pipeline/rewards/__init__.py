"""Where rewards come from: one back end for each kind of `reward` section that alignpot runs itself.

    backend      what other code asks of a reward; dialogues and scorers
    registry     the back end of a section
    classifier   a reward model in this process
    http         a client of HTTP services: many requests at once, retries, deadlines
    cache        paid answers on storage
    answers      rows to requests, from the cache or the service
    function     a function of the user's; callers: in this process or in one of its own; worker: that process

A back end is cheap to make. It loads models and functions only where it builds its scorer, in the process that scores.
"""
