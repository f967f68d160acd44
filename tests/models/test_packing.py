"""Plans of packed steps, on groups that hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.packing import (
    ROW_MULTIPLE,
    Completion,
    common_prefix,
    last_token_step,
    num_packed_tokens,
    response_step,
    step_end,
)

tokens = st.lists(st.integers(1, 4), max_size=12)


@st.composite
def groups_of_completions(draw):
    made = []
    for _ in range(draw(st.integers(1, 5))):
        prompt = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
        responses = draw(st.lists(tokens, min_size=1, max_size=4))
        made.append([Completion(ids=np.array(prompt + r, np.int32), start=len(prompt)) for r in responses])
    return made


def num_distinct_prefixes(group) -> int:
    """Tokens that cannot be shared: one for every sequence of tokens that some completion starts with."""
    return len({tuple(c.ids[:end].tolist()) for c in group for end in range(1, len(c.ids) + 1)})


def seen_by(step, row: int) -> list[int]:
    """Rows that a row may attend to, in order of position."""
    (segment,) = [s for s in step.segments if s.query[0] <= row < s.query[1]]
    return [*(r for context in segment.context for r in range(*context)), *range(segment.query[0], row + 1)]


@given(groups_of_completions(), st.sampled_from([0, 1, 2]))
def test_every_scored_token_is_predicted_from_exactly_the_tokens_before_it(groups, sharing):
    step = response_step(groups, sharing=sharing)
    completions = [c for group in groups for c in group]
    assert step.num_sequences == len(completions)
    for sequence, completion in enumerate(completions):
        mine = step.target_sequences == sequence
        rows = step.rows[step.target_rows[mine]]
        assert step.targets[mine].tolist() == completion.ids[completion.start :].tolist()
        for at, row in zip(range(completion.start, len(completion.ids)), rows, strict=True):
            context = seen_by(step, row)
            assert step.ids[context].tolist() == completion.ids[:at].tolist()
            assert step.positions[context].tolist() == list(range(at))


@given(groups_of_completions())
def test_every_distinct_prefix_is_laid_out_once_and_steps_fill_whole_rows(groups):
    step = response_step(groups)
    num_tokens = sum(num_distinct_prefixes(group) for group in groups)
    assert num_tokens == sum(num_packed_tokens(group) for group in groups)
    covered = [row for segment in step.segments for row in range(*segment.query)]
    assert covered == list(range(num_tokens))
    assert len(step.ids) == len(step.positions) == -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE


@given(groups_of_completions(), st.integers(1, 60))
def test_steps_hold_every_group_once_within_the_budget(groups, budget):
    begin, ends = 0, []
    while begin < len(groups):
        end = step_end(groups, begin, budget)
        assert end > begin
        size = sum(num_packed_tokens(group) for group in groups[begin:end])
        assert size <= budget or end == begin + 1
        begin = end
        ends.append(end)
    assert ends[-1] == len(groups)


@given(groups_of_completions())
def test_last_token_steps_read_one_row_a_sequence(groups):
    step = last_token_step(groups, [[len(c.ids) - 1 for c in group] for group in groups])
    completions = [c for group in groups for c in group]
    for completion, row in zip(completions, step.rows[step.target_rows], strict=True):
        assert step.ids[seen_by(step, row)].tolist() == completion.ids.tolist()


@pytest.mark.parametrize("shared", [3, 5])
def test_a_prefix_goes_beyond_the_prompt(shared):
    first, second = np.arange(1, 9, dtype=np.int32), np.arange(1, 9, dtype=np.int32)
    second[shared:] += 100
    group = [Completion(ids=first, start=2), Completion(ids=second, start=2)]
    assert common_prefix(first, second) == shared
    assert num_packed_tokens(group) == shared + 2 * (8 - shared)


def test_a_completion_shares_with_the_one_it_is_most_alike():
    base = np.arange(1, 30, dtype=np.int32)
    other = np.concatenate([base[:10], base[10:] + 100])
    third = np.concatenate([other[:20], base[:3]])
    group = [Completion(ids=ids, start=5) for ids in (base, other, third, other, base[:7])]
    step = response_step([group])
    assert num_packed_tokens(group) == 29 + 19 + 3
    assert [segment.context for segment in step.segments] == [(), ((0, 10),), ((0, 10), (29, 39))]
