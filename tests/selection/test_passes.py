"""What runs the passes, and how the rows lie, never moves a bit of a selection."""

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.config import Metric, Select
from pipeline.errors import DataError
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.selection import Query, Threads, fit, select_many, summarise
from tests.metrics.tables import OF_ONE_REWARD, agreeing_table
from tests.selection.sources import SIMPO, CountedSource, ElsewherePasses, margins, source_of, with_columns, with_texts

RATIOS = list(RATIO_METHODS)
SETTINGS = [
    *(Metric(name=name) for name in OF_ONE_REWARD if name != "potential"),
    Metric(name="implicit", order="largest"),
    Metric(name="explicit", explicit="candidates"),
    *(Metric(normalise=n, weight=1.5) for n in ("zscore", "robust", "rank", "none")),
    Metric(weight=0.0),
    *(Metric(normalise="zscore", weight="auto", ratio=r) for r in RATIOS),
    *(Metric(normalise=n, weight="auto", ratio=r) for n in ("robust", "none") for r in ("std", "whitening")),
    Metric(explicit="candidates", implicit="signed"),
    Metric(explicit="absolute", weight="auto", ratio="whitening"),
    *(Metric(length=length) for length in ("residual", "residual_monotone")),
]
RULES = [
    Select(fraction=0.3),
    Select(k=7),
    Select(fraction=0.5, group_by="origin"),
    Select(k=12, group_by="origin", quotas="equal", labels="drop"),
    Select(fraction=0.4, labels="drop"),
    Select(min_score=-1.0, max_score=5.0, labels="swap"),
    Select(fraction=0.5, min_score=-2.0),
    Select(fraction=0.6, per_prompt=2),
    Select(fraction=0.6, deduplicate="exact"),
]
KEEPING_LABELS = [rule for rule in RULES if rule.labels == "keep"]
"""For metrics that are fitted to labels: the reward contradicts none of those that are treated."""


def named(metric: Metric) -> str:
    return "-".join(str(value) for value in metric.model_dump(exclude_defaults=True).values()) or "default"


def rows(seed: int, num_rows: int = 70) -> pa.Table:
    """Scored rows, many of which tie, some without a reward, of three origins and none; a few come again at the end."""
    table = agreeing_table(num_rows, seed=seed)
    rng = np.random.default_rng(seed)
    rewards = np.round(table.column("reward_chosen").to_numpy(), 1)
    rewards[rng.random(num_rows) < 0.03] = np.nan
    repeated = rng.random(num_rows) < 0.3
    replaced = {"reward_chosen": rewards, "reward_rejected": np.round(table.column("reward_rejected").to_numpy(), 1)}
    for side, mean in (("chosen", -1.0), ("rejected", -1.5)):
        tokens = table.column(f"num_tokens_{side}").to_numpy()
        logps = table.column(f"policy_logp_{side}").to_numpy()
        replaced[f"policy_logp_{side}"] = np.where(repeated, mean * tokens, logps)
    origins = rng.choice(["code", "chat", "math", None], num_rows, p=[0.4, 0.4, 0.15, 0.05])
    table = with_columns(
        with_texts(
            agreeing_table(num_rows, seed=seed, **replaced),
            [f"p{i}" for i in rng.integers(0, num_rows // 3, num_rows)],
            [f"text {i}" for i in rng.integers(0, num_rows, num_rows)],
        ),
        {"origin": pa.array(origins, pa.string()), schema.CONTENT_DIGEST: [f"content {i}" for i in range(num_rows)]},
    )
    return pa.concat_tables([table, table.slice(num_rows // 2, 4)])


def reports(scored, metric, rules=RULES, passes=None):
    """What selections keep and everything that is reported of them."""
    queries = [Query(objective=SIMPO, metric=metric, rule=rule) for rule in rules]
    return [summarise(each, scored, num_examples=3) for each in select_many(scored, queries, passes)]


@pytest.mark.parametrize("metric", SETTINGS, ids=named)
def test_order_parts_blocks_and_threads_do_not_move_a_bit(metric, monkeypatch):
    monkeypatch.setattr(fit, "DRAWN_ROWS", 40)
    table = rows(SETTINGS.index(metric) % 4)
    others = (KEEPING_LABELS if metric.ratio == "bradley-terry" else RULES)[1:]
    rules = [RULES[0], others[SETTINGS.index(metric) % len(others)]]
    usual = reports(source_of(table), metric, rules)

    @settings(max_examples=2, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.randoms(use_true_random=False),
        st.lists(st.floats(0, 1), max_size=5),
        st.sampled_from([Threads(num_threads=1), Threads(num_threads=2), ElsewherePasses()]),
    )
    def check(random, cuts, passes):
        order = random.sample(range(table.num_rows), table.num_rows)
        sizes = tuple(random.randint(1, 40) for _ in range(5))
        scored = CountedSource(table.take(order), sizes, tuple(cuts))
        assert reports(scored, metric, rules, passes) == usual

    check()


def test_margins_without_spread_are_refused_by_name():
    with pytest.raises(DataError, match="margin_explicit has no spread"):
        reports(CountedSource(margins([1.0] * 100)), Metric(), [Select(fraction=0.4)])


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_give_results_in_the_order_of_the_items(num_threads):
    assert "".join(Threads(num_threads=num_threads).map(str.upper, LETTERS)) == LETTERS.upper()


def test_threads_work_on_several_items_at_a_time():
    both = threading.Barrier(2, timeout=30)

    def meet(item):
        both.wait()
        return item

    assert [*Threads(num_threads=2).map(meet, "abcd")] == [*"abcd"]


def test_threads_raise_the_first_error_and_start_few_items_after_it():
    started = []

    def fail_at_c(item):
        started.append(item)
        if item == "c":
            raise ValueError("c is bad")
        return item

    results = Threads(num_threads=2).map(fail_at_c, LETTERS)
    assert (next(results), next(results)) == ("a", "b")
    with pytest.raises(ValueError, match="c is bad"):
        list(results)
    assert len(started) < 12


def test_threads_hold_few_results_at_a_time():
    done = []
    results = Threads(num_threads=2).map(done.append, LETTERS)
    next(results)
    results.close()
    assert len(done) <= 5


def test_one_item_needs_no_thread():
    assert [*Threads(num_threads=4).map(lambda _: threading.get_ident(), "a")] == [threading.get_ident()]
