"""The reference of the config as Markdown, and its JSON schema for editors, both generated from the fields."""

import ast
import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic.fields import FieldInfo

from pipeline.config.problems import sections_of, takes
from pipeline.config.prompting import PromptsConfig
from pipeline.config.rewarding import RewardConfig
from pipeline.config.root import Config
from pipeline.config.section import PER_OUTPUT, Section, mark_of
from pipeline.config.self_play import SelfPlayConfig

_INTRODUCTION: Final = """\
# The config

Generated from the code by `alignpot config --reference`; do not edit.

A config is one YAML file. Unknown keys are refused with the nearest known one. `--set key.path=value` overrides a key;
the value is YAML. For completion in an editor, write the schema with `alignpot config --schema > config.schema.json`
(`--schema --self-play` for self-play) and begin the config with `# yaml-language-server: $schema=config.schema.json`.

Every output holds a fingerprint of what it was made from. A run with another fingerprint on the same output is refused,
and the message names the key that differs. The column *fingerprint* says how a key takes part:

- yes: by its value. Another value needs another output.
- no: not at all. The key lays out the work or names a place, and may change while a run goes on.
- by content: by digest or commit of what the key names. A copy elsewhere is the same.
- of its outputs: in the fingerprint of each subset or training, but not of the whole run."""
_HEAD: Final = "| key | takes | default | fingerprint | meaning |\n|---|---|---|---|---|"
_ROOTS: Final[Mapping[str, type[Section]]] = {
    "run, score, select, report": Config,
    "reward": RewardConfig,
    "self-play": SelfPlayConfig,
    "prompts": PromptsConfig,
}


def json_schema(*, self_play: bool = False) -> str:
    """The JSON schema of a config file."""
    root = SelfPlayConfig if self_play else Config
    schema = root.model_json_schema()
    for kind in _sections_below(root):
        properties = (schema if kind is root else schema["$defs"][kind.__name__])["properties"]
        for key, text in docstrings(kind).items():
            properties[key]["description"] = text
    return json.dumps(schema, indent=1)


def reference() -> Iterator[str]:
    """The whole reference, block by block."""
    yield _INTRODUCTION
    names: dict[type[Section], str] = {}
    for commands, root in _ROOTS.items():
        yield f"\n## {commands}\n\n{_docstring(root)}\n\n{_table(root, [*root.model_fields])}"
        headings: dict[tuple[type[Section], ...], list[str]] = {}
        for key, field in root.model_fields.items():
            headings.setdefault(tuple(sections_of(field.annotation)), []).append(f"`{key}`")
        for kinds, keys in headings.items():
            new = [kind for kind in kinds if kind not in names]
            if new:
                yield f"\n### {', '.join(keys)}"
            for kind in new:
                backend = f"backend `{takes(kind.model_fields['backend'])}`" if len(kinds) > 1 else ""
                names[kind] = f"{keys[0]} with {backend}" if backend else f"`{keys[0]}`"
                yield f"\n#### {backend}\n" if backend else ""
                yield _section(kind, names)
                for key, field in kind.model_fields.items():
                    for below in sections_of(field.annotation):
                        yield f"\n#### {keys[0][:-1]}.{key}`\n"
                        yield _section(below, names)


def docstrings(kind: type[Section]) -> dict[str, str]:
    """The docstring of each key, on one line. Read on demand, as it is too slow for every import."""
    found: dict[str, str] = {}
    for part in [base for base in reversed(kind.__mro__) if issubclass(base, Section)]:
        [tree] = ast.parse(inspect.getsource(part)).body
        assert isinstance(tree, ast.ClassDef)  # noqa: S101
        for node, after in itertools.pairwise(tree.body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(node.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _sections_below(kind: type[Section]) -> set[type[Section]]:
    fields = kind.model_fields.values()
    return {kind}.union(*(_sections_below(below) for field in fields for below in sections_of(field.annotation)))


def _section(kind: type[Section], names: Mapping[type[Section], str]) -> str:
    base = kind.__mro__[1]
    if base not in names:
        return f"{_docstring(kind)}\n\n{_table(kind, [*kind.model_fields])}"
    own = [key for key in kind.model_fields if key in inspect.get_annotations(kind)]
    return f"{_docstring(kind)}\n\nAll keys of {names[base]}, and these:\n\n{_table(kind, own)}"


def _docstring(kind: type[Section]) -> str:
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _table(kind: type[Section], keys: list[str]) -> str:
    meanings = docstrings(kind)
    return "\n".join([_HEAD, *(_row(kind, key, meanings.get(key, "")) for key in keys)])


def _row(kind: type[Section], key: str, meaning: str) -> str:
    field = kind.model_fields[key]
    sections = sections_of(field.annotation)
    if sections and not meaning:
        meaning = _docstring(sections[0]).split("\n\n")[0]
    part = mark_of(field) or mark_of(kind) or "yes"
    if sections and mark_of(field) != PER_OUTPUT["fingerprint"]:
        part = mark_of(sections[0]) or "see its keys"
    cells = [f"`{key}`", takes(field, "`"), _default(field), part, meaning]
    return f"| {' | '.join(cells)} |"


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if value is None or isinstance(value, Section):
        return "none" if value is None else "its defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    text = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"
