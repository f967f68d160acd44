"""The flows from config to result: score, select, run. The only folder that knows Ray."""
