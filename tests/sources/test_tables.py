"""One snapshot of an Iceberg, Delta or Lance table is read, whatever is written after, by any process."""

import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from typer.testing import CliRunner

from pipeline import read_pairs
from pipeline.cli import app
from pipeline.config import Prompts, Source, Storage, parse_config
from pipeline.data.place import Place
from pipeline.data.table_libraries import load_catalog
from pipeline.errors import ConfigError, FingerprintError, IntegrityError, SourceError, StorageError, TemporaryError
from pipeline.selfplay.seeds import read_prompts
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from pipeline.steps.score import prepare_score, score
from tests.sources import layouts as to

ROWS = [
    {**(to.LONG_PAIR if n == 4 else to.pair(prompt=f"Question {n}?")), "reward_chosen": n / 2, "reward_rejected": 0.25}
    for n in range(9)
]
FLAGS = {"rewards": False, "policy_logps": False, "reference_logps": False}


class Delta:
    def __init__(self, folder: Path | str, options=None) -> None:
        self.path = Path(folder, "prefs") if options is None else f"{folder}/prefs"
        self.options = options
        self.url = f"delta://{self.path}"

    def write(self, rows, mode: str, **options) -> str:
        """Commits the rows. Gives the new version."""
        from deltalake import DeltaTable, write_deltalake

        options["storage_options"] = self.options
        write_deltalake(str(self.path), pa.Table.from_pylist(rows), mode=mode, **options)
        return str(DeltaTable(str(self.path), storage_options=self.options).version())


class Lance:
    def __init__(self, folder: Path | str, options=None) -> None:
        self.path = Path(folder, "prefs.lance") if options is None else f"{folder}/prefs.lance"
        self.options = options
        self.url = f"lance://{self.path}"

    def write(self, rows, mode: str) -> str:
        import lance

        rows = pa.Table.from_pylist(rows)
        is_new = self.options is not None or not self.path.exists()
        mode = "create" if mode == "append" and is_new else mode
        return str(lance.write_dataset(rows, str(self.path), mode=mode, storage_options=self.options).version)


class Iceberg:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "warehouse"
        self.url = "iceberg://testing/prefs.pairs"

    def described(self, patch: pytest.MonkeyPatch, **settings: str) -> "Iceberg":
        """The same, after the variables that describe its catalog are set: to SQLite, unless `settings` say more."""
        local = {"uri": f"sqlite:///{self.path}.db", "warehouse": f"file://{self.path}"}
        for name, value in (settings or local).items():
            patch.setenv(f"PYICEBERG_CATALOG__TESTING__{name.upper()}", value)
        return self

    def catalog(self):
        catalog = load_catalog("testing", Storage())
        catalog.create_namespace_if_not_exists("prefs")
        return catalog

    def table(self):
        return self.catalog().load_table("prefs.pairs")

    def write(self, rows, mode: str) -> str:
        rows = pa.Table.from_pylist(rows)
        table = self.catalog().create_table_if_not_exists("prefs.pairs", schema=rows.schema)
        {"append": table.append, "overwrite": table.overwrite}[mode](rows)
        return str(table.current_snapshot().snapshot_id)


@pytest.fixture
def iceberg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iceberg:
    return Iceberg(tmp_path).described(monkeypatch)


@pytest.fixture(params=["delta", "iceberg", "lance"])
def table(request: pytest.FixtureRequest, tmp_path: Path):
    kinds = {"delta": Delta, "lance": Lance}
    return kinds[request.param](tmp_path) if request.param in kinds else request.getfixturevalue("iceberg")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a table of each kind, and one of Iceberg that is empty."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        iceberg = Iceberg(folder).described(patch)
        for table in (iceberg, Delta(folder), Lance(folder)):
            table.write(ROWS[:1], "append")
        iceberg.catalog().create_table("prefs.empty", schema=pa.schema([("prompt", pa.string())]))
        yield folder


def prompts(url: str, **source) -> list[str]:
    pairs = read_pairs(url, **source).to_arrow()
    return sorted(turns[-1]["content"] for turns in pairs["prompt"].to_pylist())


def of_rows(rows) -> list[str]:
    return sorted(row["prompt"][-1]["content"] for row in rows)


