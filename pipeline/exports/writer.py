"""Writes an export: the files of its container, what describes them, and a manifest last.

    run.json                                       first; the fingerprint protocol of every output
    hf/train/data-00000-of-000NN.arrow, ...        container hf, a `load_from_disk` folder
    data/train-00000-of-000NN.jsonl                container jsonl
    _SUCCESS.json                                  last of all

Files are created whole and only if absent, with bytes that follow from the subset and the settings alone; so a run
that died is run again, and finds what it wrote.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

import fsspec
import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.shown import listed, quoted
from pipeline.storage.commit import create
from pipeline.storage.filesystem import display, list_sizes
from pipeline.storage.runs import claim, read_sealed, schema_json, sealed
from pipeline.storage.subset import MANIFEST_FILE
from pipeline.storage.subset_files import hf_descriptions
from pipeline.storage.subset_parts import FileWriter, SubsetSpec, publish_beside

KIND: Final = "export"


def open_export(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, Any] | None:
    """The manifest of a complete export whose files are all there; None if it is not complete.

    Raises:
        IntegrityError: files that it names are gone or cut short.
    """
    manifest = read_sealed(fs, f"{root}/{MANIFEST_FILE}")
    if manifest is None:
        return None
    sizes = list_sizes(fs, root)
    named = (*manifest["files"], *manifest["beside"])
    lost = [file["path"] for file in named if sizes.get(file["path"]) != file["size"]]
    if lost:
        raise IntegrityError(
            f"{display(fs, root)}: files are gone or cut short: [{listed(lost, show=quoted)}]. Use another path."
        )
    return manifest


def claim_export(fs: fsspec.AbstractFileSystem, root: str, spec: SubsetSpec) -> SubsetSpec:
    """Claim `root` for this export; the spec to go on with, whose `rows_per_file` is that of the run there.

    Raises:
        FingerprintError: something else was begun under `root`; the fields that differ are named.
    """
    body = {"version": spec.version, "rows_per_file": spec.rows_per_file}
    stored = claim(fs, root, kind=KIND, fingerprint=spec.fingerprint, body=body)
    return dataclasses.replace(spec, rows_per_file=stored["rows_per_file"])


def write_files(
    fs: fsspec.AbstractFileSystem, root: str, spec: SubsetSpec, tables: Iterator[pa.Table]
) -> list[dict[str, Any]]:
    """Publish the rows; path, num_rows, size and blake2b digest of each file.

    Raises:
        IntegrityError: fewer rows than announced, or files of other content stand in the way.
    """
    records: list[dict[str, Any]] = []
    rest = spec.schema.empty_table()
    for index in range(spec.num_files):
        with FileWriter(fs, root, spec, index) as writer:
            while writer.num_missing:
                if not rest.num_rows:
                    rest = next(tables, rest)
                    if not rest.num_rows:
                        break
                fits = rest.slice(0, writer.num_missing)
                writer.write(fits)
                rest = rest.slice(fits.num_rows)
            records += writer.publish()
    return records


def finish(
    fs: fsspec.AbstractFileSystem,
    root: str,
    spec: SubsetSpec,
    files: list[dict[str, Any]],
    about: Mapping[str, Any],
    descriptions: Mapping[str, bytes],
) -> dict[str, Any]:
    """Publish the descriptions and the manifest; the manifest that stands is returned.

    Raises:
        IntegrityError: an export of other content stands in the way.
    """
    described = hf_descriptions(spec.schema, files, spec.fingerprint) if "hf" in spec.formats else {}
    manifest = {
        "kind": KIND,
        "version": spec.version,
        "fingerprint": spec.fingerprint,
        "num_rows": spec.num_rows,
        **about,
        "files": files,
        "beside": publish_beside(fs, root, {**descriptions, **described}),
        "schema": schema_json(spec.schema),
    }
    if create(fs, f"{root}/{MANIFEST_FILE}", sealed(manifest)):
        return manifest
    stored = open_export(fs, root)
    if stored is None or stored["files"] != files:
        raise IntegrityError(f"{display(fs, root)} holds an export of other content. Use another path.")
    return stored
