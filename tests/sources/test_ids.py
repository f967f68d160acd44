"""A pair's digest depends on its content and on nothing else."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.rows import content_digest
from tests.sources import layouts as to


def digest(p, tools=None):
    return content_digest(p["prompt"], p["chosen"], p["rejected"], tools)


def test_digest_of_a_known_pair_never_changes():
    assert digest(to.LONG_PAIR) == "066812b80facc0952d3d29c4aed3923b"


@given(to.pairs())
def test_digest_ignores_the_order_of_keys(p):
    turned = {side: [{"content": t["content"], "role": t["role"]} for t in turns] for side, turns in p.items()}
    assert digest(turned) == digest(p)
    assert re.fullmatch("[0-9a-f]{32}", digest(p))


@given(to.pairs())
def test_digest_tells_chosen_from_rejected_and_tools_from_none(p):
    swapped = {**p, "chosen": p["rejected"], "rejected": p["chosen"]}
    assert len({digest(p), digest(swapped), digest(p, "[]"), digest({**p, "prompt": p["prompt"] * 2})}) == 4


@given(st.characters(categories=["Cs"]))
def test_lone_surrogates_do_not_crash(surrogate):
    assert digest(to.pair(chosen=surrogate)) != digest(to.pair(chosen="?"))
