"""Where models go by their bytes: never more than the memory, never without a place, the same for the same bytes."""

import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pipeline.config import ClassifierReward, TorchModel, VllmModel
from pipeline.errors import ConfigError
from pipeline.models.fingerprints import num_bytes
from pipeline.models.layout import Need, choose_layout, in_words, needs_of
from tests.hub_server import Hub

GB = 10**9
CONTEXT = 1 << 30


def need(role: str, weights: float, *, work: float = 2, least: float = 0.5, replicas: int = 1) -> Need:
    sizes = {"weights": int(weights * GB), "work": int(work * GB), "least_work": int(least * GB)}
    return Need(role=role, replicas=replicas, **sizes)


NEEDS = st.lists(
    st.builds(
        need, st.sampled_from("abcd"), st.floats(0.1, 40), work=st.floats(0.5, 6), least=st.floats(0, 0.5),
        replicas=st.integers(1, 4),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
FREE = st.lists(st.integers(6 * GB, 80 * GB), min_size=1, max_size=5)


def least(each: Need) -> int:
    return each.weights + each.least_work + CONTEXT


def actors(layout, needs: list[Need], num_gpus: int) -> list[tuple[float, int]]:
    """GPUs and bytes of every actor. A model with a GPU of its own lowers its steps, as one does that takes turns."""
    if layout.placement == "pooled":
        on_its_own = sum(each.replicas for each in needs) <= num_gpus
        sizes = [least(each) if on_its_own else each.weights + each.work + CONTEXT for each in needs]
        numbers = [each.replicas for each in needs]
    else:
        together = sum(each.weights for each in needs) + max(each.work for each in needs) + CONTEXT
        sizes = [together if layout.placement == "colocated" else max(map(least, needs))]
        numbers = [max(each.replicas for each in needs)]
    shares = zip(layout.shares, sizes, numbers, strict=True)
    return [(share, size) for share, size, number in shares for _ in range(number)]


ONE_LARGE = need("a", 31.3, work=0.5, least=0.1)
TWO_SMALL = need("b", 0.4, work=1.4, least=0, replicas=2)
"""Two copies of both models do not fit 40 GB; one large model and two small ones do."""


@given(NEEDS, FREE, st.randoms(use_true_random=False))
@example([ONE_LARGE, TWO_SMALL], [40 * GB], random.Random(0))
def test_every_actor_finds_a_gpu_with_enough_memory_whatever_the_order(
    needs: list[Need], free: list[int], order: random.Random
):
    room = min(free)
    copies, largest = max(each.replicas for each in needs), max(map(least, needs))
    if largest > room:
        with pytest.raises(ConfigError, match="are free"):
            choose_layout(needs, free)
        return
    try:
        layout, refusal = choose_layout(needs, free), ""
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert "lower replicas to" in refusal
        assert -(-copies // len(free)) > room // largest
        return
    placed = actors(layout, needs, len(free))
    order.shuffle(placed)
    left, taken = [1.0] * len(free), [0] * len(free)
    for share, size in placed:
        gpus = [gpu for gpu, there in enumerate(left) if there >= share - 1e-9]
        assert gpus, (layout, placed)
        gpu = order.choice(gpus)
        left[gpu] -= share
        taken[gpu] += size
    assert max(taken) <= room
    assert choose_layout(needs, free) == layout


@given(NEEDS, st.integers(6 * GB, 80 * GB))
def test_models_of_one_process_share_its_gpu_or_take_turns(needs: list[Need], free: int):
    if any(least(each) > free for each in needs):
        with pytest.raises(ConfigError, match="takes"):
            choose_layout(needs, [free], one_process=True)
        return
    layout = choose_layout(needs, [free], one_process=True)
    together = sum(each.weights for each in needs) + max(each.work for each in needs) + CONTEXT
    assert layout.placement == ("colocated" if together <= free or len(needs) == 1 else "in_turn")


TWO_8B = [need("reward", 1.2), need("policy", 16), need("reference", 16)]


@pytest.mark.parametrize(
    ("needs", "free", "placement", "shares"),
    [
        (TWO_8B, [], "pooled", ()),
        (TWO_8B, [80] * 3, "pooled", (1.0, 1.0, 1.0)),
        (TWO_8B, [80], "pooled", (1 / 3, 1 / 3, 1 / 3)),
        (TWO_8B, [48], "pooled", (0.09, 0.398, 0.398)),
        (TWO_8B, [37], "colocated", (1.0,)),
        (TWO_8B, [23], "in_turn", (1.0,)),
        (TWO_8B, [25, 25], "pooled", (0.171, 0.763, 0.763)),
        ([need("reward", 16), *TWO_8B[1:]], [23, 23], "in_turn", (1.0,)),
        ([ONE_LARGE, TWO_SMALL], [40], "pooled", (0.822, 0.072)),
        ([need("policy", 20)], [23], "pooled", (1.0,)),
        ([need("policy", 3, replicas=3)], [23], "pooled", (1 / 3,)),
    ],
)
def test_models_are_apart_where_they_fit_then_together_then_in_turn(needs, free, placement, shares):
    layout = choose_layout(needs, [size * GB for size in free])
    assert layout.placement == placement
    assert layout.shares == pytest.approx(shares, abs=2e-3)
    assert placement in in_words(layout, needs, [size * GB for size in free])


def test_a_model_that_fits_no_gpu_and_too_many_copies_are_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"^policy takes 17\.6 GB of a GPU \(16\.0 GB of weights\), and 12\.0 GB are"):
        choose_layout(TWO_8B, [12 * GB])
    with pytest.raises(ConfigError, match=r"lower replicas to 2\."):
        choose_layout([need("policy", 16, replicas=3), need("reference", 16)], [23 * GB] * 2)


@pytest.mark.parametrize(("family", "classifier"), [("llama", False), ("gpt2", False), ("llama", True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_of_the_loaded_weights(family, classifier, dtype, tiny_model_dir):
    from transformers import AutoModelForSequenceClassification

    directory = tiny_model_dir(family, classifier=classifier)
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    loaded = auto.from_pretrained(directory, dtype=getattr(torch, dtype))
    expected = sum(weight.nbytes for weight in loaded.parameters())
    assert num_bytes(TorchModel(model=str(directory), dtype=dtype)) == expected


def test_bytes_of_a_model_on_the_hub_come_from_its_headers(hub: Hub, tiny_model_dir, tmp_path, monkeypatch):
    # Read when it is imported.
    urls = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }
    for name, value in {"HF_HUB_CACHE": str(tmp_path), **urls}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    directory = tiny_model_dir("llama")
    hub.add("org/tiny", {path.name: path.read_bytes() for path in directory.iterdir()})
    assert num_bytes(TorchModel(model="org/tiny")) == num_bytes(TorchModel(model=str(directory)))
    assert num_bytes(TorchModel(model="org/none")) is None
    assert not any("config.json" in request for request in hub.requests)


def test_numbers_by_hand_and_vllm_are_not_for_auto(tiny_model_dir):
    model = str(tiny_model_dir("llama"))
    policy = TorchModel(model=model)
    [found] = needs_of({"policy": policy, "reference": TorchModel(model=model, num_gpus=0)}) or []
    assert (found.role, found.weights) == ("policy", num_bytes(policy))
    assert found.least_work < found.work
    for other in (
        TorchModel(model=model, num_gpus=0.5),
        TorchModel(model=model, accelerator_type="L4"),
        VllmModel(backend="vllm", model=model),
        ClassifierReward(backend="classifier", model=model, num_gpus=1),
    ):
        assert needs_of({"policy": policy, "other": other}) is None
