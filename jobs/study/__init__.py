"""How good are the ways to set the explicit/implicit ratio? A study, run by `python -m jobs.study`.

    worlds     simulated preference worlds, in which the true reward is known
    train      policies trained by the objective on selected pairs
    trials     one world, one seed: score, select by every rule, train, measure
    compare    means, intervals and paired differences over seeds
    table      Markdown and JSON
    scored     what each way does to a real scored dataset

No method sees what training on its selection gives. Margins, potential and ratios are those of `pipeline.metrics`.
"""
