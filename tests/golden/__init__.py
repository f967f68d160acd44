"""What must not move: scores of real models and the rows of selections, written down.

After a change that is meant to move them: python -m tests.golden
"""
