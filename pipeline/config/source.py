"""The source and storage sections: where the pairs are, and how object storage is reached."""

from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from pipeline.config.section import BY_CONTENT, LAYOUT, Section, Url


class Source(Section):
    """Where the preference pairs are and how they are read."""

    path: Url = Field(json_schema_extra=BY_CONTENT)
    """File, folder or URL of an object store."""
    format: str = "auto"
    """Format of the rows; `auto` detects it. `alignpot inspect PATH` shows which one a source has."""
    id_column: str | None = None
    """Column with a unique id. Default: the id is a hash of the row's content."""
    pairs: Literal["best-worst", "sweet-spot"] = "best-worst"
    """Which two of several candidates make a pair. `best-worst`: the highest and the lowest reward. `sweet-spot`: the
    rejected one is nearest to two standard deviations below the mean reward (arXiv 2502.16825), which can only differ
    from the worst with six candidates or more."""
    passthrough: tuple[str, ...] = ()
    """Source columns to carry along unchanged."""


class Storage(Section):
    """How S3 is reached. Credentials come from the usual AWS variables, files and roles, never from the config."""

    model_config = ConfigDict(json_schema_extra=LAYOUT)

    endpoint_url: str | None = None
    """URL of an S3 service. Default: AWS."""
    region: str | None = None
    """Region of the buckets. Default: as AWS is set up on the machine."""
    anonymous: bool = False
    """Send requests without credentials, for public buckets."""
    max_attempts: int = Field(default=10, ge=1)
    """Attempts for one request, the first included."""

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("must not carry credentials; use the AWS variables or an instance role")
        return value