def config_of(path: str, folder: Path, **source):
    return parse_config({
        "source": {"path": path, **source},
        "reward": {"backend": "columns"},
        "metric": {"name": "explicit"},
        "scored": str(folder / "scored"),
        "run": {"engine": "plain"},
    })  # fmt: skip


def test_a_snapshot_stays_as_it_was(table):
    first = table.write(ROWS[:3], "append")
    second = table.write(ROWS[3:5], "append")
    assert prompts(table.url) == prompts(f"{table.url}@{second}") == of_rows(ROWS[:5])
    table.write(ROWS[5:], "overwrite")
    assert prompts(table.url) == of_rows(ROWS[5:])
    assert prompts(f"{table.url}@{first}") == of_rows(ROWS[:3])
    found = read_pairs(f"{table.url}@{second}").to_arrow().to_pylist()
    assert [row["prompt"] for row in found if len(row["prompt"]) > 1] == [to.LONG_PAIR["prompt"]]


def test_shards_are_read_from_the_snapshot_that_was_planned(table, tmp_path: Path):
    table.write(ROWS[:5], "append")
    table.write(ROWS[5:], "append")
    place = Place.of_source(table.url, Storage())
    reader, files = open_source(place.fs, place.root, Source(path=table.url), **FLAGS)
    table.write(ROWS[:1], "overwrite")
    sent = pickle.dumps(reader)
    assert not any(file.path.encode() in sent for file in files)  # a table may have many, and each task gets this
    reader = pickle.loads(sent)
    shards = plan_shards(files, 2)
    found = {shard.index: reader.read(shard) for shard in reversed(shards)}  # in another order than they lie in
    assert len(found) > len(files) == 2
    whole = pa.concat_tables([found[shard.index].replace_schema_metadata(None) for shard in shards])
    assert sorted(turns[-1]["content"] for turns in whole["prompt"].to_pylist()) == of_rows(ROWS)


def test_the_snapshot_is_in_fingerprint_and_manifest(table, tmp_path: Path):
    snapshot = table.write(ROWS, "append")
    config = config_of(table.url, tmp_path)
    _, manifest = score(*prepare_score(config))
    assert (manifest.num_kept, manifest.fingerprint["source"]["commit"]) == (9, snapshot)
    pinned = manifest.config["source"]["path"]
    assert pinned == f"{table.url}@{snapshot}"
    table.write(ROWS[:1], "append")
    with pytest.raises(FingerprintError, match=r"source\.commit"):
        prepare_score(config)
    assert score(*prepare_score(config_of(pinned, tmp_path)))[1].num_rows == 9


def test_tables_of_several_kinds_in_one_run(tmp_path: Path):
    delta, lance = Delta(tmp_path), Lance(tmp_path)
    delta.write(ROWS[:4], "append")
    lance.write(ROWS[4:], "append")
    config = config_of("x", tmp_path).model_dump(mode="json")
    del config["source"]
    config["sources"] = [{"name": "a", "path": delta.url}, {"name": "b", "path": lance.url, "limit": 2}]
    _, manifest = score(*prepare_score(parse_config(config)))
    assert manifest.num_kept == 6
    assert [source["path"] for source in manifest.config["sources"]] == [f"{delta.url}@0", f"{lance.url}@1"]


