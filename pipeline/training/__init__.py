"""The next policy out of selected pairs, by TRL's trainers or by a command of the user's, in a process of its own.

job.py            what to train, as a value; `check_training` sees beforehand whether it could start
hook.py, leash    start that process, and end it with this one
run.py            the process itself: one training from start to end; workplace.py publishes the model
trl_trainer.py    training by TRL; trl_options are its arguments, precomputed takes scored reference log-probs, weighted
                  the weights of pairs
command.py        training by a command
pairs.py          the pairs to train on, read and tokenised

Naming the package imports none of them.
"""
