"""Facts as an event of OpenLineage: the datasets with their facets, the job, and the run with its parent."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
from openlineage.client import event_v2 as ol
from openlineage.client.facet_v2 import (
    column_lineage_dataset,
    dataset_version_dataset,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    schema_dataset,
)

from pipeline import __version__
from pipeline.observers import parents
from pipeline.observers.facts import Data, Facts, Name, Origin

_PRODUCER: Final = f"https://pypi.org/project/alignpot/{__version__}"


def event_of(state: str, facts: Facts, run_id: str, time: str, error: str | None) -> ol.RunEvent:
    """The event that a run is in this state now; `error` says why it failed."""
    run_facets: dict[str, Any] = {}
    if (above := parents.parent()) is not None:
        run_facets["parent"] = _parent(above, parents.root() or above)
    if error is not None:
        run_facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=error, programmingLanguage="PYTHON", producer=_PRODUCER
        )
    kind = facts.command.replace("-", "_").upper()
    job_type = job_type_job.JobTypeJobFacet(
        processingType="BATCH", integration="ALIGNPOT", jobType=kind, producer=_PRODUCER
    )
    return ol.RunEvent(
        eventType=ol.RunState[state],
        eventTime=time,
        run=ol.Run(run_id, facets=run_facets),
        job=ol.Job(os.environ.get("OPENLINEAGE_NAMESPACE", "alignpot"), job_name(facts), facets={"jobType": job_type}),
        inputs=[_input(data) for data in facts.inputs],
        outputs=[_output(data) for data in facts.outputs],
        producer=_PRODUCER,
    )


def job_name(facts: Facts) -> str:
    """The command and what it makes: the same logic on other data is another job."""
    namespace, name = Name.of(facts.place)
    place = f"{namespace.partition('://')[2]}/{name}".strip("/")
    return f"{facts.command}.{place}"


def fields_of(columns: Iterable[pa.Field]) -> list[schema_dataset.SchemaDatasetFacetFields]:
    """Columns with what is nested in them; of lists the field `_element`, of maps `key` and `value`."""
    return [_field(column.name, column.type) for column in columns]


def _field(name: str, kind: pa.DataType) -> schema_dataset.SchemaDatasetFacetFields:
    types: Any = pa.types
    below: Iterator[tuple[str, pa.DataType]] = iter(())
    text = str(kind)
    if types.is_struct(kind):
        text, below = "struct", ((field.name, field.type) for field in kind)
    elif types.is_map(kind):
        text, below = "map", iter([("key", kind.key_type), ("value", kind.item_type)])
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        text, below = "array", iter([("_element", kind.value_type)])
    return schema_dataset.SchemaDatasetFacetFields(
        name=name, type=None if types.is_null(kind) else text, fields=[_field(*each) for each in below] or None
    )


def _facets(data: Data) -> dict[str, Any]:
    facets: dict[str, Any] = {}
    if data.schema is not None:
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields_of(data.schema), producer=_PRODUCER)
    if data.version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=data.version, producer=_PRODUCER
        )
    if data.schema is not None and (data.origins or data.deciders):
        facets["columnLineage"] = column_lineage_dataset.ColumnLineageDatasetFacet(
            fields={
                column: column_lineage_dataset.Fields(inputFields=[_origin(each) for each in origins])
                for column, origins in data.origins.items()
                if column in data.schema.names
            },
            dataset=[_origin(each, "INDIRECT", "FILTER") for each in data.deciders],
            producer=_PRODUCER,
        )
    return facets


def _origin(origin: Origin, kind: str = "DIRECT", subtype: str = "") -> column_lineage_dataset.InputField:
    subtype = subtype or ("IDENTITY" if origin.is_same else "TRANSFORMATION")
    how = column_lineage_dataset.Transformation(type=kind, subtype=subtype)
    return column_lineage_dataset.InputField(*origin.dataset, field=origin.column, transformations=[how])


def _input(data: Data) -> ol.InputDataset:
    counts = _statistics(data)
    facet = input_statistics_input_dataset.InputStatisticsInputDatasetFacet
    own = {"inputStatistics": facet(**counts, producer=_PRODUCER)} if counts else {}
    return ol.InputDataset(*data.name, facets=_facets(data), inputFacets=own)


def _output(data: Data) -> ol.OutputDataset:
    counts = _statistics(data)
    facet = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
    own = {"outputStatistics": facet(**counts, producer=_PRODUCER)} if counts else {}
    return ol.OutputDataset(*data.name, facets=_facets(data), outputFacets=own)


def _statistics(data: Data) -> Mapping[str, int]:
    counts = {"rowCount": data.num_rows, "size": data.size, "fileCount": data.num_files}
    return {name: count for name, count in counts.items() if count is not None}


def _parent(above: parents.Parent, root: parents.Parent) -> parent_run.ParentRunFacet:
    return parent_run.ParentRunFacet(
        run=parent_run.Run(above.run_id),
        job=parent_run.Job(above.namespace, above.job),
        root=parent_run.Root(
            run=parent_run.RootRun(root.run_id), job=parent_run.RootJob(namespace=root.namespace, name=root.job)
        ),
        producer=_PRODUCER,
    )