def test_inspect_and_self_play_read_tables(tmp_path: Path):
    table = Lance(tmp_path)
    table.write(ROWS, "append")
    shown = CliRunner().invoke(app, ["inspect", table.url, "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["format"] == "messages"
    place = Place.of_source(table.url, Storage())
    assert read_prompts(place.fs, place.root, Prompts(path=table.url)).num_usable == 9


def test_partitions_of_delta_are_columns(tmp_path: Path):
    table = Delta(tmp_path)
    langs = ["de", "a b/ü%=c", None]
    rows = [{**row, "lang": langs[n % 3], "_a/b": 2000 + n % 2, "number": n} for n, row in enumerate(ROWS)]
    table.write(rows, "append", partition_by=["lang", "_a/b"])
    found = read_pairs(table.url, passthrough=["lang", "_a/b", "number"]).to_arrow().to_pylist()
    assert sorted((row["number"], row["lang"], row["_a/b"]) for row in found) == [
        (row["number"], row["lang"], str(row["_a/b"])) for row in rows
    ]
    assert prompts(table.url, where='lang == "a b/ü%=c"') == of_rows(rows[1::3])


def test_partitions_of_iceberg_that_its_files_lack_are_columns(iceberg: Iceberg, tmp_path: Path):
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.transforms import BucketTransform, IdentityTransform
    from pyiceberg.typedef import Record

    rows = pa.Table.from_pylist([{**row, "lang": "en"} for row in ROWS[:4]])
    table = iceberg.catalog().create_table("prefs.pairs", schema=rows.schema)
    with table.update_spec() as spec:
        spec.add_field("reward_chosen", IdentityTransform())
        spec.add_field("lang", IdentityTransform())
    table.append(rows)
    with table.update_spec() as spec:
        spec.add_field("lang", BucketTransform(4), "bucket")
    path = tmp_path / "old.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS[4:6]).drop_columns(["reward_chosen"]), path)
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"file:{path}",
        file_format=FileFormat.PARQUET,
        partition=Record(7.5, "a/b", 3),
        record_count=2,
        file_size_in_bytes=path.stat().st_size,
    )
    file.spec_id = table.spec().spec_id
    with table.transaction() as change, change.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    found = read_pairs(iceberg.url, passthrough=["lang"]).to_arrow()
    assert sorted(found["lang"].to_pylist()) == ["a/b"] * 2 + ["en"] * 4
    assert "bucket" not in str(Place.of_source(iceberg.url, Storage()).sizes())


def test_deleted_rows_of_lance_are_left_out(tmp_path: Path):
    import lance

    table = Lance(tmp_path)
    first = table.write(ROWS, "append")
    lance.dataset(table.path).delete("reward_chosen = 0.5 or reward_chosen = 2.0")
    assert prompts(table.url) == of_rows([row for n, row in enumerate(ROWS) if n not in (1, 4)])
    assert prompts(f"{table.url}@{first}") == of_rows(ROWS)
    lance.dataset(table.path).tags.create("whole", int(first))
    assert prompts(f"{table.url}@whole") == of_rows(ROWS)


def test_deletion_vectors_of_delta_are_refused(tmp_path: Path):
    table = Delta(tmp_path)
    table.write(ROWS * 4, "append")
    [log] = (table.path / "_delta_log").glob("*.json")
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    features = {"minReaderVersion": 3, "readerFeatures": ["deletionVectors"]}
    features |= {"minWriterVersion": 7, "writerFeatures": ["deletionVectors"]}
    # Rows 3, 4, 7, 11, 18 and 29: the example of Delta's protocol.
    vector = {"storageType": "i", "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"}
    for change in ({}, {"deletionVector": {**vector, "sizeInBytes": 40, "cardinality": 6}}):
        changed = [{"protocol": features} if "protocol" in one else one for one in actions]
        changed = [{"add": {**one["add"], **change}} if "add" in one else one for one in changed]
        log.write_text("\n".join(map(json.dumps, changed)))
        if change:
            with pytest.raises(StorageError, match=r"deletion vectors.*REORG TABLE"):
                read_pairs(table.url)
        else:
            assert len(prompts(table.url)) == 36


def test_columns_of_delta_with_other_names_in_its_files_are_refused(tmp_path: Path):
    table = Delta(tmp_path)
    table.write([to.as_strings(to.pair())], "append")
    [log] = (table.path / "_delta_log").glob("*.json")
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for one in actions:
        if "protocol" in one:
            one["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
        if "metaData" in one:
            schema = json.loads(one["metaData"]["schemaString"])
            for number, field in enumerate(schema["fields"]):
                names = {"id": number, "physicalName": f"col-{number}"}
                field["metadata"] = {f"delta.columnMapping.{key}": value for key, value in names.items()}
            mode = {"delta.columnMapping.mode": "name"}
            one["metaData"] |= {"configuration": mode, "schemaString": json.dumps(schema)}
    log.write_text("\n".join(map(json.dumps, actions)))
    with pytest.raises(StorageError, match=r"columns have other names in its files"):
        read_pairs(table.url)


@pytest.mark.parametrize("content", ["POSITION_DELETES", "EQUALITY_DELETES"])
def test_delete_files_of_iceberg_are_refused(iceberg: Iceberg, tmp_path: Path, content: str):
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    before = iceberg.write(ROWS, "append")
    table = iceberg.table()
    [task] = table.scan().plan_files()
    path = tmp_path / "deletes.parquet"
    pq.write_table(pa.table({"file_path": [task.file.file_path], "pos": [2]}), path)
    file = DataFile.from_args(
        content=DataFileContent[content],
        file_path=f"file://{path}",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=path.stat().st_size,
    )
    file.spec_id = 0
    with table.transaction() as change, change.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    with pytest.raises(StorageError, match=r"delete files.*rewrite_data_files\(table => 'prefs.pairs'"):
        read_pairs(iceberg.url)
    assert prompts(f"{iceberg.url}@{before}") == of_rows(ROWS)


def test_columns_of_iceberg_may_be_added_but_not_renamed_or_dropped(iceberg: Iceberg):
    from pyiceberg.types import StringType

    iceberg.write(ROWS[:4], "append")
    with iceberg.table().update_schema() as update:
        update.add_column("note", StringType())
    iceberg.write([{**row, "note": "x"} for row in ROWS[4:]], "append")
    assert prompts(iceberg.url) == of_rows(ROWS)
    for name, arguments in (("rename_column", ["note", "remark"]), ("delete_column", ["remark"])):
        with iceberg.table().update_schema() as update:
            getattr(update, name)(*arguments)
        with pytest.raises(StorageError, match=r"1 of its 2 data files .*/prefs/pairs/data/.*\.parquet\. Rewrite"):
            read_pairs(iceberg.url)
    table = iceberg.table()
    table.overwrite(table.scan().to_arrow())
    assert prompts(iceberg.url) == of_rows(ROWS)


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("delta://{0}/none", StorageError, r"none is no Delta table that can be read\. .*not there"),
        ("delta://{0}/prefs@7", StorageError, r"version 7 cannot be read\. The newest is 0"),
        ("lance://{0}/none", StorageError, r"none is no Lance dataset that can be read\. .*not there"),
        ("lance://{0}/prefs.lance@7", StorageError, "no such version or tag"),
        ("lance://{0}/prefs.lance@v7", StorageError, "no such version or tag"),
        ("iceberg://testing/prefs.none", StorageError, "the catalog has no such table"),
        ("iceberg://testing/none.pairs", StorageError, "the catalog has no such table"),
        ("iceberg://testing/prefs.pairs@7", StorageError, r"no such snapshot or ref\. The table has main, \d+"),
        ("iceberg://testing/prefs.pairs@v7", StorageError, r"no such snapshot or ref\. The table has main, \d+"),
        ("iceberg://testing/prefs.empty", StorageError, "has no snapshot yet, so no rows"),
        ("iceberg://none/prefs.pairs", ConfigError, r"the catalog none\..*PYICEBERG_CATALOG__NONE__URI"),
        ("iceberg://prefs.pairs", ConfigError, r"wanted iceberg://CATALOG/NAMESPACE\.TABLE"),
        ("iceberg://testing/pairs", ConfigError, r"wanted iceberg://CATALOG/NAMESPACE\.TABLE"),
        ("delta://s3://key:secret@bucket/prefs", ConfigError, "must not carry credentials"),
        ("{0}/prefs", SourceError, "holds a table.*delta://PATH"),
        ("{0}/prefs.lance", SourceError, "holds a table.*lance://PATH"),
        ("{0}/prefs.lance/data", SourceError, "part of a Lance dataset"),
        ("{0}/warehouse/prefs/pairs", SourceError, "holds a table.*iceberg://CATALOG/"),
    ],
)
def test_what_cannot_be_read_is_said(tables: Path, url: str, error, told: str):
    with pytest.raises(error, match=told):
        read_pairs(url.format(tables))


