"""Who is told what a command does: a lineage service and a function of the user.

    observed      the one seam: a command says what it begins, what it made and how it ended
    facts         what it says: datasets read and written, counts, figures, reports
    lineage       events of OpenLineage; events: how facts become them; parents: the run that started this one
    track         the function that `run.track` names

Neither can fail a run.
"""
