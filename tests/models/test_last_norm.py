"""In half precision on CPU the head reads what the final norm gives in float32."""

import pytest
import torch

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import response_step
from tests.fixtures_models import tiny_model


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "olmo2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_half_precision_head_reads_is_not_rounded_by_the_final_norm(family, dtype, groups):
    model = tiny_model(family).to(dtype)
    read = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    engine = LogprobEngine(model)
    assert engine.kernel == "sdpa"
    step = response_step(groups[:1])
    hidden = engine._backbone.hidden_rows(step)
    assert hidden.dtype == torch.float32
    read.clear()
    engine._backbone.forward_one(groups[0][0])
    own = read[0][0, step.rows[0]].float()
    assert not torch.equal(hidden[0], hidden[0].to(dtype).float())
    torch.testing.assert_close(hidden[0], own, rtol=0.1, atol=0.1)
