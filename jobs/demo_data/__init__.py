"""How the demo's data was made, and how to make it again.

sample_pairs    pipeline/demo/pairs.jsonl out of prompts.jsonl: answers of SmolLM2, paired by judge.py
judge           the rules that label those pairs
fit_reward      pipeline/demo/reward_head.safetensors, fitted on those pairs
"""
