"""The benchmarks that a config names, from wherever they lie."""

from pipeline.config import Prompts, Source, Storage
from pipeline.data.place import Place
from pipeline.faults import storage_errors
from pipeline.sources.contamination import Contamination, read_benchmark


def read_benchmarks(section: Source | Prompts, storage: Storage) -> Contamination | None:
    """The n-grams of the files of `decontaminate`; None if it names none.

    Raises:
        SourceError, SchemaError: as `read_benchmark`.
        StorageError, TemporaryError: storage failed.
    """
    texts: list[str] = []
    for url in section.decontaminate:
        with storage_errors(url):
            place = Place.open(url, storage)
            texts += read_benchmark(place.fs, place.root)
    return Contamination.of_texts(texts, section.ngram) if section.decontaminate else None
