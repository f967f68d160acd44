"""Several sources in one run: each read as it alone would be, in their proportion, with its name as a column."""

import itertools
from collections import Counter
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import select
from pipeline.config import Config, parse_config
from pipeline.data.dataset import Dataset
from pipeline.errors import ConfigError, FingerprintError, SchemaError
from pipeline.sources.mix import mixed_sizes
from pipeline.steps.score import check_dropped, prepare_score, score
from tests.sources import layouts as to


def pair(n: int, **more) -> dict:
    return {**to.pair(prompt=f"Question {n}?"), "reward_chosen": float(n), "reward_rejected": 0.5, **more}


@pytest.fixture
def folders(tmp_path):
    """Three sources of different formats, containers and columns, with ids that repeat across them."""
    for name in "abc":
        (tmp_path / name).mkdir()
    to.write_jsonl(tmp_path / "a/x.jsonl", [pair(n, key=n, topic="t") for n in range(40)])
    texts = [
        {"prompt": f"What is {n}?", "chosen": "yes", "rejected": "no", "reward_chosen": 1.0, "reward_rejected": n / 9}
        for n in range(10)
    ]
    pq.write_table(
        pa.Table.from_pylist([{**row, "key": str(n), "stars": n} for n, row in enumerate(texts)]),
        tmp_path / "b/x.parquet",
    )
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
        }
    ]
    to.write_jsonl(
        tmp_path / "c/x.jsonl",
        [{**pair(n), "chosen": call, "tools": tools} for n in range(100, 105)] + [{"prompt": None}],
    )
    return tmp_path


def config_of(folder, sources, **more) -> Config:
    return parse_config({
        "sources": [{"path": str(folder / source["name"]), **source} for source in sources],
        "reward": {"backend": "columns"},
        "metric": {"name": "explicit"},
        "scored": str(folder / f"scored-{more.pop('to', 'x')}"),
        "run": {"engine": "plain", "shard_rows": 7, "max_dropped": 0.2},
        **more,
    })  # fmt: skip


def scored_of(config: Config) -> Dataset:
    prepared = prepare_score(config)
    _, manifest = score(*prepared)
    check_dropped(config, manifest)
    return Dataset(prepared[-1].place, manifest)


def test_each_source_is_read_as_it_alone_would_be(folders):
    named = [{"name": "a", "passthrough": ["topic"]}, {"name": "b", "passthrough": ["stars"]}, {"name": "c"}]
    mixed = scored_of(config_of(folders, named)).table()
    assert Counter(mixed["source_name"].to_pylist()) == {"a": 40, "b": 10, "c": 5}
    assert mixed["stars"].to_pylist()[:41] == [None] * 40 + [0]
    assert mixed["topic"].to_pylist()[39:41] == ["t", None]
    for source in named:
        alone = scored_of(config_of(folders, [source], to=source["name"])).table()
        part = mixed.filter(pa.compute.equal(mixed["source_name"], source["name"])).select(alone.column_names)
        assert part.drop_columns(["prompt", "chosen", "rejected"]).equals(
            alone.drop_columns(["prompt", "chosen", "rejected"])
        )
        for side in ("prompt", "chosen", "rejected"):  # messages have the fields of all sources
            bare = [
                [{k: v for k, v in turn.items() if v is not None} for turn in turns] for turns in part[side].to_pylist()
            ]
            assert bare == [
                [{k: v for k, v in turn.items() if v is not None} for turn in turns]
                for turns in alone[side].to_pylist()
            ]
    half = select(str(folders / "scored-x"), k=6, metric="explicit", group_by="source_name", quotas="equal").to_arrow()
    assert Counter(half["source_name"].to_pylist()) == {"a": 2, "b": 2, "c": 2}


def test_ids_of_a_column_need_be_unique_in_their_source_alone(folders):
    config = config_of(folders, [{"name": "a", "id_column": "key"}, {"name": "b", "id_column": "key"}, {"name": "c"}])
    ids = scored_of(config).table()["id"].to_pylist()
    assert ids[:50] == [f"a:{n}" for n in range(40)] + [f"b:{n}" for n in range(10)]
    assert all(len(id_) == 32 for id_ in ids[50:])


