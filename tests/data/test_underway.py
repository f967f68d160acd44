"""How far datasets are: one alone, and those of self-play below one folder."""

from pipeline.config import Storage
from pipeline.data.parts import commit_part
from pipeline.data.place import Place
from pipeline.data.run import Run
from pipeline.data.underway import datasets_below
from tests.data.tables import plan_for, scored_table, spec_of, write_dataset


def test_parts_that_are_there_are_counted_among_those_planned(tmp_path):
    place = Place.open(str(tmp_path / "scored"), Storage())
    assert datasets_below(place) == []
    run = Run.claim(place, plan_for([2, 2, 2]))
    table = scored_table(["a", "b"])
    commit_part(place, spec_of(run.plan, 1), table)
    (tmp_path / "scored" / "parts" / "another.parquet").write_bytes(b"")
    assert [str(state) for state in datasets_below(place)] == [f"{place}: 1 of 3 parts"]
    for index, ids in ((0, ["c", "d"]), (2, ["e", "f"])):
        commit_part(place, spec_of(run.plan, index), scored_table(ids))
    run.finish({})
    assert [str(state) for state in datasets_below(place)] == [f"{place}: complete"]


def test_every_dataset_below_a_folder_is_found(tmp_path):
    place = Place.open(str(tmp_path), Storage())
    write_dataset(place / "round-0/scored", [scored_table(["a"])])
    Run.claim(
        place / "round-1/subset",
        plan_for([], kind="subset", formats=("hf",), shards=({"num_rows": 1}, {"num_rows": 2})),
    )
    assert [(str(state.place), state.is_complete, state.num_planned) for state in datasets_below(place)] == [
        (str(tmp_path / "round-0" / "scored"), True, 1),
        (str(tmp_path / "round-1" / "subset"), False, 0),
    ]
    assert str(datasets_below(place)[1]).endswith("subset: begun")
