"""The protocol of a scored dataset: claim, commit, finish, read back, and refuse what does not fit."""

import dataclasses
import json
import pickle
import random

import pyarrow as pa
import pytest

from pipeline import config
from pipeline import schema as names
from pipeline.data import dataset as reading
from pipeline.data import parts
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.parts import commit_part
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run
from pipeline.data.sealed import differences, fingerprint_digest, sealed
from pipeline.errors import FingerprintError, IntegrityError, SchemaError, SourceError
from tests.data.tables import FINGERPRINT, SCHEMA, plan_for, scored_table, spec_of, write_dataset


def ids(start: int, count: int) -> list[str]:
    return [f"row-{i}" for i in range(start, start + count)]


def test_dataset_returns_the_scored_rows_in_order_and_again(place):
    dataset = write_dataset(place, [scored_table(ids(0, 9), dropped={2, 5}), scored_table(ids(9, 4))])
    expected = [each for i, each in enumerate(ids(0, 13)) if i not in (2, 5)]
    for _ in range(2):
        got = pa.concat_tables(dataset.tables([names.REWARD_CHOSEN, names.ID]))
        assert got.column_names == [names.REWARD_CHOSEN, names.ID]
        assert got[names.ID].to_pylist() == expected
    everything = pa.concat_tables(dataset.tables(kept_only=False))
    assert everything.equals(pa.concat_tables([scored_table(ids(0, 9), dropped={2, 5}), scored_table(ids(9, 4))]))


def test_dataset_reads_large_parts_by_row_group_and_column(place, monkeypatch):
    monkeypatch.setattr(parts, "ROW_GROUP_ROWS", 10)
    monkeypatch.setattr(reading, "_WHOLE_BYTES", 0)
    table = scored_table(ids(0, 35), dropped={11, 34})
    dataset = write_dataset(place, [table, scored_table(ids(35, 3))])
    got = list(dataset.tables([names.ID]))
    assert [each.num_rows for each in got] == [10, 9, 10, 4, 3]
    assert pa.concat_tables(dataset.tables(kept_only=False)).slice(0, 35).equals(table)


def test_empty_shard_is_a_part_like_any_other(local_place):
    dataset = write_dataset(local_place, [scored_table([]), scored_table(ids(0, 2), dropped={0, 1})])
    assert list(dataset.tables()) == []
    assert dataset.manifest.fraction_dropped == 1.0


def test_dataset_refuses_unknown_columns(local_place):
    dataset = write_dataset(local_place, [scored_table(ids(0, 3))])
    with pytest.raises(SchemaError, match="nonsense"):
        dataset.tables(["nonsense"])


def test_manifest_counts_every_row_and_survives_reading(place):
    written = write_dataset(place, [scored_table(ids(0, 9), dropped={2, 5}), scored_table(ids(9, 4))]).manifest
    assert (written.num_rows, written.num_kept, written.num_dropped) == (13, 11, 2)
    assert written.drops == {"tokenise": {"prompt_too_long": 2}}
    assert written.num_tokens == {"num_tokens_chosen": 55, "num_tokens_prompt": 33, "num_tokens_rejected": 77}
    assert Dataset.open(place).manifest == written
    assert Run.claim(place, plan_for([9, 4])).finish({"another": "run"}) == written


def test_id_digest_is_independent_of_sharding_and_order(tmp_path):
    mixed = ids(0, 20)
    random.Random(3).shuffle(mixed)
    digests = set()
    for name, tables in {
        "one": [scored_table(ids(0, 20))],
        "many": [scored_table(mixed[:7]), scored_table(mixed[7:])],
    }.items():
        place = Place.open(str(tmp_path / name), config.Storage())
        digests.add(write_dataset(place, tables).manifest.id_digest)
    assert len(digests) == 1


def test_run_of_another_fingerprint_is_refused_by_field(place):
    Run.claim(place, plan_for([4]))
    other = {"policy": {"model": "tiny", "revision": "def"}, "tokens": {"max_length": 2048}, "seed": 1}
    with pytest.raises(
        FingerprintError, match=r"(?s)policy\.revision: \"abc\" there, \"def\" now.*seed: nothing there"
    ) as e:
        Run.claim(place, plan_for([4], fingerprint=other))
    assert "max_length" not in str(e.value)
    assert "another" in str(e.value)


