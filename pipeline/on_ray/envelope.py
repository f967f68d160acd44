"""A shard on its way through Ray Data: one row that holds the shard's whole table.

Ray Data splits and merges blocks between operators as it sees fit, and asks for a row-count batch size where GPUs
are reserved. A shard must stay whole from read to commit, so it travels as the only row of a block: nothing smaller
can be split off, and a batch size of one row is one shard. Decoding is zero-copy; the bytes are Arrow IPC.
"""

import json
from dataclasses import asdict

import pyarrow as pa

from pipeline.steps.work import Failure, ShardWork, Timing

_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("table", pa.large_binary()),
        pa.field("timings", pa.string()),
        pa.field("failure", pa.string()),
    ]
)


def to_block(work: ShardWork) -> pa.Table:
    """The one-row Arrow block that Ray Data carries."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, work.table.schema) as writer:
        writer.write_table(work.table)
    data = sink.getvalue()
    offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
    table = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    timings = json.dumps([asdict(t) for t in work.timings])
    failure = None if work.failure is None else json.dumps(asdict(work.failure))
    columns = [[work.shard], [work.table.num_rows], table, [timings], [failure]]
    return pa.Table.from_arrays(
        [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )


def from_block(block: pa.Table) -> ShardWork:
    """Unpack a one-row block without copying the table."""
    shard, timings, failure = (block.column(name)[0].as_py() for name in ("shard", "timings", "failure"))
    buffer = block.column("table")[0].as_buffer()
    return ShardWork(
        shard=shard,
        table=pa.ipc.open_stream(buffer).read_all(),
        timings=tuple(Timing(**t) for t in json.loads(timings)),
        failure=None if failure is None else Failure(**json.loads(failure)),
    )
