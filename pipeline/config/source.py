"""The sections source, storage and tokens: where the pairs are, and how their text becomes tokens."""

import datetime
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from pipeline.config.jinja import JinjaFile
from pipeline.config.section import BY_CONTENT, LAYOUT, Arguments, Section, Url
from pipeline.schema import RESERVED_KWARGS
from pipeline.where import parse_where

DEFAULT_DATE: Final = datetime.date(2025, 1, 1)


class Source(Section):
    """Where the preference pairs are and how they are read."""

    path: Url = Field(json_schema_extra=BY_CONTENT)
    """File, folder or URL of an object store. `hf://datasets/ORG/NAME[@REVISION]`, or `ORG/NAME` where there is no such
    folder, is a dataset of the Hugging Face Hub. Tables are `iceberg://CATALOG/NAMESPACE.TABLE[@SNAPSHOT]`,
    `delta://PATH[@VERSION]` and `lance://PATH[@VERSION]`."""
    config: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Which config of a dataset whose README.md names several. Default: its default one."""
    split: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Which split of a dataset that has several; `train+test` reads both, `all` every file. Default: the only one for
    training."""
    format: str = "auto"
    """Format of the rows; `auto` detects it. `alignpot inspect PATH` shows which one a source has."""
    id_column: str | None = None
    """Column with a unique id. Default: the id is a hash of the row's content."""
    pairs: Literal["best-worst", "sweet-spot"] = "best-worst"
    """Which two of several candidates make a pair. `best-worst`: the highest and the lowest reward. `sweet-spot`: the
    rejected one is nearest to two standard deviations below the mean reward (arXiv 2502.16825), which can only differ
    from the worst with six candidates or more."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where columns of other names stand: `{prompt: question, chosen: good, rejected: bad}`. The left names are those
    that the formats, the rewards (`reward_chosen`, `reward_rejected`), `id_column` and `passthrough` read. The right
    ones are columns of the source, or fields of objects and items of lists in them: `answers.best`, `answers.0`.
    Well-known names need no entry."""
    roles: dict[str, Literal["system", "developer", "user", "assistant", "tool"]] = Field(default_factory=dict)
    """Roles of the source that stand for others: `{customer: user, agent: assistant}`. Well-known ones such as human,
    gpt and model need no entry."""
    passthrough: tuple[str, ...] = ()
    """Source columns to carry along unchanged."""
    limit: int | None = Field(default=None, ge=1)
    """Take at most so many rows, spread evenly over the source and picked by a seeded hash. Default: all."""
    seed: int = 0
    """Seed of that hash."""
    where: str | None = None
    """Condition on columns of the source, such as `lang == "de" and length(prompt) < 4000`. Rows for which it is false
    or null are left out. The grammar stands in `pipeline/where.py`."""
    decontaminate: tuple[str, ...] = Field(default=(), json_schema_extra=BY_CONTENT)
    """Files of benchmark prompts. Pairs whose prompt shares `ngram` words in a row with one are left out."""
    ngram: int = Field(default=13, ge=2)
    """Words in a row that count as contamination."""

    @field_validator("where")
    @classmethod
    def _is_condition(cls, value: str | None) -> str | None:
        return None if value is None else parse_where(value).text

    def fingerprint(self) -> dict[str, Any]:
        """Without rules that are not set."""
        unset = {name for name in ("columns", "roles", "limit", "where") if not getattr(self, name)}
        unset |= set() if self.limit else {"seed"}
        unset |= set() if self.decontaminate else {"ngram"}
        return {name: value for name, value in super().fingerprint().items() if name not in unset}


class NamedSource(Source):
    """One of several sources."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Stands in the column `source_name` of its rows."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Share of this source, relative to the weights of the others: the most rows are taken that keep the proportion.
    Either all sources have one or none. Rows are counted as they are read, before `where` and drops."""

    def fingerprint(self) -> dict[str, Any]:
        """Without a weight that is not set."""
        return {name: value for name, value in super().fingerprint().items() if value is not None or name != "weight"}


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


class Tokens(Section):
    """Templating and truncation, the same for policy and reference."""

    template: Literal["chat", "none"] = "chat"
    """`none` takes texts as they are, prompt and answer one after the other: for texts that are templated already. It
    holds for the reward model too."""
    preset: Literal["trl", "paper"] = "trl"
    """`trl`: template and response mask as in TRL. `paper`: as in the code of the paper's authors, truncation
    included."""
    max_length: int = Field(default=2048, ge=2)
    """Most tokens of prompt and response together."""
    max_prompt_length: int = Field(default=1800, ge=1)
    """Most tokens of a prompt. Read by preset `paper` only, and in the fingerprint only there."""
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a pair is kept if it is longer than `max_length`. Preset `paper` has its own rule: there the key is
    neither read nor part of the fingerprint."""
    chat_template: JinjaFile | None = None
    """Jinja file to use instead of the tokenizer's own template, at most 1 MiB. Default: the tokenizer's. The file is
    read with the config, so workers do not need it."""
    template_kwargs: Arguments = Field(default_factory=dict)
    """Further arguments of the chat template, such as `enable_thinking: false`. A row's own, in a column
    `chat_template_kwargs`, go before them."""
    date: datetime.date = DEFAULT_DATE
    """Date given to chat templates that print today's date, also to that of the reward model. Scores then do not depend
    on the day of the run."""

    @field_validator("template_kwargs")
    @classmethod
    def _free_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(RESERVED_KWARGS & {*value})
        if taken:
            raise ValueError(f"cannot hold {', '.join(taken)}: alignpot sets them; leave them out")
        return value

    @model_validator(mode="after")
    def _paper_fits(self) -> "Tokens":
        if self.preset == "paper" and self.template == "none":
            raise ValueError("template: none is for preset: trl; preset: paper renders prompt and response apart")
        if self.preset == "paper" and self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length with preset: paper")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Without what is not read: the key of the other preset, a template that is not used, and no arguments."""
        unread = {"max_prompt_length" if self.preset == "trl" else "truncation"}
        unread |= {"chat_template", "template_kwargs"} if self.template == "none" else {"template"}
        unread |= set() if self.template_kwargs else {"template_kwargs"}
        return {name: value for name, value in super().fingerprint().items() if name not in unread}