def test_fingerprint_comparison_sees_types_and_ignores_key_order_and_tuples():
    assert list(differences({"a": True}, {"a": 1})) == [("a", True, 1)]
    assert fingerprint_digest({"a": 1, "b": (2, 3)}) == fingerprint_digest({"b": [2, 3], "a": 1})
    assert list(differences({"a": {"b": None}}, {"a": {}})) == [("a.b", None, "nothing")]


def test_resume_continues_the_stored_plan(place):
    first = Run.claim(place, plan_for([4, 4]))
    again = Run.claim(place, plan_for([8], config={"run": {"shard_rows": 8}}))
    assert again == first
    assert again.plan.schema.equals(SCHEMA)


def test_subset_path_is_refused_as_scored_path(local_place):
    place = local_place
    Run.claim(place, Plan(kind=SUBSET, fingerprint=FINGERPRINT, config={}))
    with pytest.raises(FingerprintError, match="'subset', not scored"):
        Run.claim(place, plan_for([4]))


def test_first_writer_of_a_part_wins(place):
    run = Run.claim(place, plan_for([5]))
    first = commit_part(place, spec_of(run.plan, 0), scored_table(ids(0, 5)))
    second = commit_part(place, spec_of(run.plan, 0), scored_table(ids(0, 5), dropped={1}))
    assert second == first
    assert not len(run.pending())


def test_part_spec_survives_pickling():
    spec = spec_of(plan_for([5]), 0)
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("table", "error", "says"),
    [
        (scored_table(ids(0, 4)), IntegrityError, "4 rows for a shard of 5"),
        (scored_table(ids(0, 5)).drop_columns(["origin"]), SchemaError, "missing .'origin'"),
        (scored_table(ids(0, 5), columns={names.REWARD_CHOSEN: [0.0, float("nan"), 1, 1, 1]}), IntegrityError, "row-1"),
        (scored_table(ids(0, 5), columns={names.STATUS: ["kept"] * 4 + [None]}), IntegrityError, "4 kept"),
        (scored_table(ids(0, 5), columns={names.STATUS: ["kept"] * 4 + ["lost"]}), IntegrityError, "4 kept"),
        (scored_table(ids(0, 5), columns={names.ID: [None, *"bcde"]}), IntegrityError, "no id"),
        (
            scored_table(ids(0, 5), dropped={1}, columns={names.DROP_REASON: [None] * 5}),
            IntegrityError,
            "reason None",
        ),
    ],
)
def test_part_with_rows_that_do_not_add_up_is_refused(local_place, table, error, says):
    place = local_place
    run = Run.claim(place, plan_for([5]))
    with pytest.raises(error, match=says) as caught:
        commit_part(place, spec_of(run.plan, 0), table)
    assert "text row" not in str(caught.value)
    assert len(run.pending()) == len(run.plan.shards)


def test_scores_are_stored_plain_and_pages_with_checksums(local_place):
    import pyarrow.parquet as pq

    place = local_place
    write_dataset(place, [scored_table(ids(0, 50))])
    group = pq.read_metadata(f"{place.root}/{parts.part_path(0)}").row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    assert not any("DICTIONARY" in each for each in encodings[names.REWARD_CHOSEN])
    assert any("DICTIONARY" in each for each in encodings[names.STATUS])


def test_finish_names_missing_parts(place):
    run = Run.claim(place, plan_for([5, 5, 5]))
    commit_part(place, spec_of(run.plan, 1), scored_table(ids(0, 5)))
    with pytest.raises(IntegrityError, match=r"missing: parts/00000000.parquet, parts/00000002.parquet"):
        run.finish({})
    with pytest.raises(SourceError, match=r"unfinished dataset of kind scored \(1 of 3 parts\)"):
        Dataset.open(place)


def test_finish_refuses_short_and_foreign_parts(local_place, tmp_path):
    place = local_place
    run = Run.claim(place, plan_for([5, 5]))
    commit_part(place, spec_of(run.plan, 0), scored_table(ids(0, 5)))
    short = dataclasses.replace(spec_of(run.plan, 1), num_rows=4)
    commit_part(place, short, scored_table(ids(5, 4)))
    with pytest.raises(IntegrityError, match=r"do not add up: parts/00000001.parquet \(4 rows of 5"):
        run.finish({})
    place.fs.rm_file(f"{place.root}/{parts.part_path(1)}")
    foreign = dataclasses.replace(spec_of(run.plan, 1), fingerprint_digest="0" * 32)
    commit_part(place, foreign, scored_table(ids(5, 5)))
    with pytest.raises(IntegrityError, match="part of another run"):
        run.finish({})


