"""The numbers that engines must give: transformers' own forward, one sequence at a time, float64 from the logits on."""

import numpy as np
import torch

from pipeline.models.packing import Completion


def plain_sums(model, groups: list[list[Completion]], attention: str = "eager") -> np.ndarray:
    """Log-softmax over the whole vocabulary of each sequence's own forward, in float64."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(attention)
    sums = []
    for completion in (c for group in groups for c in group):
        ids = torch.as_tensor(completion.ids, dtype=torch.int64)
        with torch.no_grad():
            logp = model(ids[None]).logits[0].double().log_softmax(-1)
        targets = ids[completion.start :]
        sums.append(logp[completion.start - 1 : -1].gather(1, targets[:, None]).sum().item())
    return np.asarray(sums)


def plain_rewards(model, groups: list[list[Completion]]) -> np.ndarray:
    """The one logit of each dialogue's own forward."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return np.asarray(
            [model(torch.as_tensor(c.ids, dtype=torch.int64)[None]).logits.item() for group in groups for c in group]
        )


def num_read(groups: list[list[Completion]]) -> np.ndarray:
    """Response tokens of each sequence."""
    return np.asarray([len(c.ids) - c.start for group in groups for c in group])


def rows_stand_alone(dtype: torch.dtype) -> bool:
    """Whether a row of a matrix product has the same bits whatever rows are multiplied with it.

    Not so in half precision on CPUs with tiles (AMX), where the number of rows decides how a product is computed.
    """
    tiles = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
    return dtype not in tiles or not getattr(torch.cpu, "get_capabilities", dict)().get(tiles[dtype])
