"""A demo that is real throughout: a small instruct model, preference pairs sampled from it, and a fitted reward model.

    prompts.jsonl              113 prompts written for this project, with facts that a right answer states
    pairs.jsonl                307 preference pairs sampled from SmolLM2-135M-Instruct
    reward_head.safetensors    a score head fitted on those pairs; its metadata says how well it orders held-out ones
    models.py                  both models, out of a wheel and this head
    pairs.yaml, self_play.yaml the configs, with paths to fill in
    run.py                     lays out data, models and a config in one folder, and runs that config

The scripts that made the data are in the repository, under jobs/demo_data. Nothing is imported here, so naming the
package loads neither torch nor transformers.
"""
