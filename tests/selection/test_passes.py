"""What runs the passes, and how the rows lie, never moves a bit of a selection."""

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Objective, Select
from pipeline.errors import DataError
from pipeline.metrics import METRICS
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.selection import Query, Threads, samples, select_many, source, threshold
from pipeline.selection.source import Part
from tests.metrics.tables import agreeing_table, scored_table
from tests.selection.sources import CountedSource, ElsewherePasses, source_of

RATIOS = list(RATIO_METHODS)
SETTINGS = [
    *(Metric(name=name) for name in METRICS if name != "potential"),
    Metric(name="implicit", order="largest"),
    Metric(name="explicit", explicit="candidates"),
    *(Metric(normalise=n, weight=1.5) for n in ("zscore", "robust", "rank", "none")),
    Metric(weight=0.0),
    *(Metric(normalise="zscore", weight="auto", ratio=r) for r in RATIOS),
    *(Metric(normalise=n, weight="auto", ratio=r) for n in ("robust", "none") for r in ("std", "whitening")),
    Metric(explicit="candidates", implicit="signed"),
    Metric(explicit="absolute", weight="auto", ratio="whitening"),
]
RULES = [
    Select(fraction=0.3),
    Select(k=7),
    Select(fraction=0.5, group_by="origin"),
    Select(k=12, group_by="origin", quotas="equal", labels="drop"),
    Select(fraction=0.4, labels="drop"),
    Select(min_score=-1.0, max_score=5.0, labels="swap"),
    Select(fraction=0.5, min_score=-2.0),
]
KEEPING_LABELS = [rule for rule in RULES if rule.labels == "keep"]
"""For metrics that are fitted to labels: the reward contradicts none of those that are treated."""


def named(metric: Metric) -> str:
    return "-".join(str(value) for value in metric.model_dump(exclude_defaults=True).values()) or "default"


def rows(seed: int, num_rows: int = 70) -> pa.Table:
    """Scored rows, many of which tie, some without a reward, of three origins and none."""
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
    return agreeing_table(num_rows, seed=seed, **replaced).append_column(
        "origin", pa.array(rng.choice(["code", "chat", "math", None], num_rows, p=[0.4, 0.4, 0.15, 0.05]), pa.string())
    )


def found(scored, metric, rules=RULES, passes=None):
    queries = [Query(objective=Objective(), metric=metric, rule=rule) for rule in rules]
    return [selection.to_dict() for selection in select_many(scored, queries, passes=passes)]


@pytest.mark.parametrize("metric", SETTINGS, ids=named)
def test_order_parts_blocks_and_threads_do_not_move_a_bit(metric, monkeypatch):
    monkeypatch.setattr(samples, "DRAWN_ROWS", 40)
    usual = {}
    some = RULES[1 + SETTINGS.index(metric) % 3 :: 3]  # each rule with a third of the metrics
    rules = [RULES[0], *(KEEPING_LABELS[1:3] if metric.ratio == "bradley-terry" else some)]

    @settings(max_examples=2, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.integers(0, 3),
        st.randoms(use_true_random=False),
        st.lists(st.floats(0, 1), max_size=5),
        st.sampled_from([Threads(num_threads=1), Threads(num_threads=2), ElsewherePasses()]),
        st.sampled_from([7, 16, 1000]),
        st.sampled_from([0, 40, 2**18]),
    )
    def check(seed, random, cuts, passes, block_rows, held):
        table = rows(seed)
        if seed not in usual:
            usual[seed] = found(source_of(table), metric, rules)
        order = list(range(table.num_rows))
        random.shuffle(order)
        sizes = tuple(random.randint(1, 40) for _ in range(5))
        shuffled = table.take(order)
        with monkeypatch.context() as patch:
            patch.setattr(source, "BLOCK_ROWS", block_rows)
            patch.setattr(threshold, "_BUFFER", held)
            scored = CountedSource(shuffled, sizes, tuple(cuts), sampled=shuffled.slice(0, random.randint(0, 60)))
            assert found(scored, metric, rules, passes) == usual[seed]

    check()


