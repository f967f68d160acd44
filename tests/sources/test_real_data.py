"""Real preference data, read from end to end with every row accounted for.

The data lies outside the repository (see the shared_data fixture); the layouts themselves are covered by small
tables of our own in test_formats.py and test_reader.py.
"""

from collections import Counter

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Source
from pipeline.sources.formats import FORMATS
from pipeline.sources.inspect import inspect_source
from pipeline.sources.inspected import render
from pipeline.sources.open import open_source
from pipeline.sources.rows import content_digest
from pipeline.sources.shards import plan_shards

FS = fsspec.filesystem("file")


def read(path, *, rewards, **source):
    reader, files = open_source(
        FS, str(path), Source(path=str(path), **source), rewards=rewards, policy_logps=False, reference_logps=False
    )
    return reader, pa.concat_tables([reader.read(shard) for shard in plan_shards(files, 256)])


def reasons(table):
    return Counter(reason for reason in table["drop_reason"].to_pylist() if reason)


def test_hh_transcripts_are_all_read(shared_data):
    reader, table = read(shared_data / "hh_harmless.jsonl.gz", rewards=False)
    assert reader.format == "transcript"
    assert table.num_rows == 1600
    assert reasons(table) == {"empty_response": 4}
    kept = [row for row in table.select(["prompt", "chosen", "rejected"]).to_pylist() if row["prompt"]]
    assert {row["prompt"][-1]["role"] for row in kept} == {"user"}
    assert {turn["role"] for row in kept for side in ("chosen", "rejected") for turn in row[side]} == {"assistant"}
    assert len(set(table["id"].to_pylist())) > 1590


def test_candidates_are_all_accounted_for_and_chosen_scores_highest(shared_data):
    path = shared_data / "alpaca_eval_onpolicy.parquet"
    reader, table = read(path, rewards=True, id_column="prompt_id", passthrough=("all_generators",))
    assert reader.format == "candidates"
    assert table.num_rows == 6440
    assert reasons(table) == {"identical_responses": 36, "empty_response": 13, "ambiguous_score": 1}
    kept = [row for row in table.to_pylist() if row["status"] == "kept"]
    assert len(kept) == 6390
    assert all(row["reward_chosen"] == max(row["rewards_all"]) for row in kept)
    assert all(row["reward_rejected"] == min(row["rewards_all"]) for row in kept)
    assert all(len(row["all_generators"]) == 5 for row in kept)
    assert len({row["id"] for row in kept}) == 6390


def test_pairs_of_the_candidates_are_the_same_when_picked_by_score(shared_data):
    """Where no two candidates tie, argmax and argmin pick what the file calls chosen and rejected."""
    path = shared_data / "alpaca_eval_onpolicy.parquet"
    _, table = read(path, rewards=True)
    source = pq.read_table(path, columns=["prompt", "all_generated_responses", "all_rm_scores"])
    compared = 0
    for row, digest in zip(source.to_pylist()[:500], table["content_digest"].to_pylist()[:500], strict=True):
        if digest is None or len(set(row["all_rm_scores"])) < 5:
            continue
        picked = FORMATS["candidates"].convert(row)
        assert content_digest(picked.prompt, picked.chosen, picked.rejected) == digest
        compared += 1
    assert compared > 300


def test_inspection_of_real_data_has_no_problem(shared_data):
    for name in ("hh_harmless.jsonl.gz", "alpaca_eval_onpolicy.parquet"):
        found = inspect_source(FS, str(shared_data / name))
        assert found.problems == ()
        assert "problems  none" in render(found)
