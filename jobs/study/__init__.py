"""How good are the ways to set the explicit/implicit ratio? A study, run by `python -m jobs.study`.

    worlds     simulated preference worlds, in which the true reward is known
    train      policies trained by the objective on selected pairs
    trials     one world, one seed: score, select by every rule, train, measure
    compare    means, intervals and paired differences over seeds
    table      Markdown and JSON
    scored     what each way does to a real scored dataset

The study of trainings with a real language model is run by `python -m jobs.study.training`, which has its plan.

    training   command line, scales, the loop over cells
    cells      which cells there are
    runner     one cell: pool, scores, selection, training, measurement
    lab        models and prompts in memory
    batched    answers to many prompts at once
    evidence   intervals, corrections, power
    findings   its Markdown

No method sees what training on its selection gives. Margins, potential and ratios are those of `pipeline.metrics`.
"""