def test_a_table_that_was_made_anew_is_not_taken_for_the_planned_one(tmp_path: Path):
    table = Delta(tmp_path)
    table.write(ROWS[:3], "append")
    place = Place.of_source(table.url, Storage())
    reader, files = open_source(place.fs, place.root, Source(path=table.url), **FLAGS)
    sent = pickle.dumps(reader)
    shutil.rmtree(table.path)
    table.write(ROWS[3:6], "append")
    with pytest.raises(IntegrityError, match=r"prefs@0 was made anew"):
        pickle.loads(sent).read(plan_shards(files, 2)[0])


def test_a_data_file_that_was_cleaned_up_is_named(tmp_path: Path):
    table = Delta(tmp_path)
    table.write(ROWS[:3], "append")
    [file] = table.path.glob("*.parquet")
    table.write(ROWS[3:], "overwrite")
    file.unlink()
    with pytest.raises(StorageError, match=rf"prefs@0: its file {file} is gone, perhaps in a cleanup"):
        read_pairs(f"{table.url}@0")


def test_a_catalog_that_is_away_is_a_temporary_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    away = Iceberg(tmp_path).described(monkeypatch, uri="http://127.0.0.1:9", token="canary-token")
    with pytest.raises(TemporaryError, match=r"cannot be reached.*ConnectionError") as caught:
        read_pairs(away.url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("kind", "library"), [("delta", "deltalake"), ("iceberg", "pyiceberg"), ("lance", "lance")])