def test_finish_refuses_parts_changed_after_the_manifest(local_place):
    place = local_place
    dataset = write_dataset(place, [scored_table(ids(0, 5))])
    run = Run(place, plan_for([5]))
    place.fs.rm_file(f"{place.root}/{parts.part_path(0)}")
    with pytest.raises(IntegrityError, match="is gone"):
        list(dataset.tables())
    commit_part(place, spec_of(run.plan, 0), scored_table(ids(0, 5), dropped={0}))
    with pytest.raises(IntegrityError, match="differ in num_kept"):
        run.finish({})
    with pytest.raises(IntegrityError, match="00000000"):
        list(dataset.tables())


def test_missing_dataset_is_told_from_an_unfinished_one(place):
    with pytest.raises(SourceError, match="holds no dataset of kind scored"):
        Dataset.open(place)
    run = Run.claim(place, plan_for([4, 4]))
    assert len(run.pending()) == len(run.plan.shards)
    with pytest.raises(SourceError, match=r"0 of 2 parts.*alignpot score"):
        Dataset.open(place)


@pytest.mark.parametrize("whole", [True, False])
def test_no_flipped_bit_ever_changes_a_row(local_place, monkeypatch, whole):
    place = local_place
    if not whole:
        monkeypatch.setattr(reading, "_WHOLE_BYTES", 0)
    dataset = write_dataset(place, [scored_table(ids(0, 60), dropped={7})])
    path = f"{place.root}/{parts.part_path(0)}"
    sound = place.fs.cat_file(path)
    rows = pa.concat_tables(dataset.tables(kept_only=False))
    found = []
    chance = random.Random(11)
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        place.fs.pipe_file(path, bytes(damaged))
        try:
            assert pa.concat_tables(dataset.tables(kept_only=False)).equals(rows)
        except IntegrityError as error:
            found.append(str(error))
    assert all(path in message for message in found)
    assert len(found) > 120  # what is left are bits that no row depends on, such as statistics in page headers


@pytest.mark.parametrize("cut", [1, 1000])
def test_truncated_part_is_found(place, cut):
    dataset = write_dataset(place, [scored_table(ids(0, 60))])
    path = f"{place.root}/{parts.part_path(0)}"
    place.fs.pipe_file(path, place.fs.cat_file(path)[:-cut])
    with pytest.raises(IntegrityError, match=r"00000000\.parquet is cut short"):
        list(dataset.tables())


def test_damaged_run_and_manifest_are_named(local_place):
    place = local_place
    write_dataset(place, [scored_table(ids(0, 3))])
    good = json.loads(place.fs.cat_file(f"{place.root}/_SUCCESS.json"))
    for bad in (b"{", b"[" * 100_000, json.dumps({**good, "num_rows": 4}).encode(), sealed({"files": 3})):
        place.fs.pipe_file(f"{place.root}/_SUCCESS.json", bad)
        with pytest.raises(IntegrityError, match=r"_SUCCESS.json is damaged"):
            Dataset.open(place)
    place.fs.pipe_file(f"{place.root}/run.json", json.dumps({"format": 1}).encode())
    with pytest.raises(FingerprintError, match="layout 1"):
        Run.claim(place, plan_for([3]))


def test_part_of_another_source_file_is_neither_committed_nor_published(local_place):
    place = local_place
    named = {**FINGERPRINT, "source": {"files": {"a.parquet": "blake2b:old"}}}
    run = Run.claim(place, plan_for([5], fingerprint=named))
    table = scored_table(ids(0, 5))
    for read_from in ({}, {names.READ_FROM: "blake2b:new"}):
        with pytest.raises(IntegrityError, match=r"00000000\.parquet holds rows of a source file with digest"):
            commit_part(place, spec_of(run.plan, 0), table.replace_schema_metadata(read_from))
    assert len(run.pending()) == len(run.plan.shards)
    foreign = dataclasses.replace(spec_of(run.plan, 0), source_digest="blake2b:new")
    commit_part(place, foreign, table.replace_schema_metadata({names.READ_FROM: "blake2b:new"}))
    with pytest.raises(IntegrityError, match="digest blake2b:new; wanted blake2b:old"):
        run.finish({})