def test_a_threshold_of_a_single_reading_is_that_of_the_general_search(monkeypatch):
    monkeypatch.setattr(source, "BLOCK_ROWS", 500)
    table = agreeing_table(3000)
    rules = [Select(fraction=fraction) for fraction in (0.01, 0.3, 0.9)]
    for metric in (Metric(), Metric(weight=2.5, implicit="signed"), Metric(weight="auto", ratio="std")):
        guessed, general = CountedSource(table, (999,), sampled=table.slice(0, 2000)), CountedSource(table, (999,))
        assert found(guessed, metric, rules) == found(general, metric, rules)
        assert len(guessed.readings) == 2  # the survey settles it; the other reading is of the kept ids
        assert len(general.readings) > 2


def test_a_sample_that_misleads_costs_readings_and_nothing_else():
    table = rows(0, 400)
    expected = found(source_of(table), Metric(weight=2.5))
    order = np.argsort(table.column("reward_chosen").to_numpy())
    for sampled in (table.take(order[:50]), table.take(order[-80:]), table.take(order[[0, 1] * 50])):
        misled = CountedSource(table, (300,), sampled=sampled)
        assert found(misled, Metric(weight=2.5)) == expected


def test_a_sample_without_spread_costs_readings_and_nothing_else():
    table = agreeing_table(300)
    for sampled in (table.take([7] * 50), pa.concat_tables([table.take([7] * 7), table.slice(0, 60)])):
        misled = CountedSource(table, (1, 7, 300), sampled=sampled)
        assert found(misled, Metric(), [Select(fraction=0.4)]) == found(
            source_of(table), Metric(), [Select(fraction=0.4)]
        )


def test_margins_without_spread_are_refused_by_name_whatever_a_sample_says():
    table = scored_table(reward_chosen=[1.0] * 100, reward_rejected=[0.0] * 100)
    with pytest.raises(DataError, match="margin_explicit has no spread"):
        found(CountedSource(table, sampled=table), Metric(), [Select(fraction=0.4)])


def parts_with(values):
    return [Part(source=source_of(pa.table({"id": [value]}))) for value in values]


def id_of(part):
    return next(part.blocks(["id"])).rows.column("id")[0].as_py()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_give_results_in_the_order_of_the_parts(num_threads):
    names = [f"{i}" for i in range(50)]
    assert list(Threads(num_threads=num_threads).run(id_of, parts_with(names))) == names


def test_threads_work_on_several_parts_at_a_time():
    both = threading.Barrier(2, timeout=30)

    def meet(part):
        both.wait()
        return id_of(part)

    assert list(Threads(num_threads=2).run(meet, parts_with("abcd"))) == ["a", "b", "c", "d"]


def test_threads_raise_the_first_error_and_start_few_parts_after_it():
    started = []

    def fail_at_c(part):
        started.append(id_of(part))
        if started[-1] == "c":
            raise ValueError("c is bad")
        return started[-1]

    results = Threads(num_threads=2).run(fail_at_c, parts_with("abcdefghijklmnopqrstuvwxyz"))
    assert next(results) == "a"
    assert next(results) == "b"
    with pytest.raises(ValueError, match="c is bad"):
        list(results)
    assert len(started) < 12


def test_threads_hold_few_results_at_a_time():
    done = []

    def note(part):
        done.append(id_of(part))
        return done[-1]

    results = Threads(num_threads=2).run(note, parts_with("abcdefghijklmnopqrstuvwxyz"))
    next(results)
    results.close()
    assert len(done) <= 5


def test_a_table_of_one_part_needs_no_thread():
    threads = set()

    def note(part):
        threads.add(threading.get_ident())
        return id_of(part)

    assert list(Threads(num_threads=4).run(note, parts_with("a"))) == ["a"]
    assert threads == {threading.get_ident()}