def test_a_missing_library_is_named_with_the_command(kind: str, library: str, tmp_path: Path, monkeypatch):
    for folder in ("_delta_log", "_versions"):
        (tmp_path / folder).mkdir()
    monkeypatch.setitem(__import__("sys").modules, library, None)
    monkeypatch.setitem(__import__("sys").modules, "pyiceberg.catalog", None)
    url = "iceberg://testing/prefs.pairs" if kind == "iceberg" else f"{kind}://{tmp_path}"
    with pytest.raises(ConfigError, match=r"pip install 'alignpot\[tables\]'"):
        read_pairs(url)


def test_only_a_source_can_be_a_table():
    with pytest.raises(ConfigError, match="only a source can be a table"):
        Place.open("delta:///tmp/out", Storage())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.s3
def test_tasks_of_ray_read_tables_on_s3(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The keys of the Iceberg catalog are others than those of AWS, and every process finds both."""
    ray.shutdown()  # workers of a Ray that is up already know nothing of the catalog
    options = {"aws_endpoint": s3.endpoint_url, "aws_region": "us-east-1", "aws_allow_http": "true"}
    given = {
        "uri": s3.iceberg_url,
        "warehouse": "s3://warehouse/",
        "credential": f"{s3.access_key}:{s3.secret_key}",
        "s3__endpoint": s3.endpoint_url,
        "s3__region": "us-east-1",
        "s3__access_key_id": s3.access_key,
        "s3__secret_access_key": s3.secret_key,
    }
    iceberg = Iceberg(tmp_path).described(monkeypatch, **given)
    tables = {"a": Delta(s3.url("delta"), options), "b": Lance(s3.url("lance"), options), "c": iceberg}
    snapshots = {name: table.write(ROWS, "append") for name, table in tables.items()}
    access, secret = s3.reader
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = config_of("x", tmp_path).model_dump(mode="json") | {"storage": s3.storage.model_dump(mode="json")}
    del config["source"]
    config["sources"] = [{"name": name, "path": table.url} for name, table in tables.items()]
    config["run"] |= {"engine": "ray", "shard_rows": 4}
    prepared = prepare_score(parse_config(config))
    assert s3.secret_key.encode() not in pickle.dumps(prepared)
    assert Place.of_source(iceberg.url, s3.storage).fs._store.key == s3.access_key
    iceberg.write(ROWS[:1], "append")
    _, manifest = score(*prepared)
    assert manifest.num_kept == 27
    paths = [source["path"] for source in manifest.config["sources"]]
    assert paths == [f"{table.url}@{snapshots[name]}" for name, table in tables.items()]
    assert s3.secret_key not in (tmp_path / "scored" / "_SUCCESS.json").read_text()


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("kind", [Delta, Lance])
def test_faults_of_s3_are_told_apart(s3, kind, monkeypatch: pytest.MonkeyPatch):
    storage = s3.storage.model_dump(mode="json") | {"max_attempts": 1}
    scheme = kind("").url.partition("://")[0]
    with pytest.raises(StorageError, match="bucket none-such does not exist"):
        read_pairs(f"{scheme}://s3://none-such/prefs", storage=storage)
    with pytest.raises(StorageError, match="not there"):
        read_pairs(f"{scheme}://{s3.url()}", storage=storage)
    with pytest.raises(TemporaryError, match="cannot be reached"):
        read_pairs(f"{scheme}://{s3.url()}", storage={**storage, "endpoint_url": "http://127.0.0.1:9"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-another")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch") as caught:
        read_pairs(f"{scheme}://{s3.url()}", storage=storage)
    assert "canary" not in str(caught.value)
