"""From preference data in any known format to pairs.

    files, probe    pre-flight: which data files there are, and every bad one at once
    splits, saved   which split and config of a source is read; folders of `save_to_disk`
    shards          the files cut into row ranges, the unit of work and of commit
    bounds, arrow_checks, unchanged    guards against foreign files and files that change
    open            a whole source, checked before anything runs
    blocks, records rows of one file; of text files; wrapped: of one object that holds them
    mapping, naming other names, forms and roles become those that the formats know
    drift           files that differ: which differences do no harm
    passthrough     columns that are carried along
    columns, rows   kinds of columns; what a format makes of a row: a pair, or the reason to drop it
    turns           the messages of a row, checked
    messages, texts, ranked, answers, compared, unpaired    one module for each family of formats
    formats         all formats, and which of them a table is of
    beside_text     which fields of messages a source has
    scores          reward and log-prob columns that the source already holds
    reader          a shard of the source as a table of `pipeline.schema.scored_schema`; column_pairs is its fast path
    prompts         the same for prompts alone; responses: for prompts with answers that are to get rewards
    mix             several sources as one; left_out: rows that the config leaves out; contamination: rows of benchmarks
    inspect         what a source is, for people (oddities: what looks wrong; inspected: as text and JSON)

Plain Python over Arrow and any fsspec file system. Knows neither our own datasets nor torch nor Ray.
"""