def test_weights_and_limits_say_how_many_rows_are_taken(folders):
    named = [{"name": "a", "weight": 2, "limit": 30}, {"name": "b", "weight": 1}]
    dataset = scored_of(config_of(folders, named))
    assert Counter(dataset.table()["source_name"].to_pylist()) == {"a": 20, "b": 10}
    assert dataset.manifest.drops == {"source": {"beyond_limit": 20}}
    assert dataset.manifest.fraction_dropped == 0
    only = scored_of(config_of(folders, [{"name": "a", "limit": 3, "where": "key > 5"}, {"name": "c"}], to="y"))
    assert Counter(only.table()["source_name"].to_pylist())["a"] <= 3
    assert only.manifest.config["sources"][0]["where"] == "key > 5"


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.integers(1, 500), st.sampled_from([0.1, 0.3, 1.0, 2.5])), min_size=1
    )
)
def test_a_mix_is_the_largest_in_its_proportion(sources):
    sizes = mixed_sizes({name: n for name, (n, _) in sources.items()}, {name: w for name, (_, w) in sources.items()})
    assert all(1 <= sizes[name] <= n for name, (n, _) in sources.items())
    whole = min(Fraction(n) / Fraction(str(weight)) for n, weight in sources.values())
    assert any(sizes[name] == n for name, (n, _) in sources.items())
    for (one, (_, weight)), (other, (_, other_weight)) in itertools.permutations(sources.items(), 2):
        exact = whole * Fraction(str(weight)), whole * Fraction(str(other_weight))
        assert abs(sizes[one] - exact[0]) <= 1
        assert abs(sizes[other] - exact[1]) <= 1


def test_another_mix_is_another_dataset_and_the_same_is_found_again(folders):
    config = config_of(folders, [{"name": "a"}, {"name": "b"}])
    scored_of(config)
    _, step, run = prepare_score(config)
    assert score(config, step, run)[0].num_shards_done_now == 0
    with pytest.raises(FingerprintError, match=r"sources\.b\.limit"):
        prepare_score(config_of(folders, [{"name": "a"}, {"name": "b", "limit": 5}]))
    to.write_jsonl(folders / "a/y.jsonl", [pair(200, key=200)])
    with pytest.raises(FingerprintError, match=r"a/y\.jsonl"):
        prepare_score(config)


def test_what_does_not_fit_together_is_refused(folders):
    both = [{"name": "a", "passthrough": ["key"]}, {"name": "b", "passthrough": ["key"]}]
    with pytest.raises(SchemaError, match=r"sources a and b pass key through as int64 and as string"):
        prepare_score(config_of(folders, both))
    for sources, words in (
        ([{"name": "a"}, {"name": "a"}], "sources gives a name twice"),
        ([{"name": "a", "weight": 1}, {"name": "b"}], "weights to some"),
        ([{"name": "a/b"}], "sources.0.name"),
    ):
        with pytest.raises(ConfigError, match=words):
            config_of(folders, sources)
    with pytest.raises(ConfigError, match="source or sources, not both"):
        config_of(folders, [{"name": "a"}], source={"path": "x"})
    with pytest.raises(ConfigError, match=r"sources\.1\.path"):
        config_of(folders, [{"name": "a"}, {"name": "b"}], output={"path": str(folders / "b/out")}, select={"k": 1})


def test_a_benchmark_of_one_source_is_no_rule_of_the_others(folders):
    (folders / "bench.txt").write_text("Question 3?\n")
    sources = [{"name": "a", "decontaminate": [str(folders / "bench.txt")]}, {"name": "b"}]
    dataset = scored_of(config_of(folders, sources))
    assert dataset.manifest.drops == {"source": {"contaminated": 1}}
    (folders / "bench.txt").write_text("Question 4?\n")
    with pytest.raises(FingerprintError, match=r"sources\.a\.benchmarks"):
        prepare_score(config_of(folders, sources))
