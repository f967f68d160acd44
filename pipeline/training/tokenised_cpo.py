"""TRL's CPOTrainer on token ids that are there already.

By itself it tokenises by a rule older than that of TRL's DPOTrainer: BOS and EOS are added where the template ends
otherwise, so that the margin it trains would be that of other tokens than were scored.
"""

from typing import Any

from trl.experimental.cpo import CPOTrainer


class TokenisedCPOTrainer(CPOTrainer):  # type: ignore[misc]
    """Takes a dataset with the columns of `pairs.TOKEN_COLUMNS` alone."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """What the parent makes of a row of text: ids, mask and labels of both sides, and of the prompt."""
        batch: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            ids, start = feature[f"{side}_ids"], feature[f"{side}_start"]
            batch[f"{side}_input_ids"] = ids
            batch[f"{side}_attention_mask"] = [1] * len(ids)
            batch[f"{side}_labels"] = [-100] * start + ids[start:]
        prompt = feature["chosen_ids"][: feature["chosen_start"]]
        return {**batch, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
