"""The page of a report: its numbers are those of the JSON report, it loads nothing, and no data acts in it."""

import base64
import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline import cli, schema
from pipeline.config import Metric, Objective, Select, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.metrics import explicit_margin, implicit_margin
from pipeline.report import charts, examples, report_page
from pipeline.report.page import number, percent
from pipeline.selection import Query, TableSource, select_many, summarise
from tests.metrics.tables import agreeing_table, scored_table
from tests.report.pages import Page, looked_at, numbers_in
from tests.selection.sources import with_columns, with_texts
from tests.steps import scored_data as data

FACTS = {"version": "0", "scored": "s" * 32, "fingerprint": "f" * 32, "made_from": {}, "scored_by": {}}
DPO = Objective(name="dpo")
PROSE = {"0", "1", "0%", "1%", "100%"}  # numbers of the explanations


def found_in(table, metric=None, objective=DPO, **rule):
    source = TableSource(table=table)
    query = Query(objective=objective, metric=metric or Metric(), rule=Select(**(rule or {"fraction": 0.4})))
    return next(select_many(source, [query])), source


def report_of(table, metric=None, **rule):
    return json.loads(json.dumps(summarise(*found_in(table, metric, **rule))))


def page_of(table, metric=None, **rule) -> Page:
    return Page(report_page(report_of(table, metric, **rule), FACTS))


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def topics(table, names=("code", "chat", "math")):
    values = np.array(names)[np.arange(table.num_rows) % len(names)]
    return with_columns(table, {"topic": pa.array(values)})


@pytest.mark.parametrize(
    ("metric", "rule"),
    [
        (Metric(), {"fraction": 0.4}),
        (Metric(weight="auto", explicit="absolute"), {"k": 30, "group_by": "topic"}),
        (Metric(name="explicit"), {"min_score": 0.5, "labels": "swap"}),
        (Metric(name="bees-mul"), {"fraction": 0.1, "labels": "drop"}),
        (Metric(), {"band": {"explicit": [0.25, 0.75]}, "order": "score_descending", "weights": True}),
    ],
)
def test_every_number_on_the_page_stands_in_the_report(metric, rule):
    report = report_of(topics(agreeing_table(700)), metric, **rule)
    values = [value for value in leaves(report) if isinstance(value, int | float)]
    known = {shown.lstrip("-") for value in values for shown in (number(value), percent(value))}
    page = Page(report_page(report, FACTS))
    assert len(page.numbers) > 200
    assert page.numbers <= known | numbers_in(json.dumps(report)) | PROSE


@pytest.mark.parametrize("labels", ["keep", "swap"])
def test_counts_of_the_plane_and_the_bars_are_those_of_the_table(labels):
    table = agreeing_table(900, reward_chosen=np.round(np.random.default_rng(1).normal(0.3, 1.0, 900), 1))
    table = table.set_column(table.schema.get_field_index("reward_rejected"), "reward_rejected", [[0.0] * 900])
    found, source = found_in(table, fraction=0.3, labels=labels)
    report = summarise(found, source)
    explicit, implicit = explicit_margin(table), implicit_margin(table, DPO)
    if labels == "swap":
        implicit, explicit = np.where(explicit < 0, -implicit, implicit), np.abs(explicit)
    kept = np.isin(np.arange(900), found.selection.positions)
    for group, rows in (("all", kept | True), ("selected", kept)):
        e, i = explicit[rows], implicit[rows]
        assert report["plane"]["quadrants"][group] == {
            "agree": ((e > 0) & (i > 0)).sum(),
            "reward_only": ((e > 0) & (i < 0)).sum(),
            "policy_only": ((e < 0) & (i > 0)).sum(),
            "both_against": ((e < 0) & (i < 0)).sum(),
            "undecided": (e * i == 0).sum(),
        }
        assert sum(report["plane"]["cells"][group]) + report["plane"]["outside"][group] == rows.sum()
        for bars in report["histograms"].values():
            assert sum(bars[group]) == rows.sum()
        tokens = [table.column(f"num_tokens_{side}").to_numpy() for side in ("chosen", "rejected")]
        if labels == "keep":
            lengths = report["lengths"][group]
            assert lengths["chosen"] == pytest.approx(tokens[0][rows].mean())
            assert lengths["chosen_longer"]["count"] == (tokens[0] > tokens[1])[rows].sum()
            correlation = np.corrcoef(e, (tokens[0] - tokens[1])[rows])[0, 1]
            assert lengths["correlation"]["margin_explicit"] == pytest.approx(correlation, rel=1e-5)
    bars = report["histograms"]["margin_explicit"]
    inner = slice(1, -1)
    assert bars["all"][inner] == np.histogram(explicit, bars["edges"])[0].tolist()[inner]


def test_hexagons_are_those_of_the_nearest_centre():
    report = report_of(agreeing_table(400))
    cells, (left, right), (bottom, top) = (report["plane"][name] for name in ("cells", "reward", "implicit"))
    table = agreeing_table(400)
    x = (explicit_margin(table) - left) / (right - left) * 52
    y = (implicit_margin(table, DPO) - bottom) / (top - bottom) * 20
    inside = (x >= 0) & (x <= 52) & (y >= 0) & (y <= 20)
    centres = np.array([(c, r) for c in range(53) for r in range(21) if c % 2 == r % 2])
    away = (x[inside, None] - centres[:, 0]) ** 2 + 3 * (y[inside, None] - centres[:, 1]) ** 2
    wanted, counts = np.unique(centres[away.argmin(axis=1)], axis=0, return_counts=True)
    assert wanted.tolist() == [list(cell) for cell in zip(cells["column"], cells["row"], strict=True)]
    assert counts.tolist() == cells["all"]


def test_rows_by_a_column_are_counted_and_averaged():
    table = topics(agreeing_table(300), ("code", "chat", None))
    table = with_columns(table, {"stars": pa.array([i % 5 for i in range(300)])})
    table = with_columns(table, {"note": pa.array([f"a remark of row {i}" for i in range(300)])})
    found, source = found_in(table)
    by_column = summarise(found, source)["by_column"]
    assert list(by_column) == ["topic", "stars"]  # a column of unlike texts names no groups, and none of it is shown
    kept = np.isin(np.arange(300), found.selection.positions)
    for column, value in ((name, value) for name in by_column for value in by_column[name]["values"]):
        texts = table.column(column).cast(pa.string()).to_pylist()
        rows = np.array([each == value["value"] for each in texts])
        assert (value["size"], value["selected"]) == (rows.sum(), (rows & kept).sum())
        assert value["margin_explicit"] == pytest.approx(explicit_margin(table)[rows].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "edges"),
    [
        (Objective(), {"reversed": (-np.inf, 0.0), "below_target": (0.0, 0.5), "done": (0.5, np.inf)}),
        (Objective(gamma=0.1), {"reversed": (-np.inf, 0.0), "below_target": (0.0, 0.1), "done": (0.1, np.inf)}),
        (DPO, {"reversed": (-np.inf, 0.0), "done": (0.0, np.inf)}),
    ],
)
def test_reach_counts_pairs_by_the_target_of_the_objective(objective, edges):
    table = agreeing_table(500)
    found, source = found_in(table, objective=objective, fraction=0.3)
    reach = summarise(found, source)["reach"]
    implicit = implicit_margin(table, objective)
    kept = np.isin(np.arange(500), found.selection.positions)
    for group, rows in (("all", kept | True), ("selected", kept)):
        counts = {name: ((implicit >= low) & (implicit < high))[rows].sum() for name, (low, high) in edges.items()}
        assert {name: of["count"] for name, of in reach[group].items()} == counts
        assert sum(counts.values()) == rows.sum()
    assert reach["target"] == objective.target


def test_the_data_map_is_that_of_the_rewards_of_all_candidates():
    table = agreeing_table(400)
    found, source = found_in(table)
    report = json.loads(json.dumps(summarise(found, source)))
    candidates = np.array(table.column("rewards_all").to_pylist())
    kept = np.isin(np.arange(400), found.selection.positions)
    for group, rows in (("all", kept | True), ("selected", kept)):
        means = report["data_map"]["means"][group]
        assert means["mean"] == pytest.approx(candidates[rows].mean(axis=1).mean(), rel=1e-5)
        assert means["variance"] == pytest.approx(candidates[rows].var(axis=1).mean(), rel=1e-5)
        shown = sum(report["data_map"]["cells"][group]) + report["data_map"]["outside"][group]
        assert shown == report["data_map"]["count"][group] == rows.sum()
    assert "mean reward of the candidates" in report_page(report, FACTS)
    none = report_of(agreeing_table(60, rewards_all=None))
    assert none["data_map"] is None
    assert "mean reward of the candidates" not in report_page(none, FACTS)


def test_rules_and_time_of_scoring_are_told():
    report = report_of(agreeing_table(300), band={"implicit_abs": [0.1, 0.9]}, order="score_ascending", weights=True)
    took = {"seconds": 12.5, "rows": 200, "of_rows": 300, "tokens": 5000}
    report["scoring"] = {**took, "rows_per_second": 16.0, "tokens_per_second": 400.0}
    page = Page(report_page(report, FACTS))
    low, high = report["selection"]["fitted"]["bands"]["implicit_abs"]
    text = " ".join(page.text.split())
    assert f"band of implicit_abs {number(low)} to {number(high)} (quantiles 0.1 to 0.9)" in text
    assert "outside select.band" in text
    assert "order of the rows score_ascending" in text
    weights = report["row_weights"]
    assert f"{number(weights['lowest'])} to {number(weights['highest'])}, median {number(weights['median'])}" in text
    assert "12.5 s for the last 200 of 300 rows, after earlier runs: 16 rows and 400 tokens a second" in text


def test_weights_and_metrics_are_those_of_selections_made_so():
    table = agreeing_table(600)
    report = report_of(table, fraction=0.25)
    kept = set(found_in(table, fraction=0.25)[0].selection.positions)
    for row in (report["weights"]["rows"][i] for i in (0, 2, 16)):
        other = set(found_in(table, Metric(weight=row["weight"]), fraction=0.25)[0].selection.positions)
        assert row["overlap"] == pytest.approx(len(kept & other) / len(kept | other))
        assert row["margin_explicit"] == pytest.approx(explicit_margin(table)[sorted(other)].mean(), rel=1e-5)
    for name in ("explicit", "implicit", "bees-add"):
        other = set(found_in(table, Metric(name=name), fraction=0.25)[0].selection.positions)
        wanted = len(kept & other) / len(kept | other)
        assert report["metrics"]["overlap"]["this subset"][name] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "rule"),
    [
        (Metric(), {}),
        (Metric(weight=2.5, implicit="signed"), {}),
        (Metric(explicit="absolute", normalise="robust"), {}),
        (Metric(normalise="none"), {"min_score": 0.3}),
        (Metric(name="implicit"), {}),
        (Metric(name="implicit", order="largest", implicit="signed"), {}),
        (Metric(name="bees-add"), {}),
    ],
)
def test_the_line_parts_selected_from_other_rows(metric, rule):
    table = agreeing_table(500)
    found, source = found_in(table, metric, **(rule or {"fraction": 0.3}))
    report = summarise(found, source)
    drawn = charts.threshold_lines(report["selection"], report["plane"])
    assert drawn
    for x, y in (point for line in drawn for point in line):
        rewards = {"reward_chosen": [x], "reward_rejected": [0.0]}
        logps = {"policy_logp_chosen": [y / DPO.beta], "policy_logp_rejected": [0.0]}
        none = {"reference_logp_chosen": [0.0], "reference_logp_rejected": [0.0]}
        row = scored_table(**rewards, **logps, **none)
        ranker = found.selection.query.ranker
        score = ranker.score(ranker.read(row), found.ranking.fitted)[0]
        threshold = report["selection"].get("threshold")
        assert score == pytest.approx(rule.get("min_score") if threshold is None else threshold, abs=1e-6)


def test_what_is_not_known_is_said_and_not_drawn():
    page = page_of(scored_table(60, policy_logp_chosen=None, num_tokens_chosen=None), Metric(name="explicit"))
    assert "There is no plane to draw" in page.text
    assert "lengths are not known" in page.text
    assert "log-probabilities of the policy: the model was not run" in page.text
    assert "nan" not in page.text.lower().split()
    older = report_of(agreeing_table(60))
    for name in (
        "flow",
        "plane",
        "histograms",
        "lengths",
        "by_column",
        "metrics",
        "weights",
        "label_audit",
        "reach",
        "data_map",
    ):
        del older[name]
    assert "by a version that did not judge labels" in Page(report_page(older, FACTS)).text


ODD = {
    "one-row": {"reward_chosen": [1.0]},
    "ties": {"reward_chosen": [1.0] * 20, "reward_rejected": [0.0] * 20},
    "huge": {"reward_chosen": [1e308, -1e308, 1e300, 5.0] * 5, "reward_rejected": [0.0] * 20},
    "tiny": {"reward_chosen": [1e-310, -1e-310, 3e-310, 5e-310] * 5, "reward_rejected": [0.0] * 20},
    "not-finite": {"reward_chosen": [float("inf"), 1.0, float("nan"), 3.0] * 5},
    "against": {"reward_chosen": [-1.0, -2.0] * 5, "reward_rejected": [0.0] * 10},
    "empty-answers": {"reward_chosen": [1.0, 2.0], "num_tokens_chosen": [0, 0], "num_tokens_rejected": [0, 0]},
    "random": {"reward_chosen": None, "policy_logp_chosen": None, "num_tokens_chosen": [5] * 30},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("error")
def test_any_scores_give_a_page(name):
    metric = Metric(name="random" if name == "random" else "explicit")
    assert "selected" in page_of(scored_table(**ODD[name]), metric, k=1).text


HOSTILE = "<script>alert(1)</script><img src=http://x/y onerror=alert(2)>\x1b]0;t\x07\u202e\"'&{{7*7}}"


def test_no_text_of_the_data_acts_on_the_page():
    table = agreeing_table(80)
    table = table.set_column(0, "id", [[f"{i}{HOSTILE}" for i in range(80)]])
    table = with_columns(topics(table, ("code", HOSTILE)), {HOSTILE: pa.array(["a", "b"] * 40)})
    keep = [name for name in table.column_names if name not in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)]
    table = with_texts(table.select(keep), [HOSTILE] * 80, [f"{HOSTILE}{i}" for i in range(80)])
    found, source = found_in(table, group_by="topic", k=20)
    corners = examples(found, source, 2)
    assert {corner.name for corner in corners} == {"agree", "reward_only", "policy_only", "both_against"}
    facts = {**FACTS, "made_from": {"source": {"path": HOSTILE}}, "scored_by": {"policy": {"name": HOSTILE}}}
    report = summarise(found, source)
    likeliest = dict.fromkeys(("id", "reasons"), HOSTILE) | {"probability_wrong": 0.9}
    report["label_audit"]["likeliest"] = [{**likeliest, "margin_explicit": -1.0, "margin_implicit": None}]
    html = report_page(report, facts, corners)
    page, plain = Page(html), page_of(agreeing_table(80))
    assert "This page holds data." in page.text
    assert "This page holds data." not in plain.text
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {"h4"}
    assert not [name for _, given in page.elements for name in given if name.startswith("on") or name == "src"]
    assert all(char.isprintable() or char == "\n" for char in html)
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "{{7*7}}" in page.text


def test_the_page_allows_its_own_style_and_script_alone_and_names_no_place():
    html = report_page(report_of(agreeing_table(60)), FACTS)
    [policy] = [given["content"] for tag, given in Page(html).elements if given.get("http-equiv")]
    digests = {
        tag: base64.b64encode(hashlib.sha256(re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)[0].encode()).digest())
        for tag in ("style", "script")
    }
    assert policy.split("; ") == [
        "default-src 'none'",
        *(f"{tag}-src 'sha256-{digest.decode()}'" for tag, digest in digests.items()),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "http://" not in html
    assert "https://" not in html
    assert all(not given.get("href") or given["href"].startswith("#") for _, given in Page(html).elements)
    assert " style=" not in html


def test_pictures_have_words_and_tables_beside_them():
    html = report_page(report_of(topics(agreeing_table(200))), FACTS)
    elements = Page(html).elements
    ids = [given["id"] for _, given in elements if "id" in given]
    assert len(ids) == len({*ids})
    pictures = [given for tag, given in elements if tag == "svg" and given.get("aria-hidden") != "true"]
    assert len(pictures) > 6
    for given in pictures:
        assert given["role"] == "img"
        assert given.get("aria-label") or {*given["aria-labelledby"].split()} <= {*ids}
    for reference in re.findall(r'aria-labelledby="([^"]*)"|href="#([^"]*)"', html):
        assert {*" ".join(reference).split()} <= {*ids}


def test_colours_stand_out_in_light_and_in_dark():
    html = report_page(report_of(agreeing_table(60)), FACTS)

    def luminance(colour):
        whole = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
        parts = (int(whole[i : i + 2], 16) / 255 for i in (0, 2, 4))
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    schemes = [dict(re.findall(r"--(\w+):#(\w+)", rules)) for rules in re.findall(r":root{([^}]*)}", html)]
    assert len(schemes) == 2
    for colours in schemes:
        for name, least in {
            "ink": 4.5,
            "soft": 4.5,
            "kept": 4.5,
            "all": 3,
            "line": 3,
            "second": 3,
            "s0": 3,
            "s4": 3,
        }.items():
            for ground in ("card", "page"):
                low, high = sorted(luminance(colours[each]) for each in (name, ground))
                assert (high + 0.05) / (low + 0.05) >= least * 0.98, (name, ground)


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*args])
    assert not ended.value.code


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = data.scored_table().to_pylist()
    rows[:3] = [data._dropped(row) for row in rows[:3]]
    table = pa.Table.from_pylist(rows, schema=data.SCHEMA)
    return data.write_scored(tmp_path_factory.mktemp("scored"), Storage(), table, 100)


@pytest.fixture
def config(scored: str, tmp_path: Path) -> Path:
    sections = data.sections(scored, tmp_path / "subset", output={"formats": ["parquet"]})
    return data.write_config(tmp_path / "config.yaml", sections)


def test_a_page_lies_beside_every_subset_and_can_be_written_again(config: Path, tmp_path: Path):
    run("select", str(config))
    written = tmp_path / "subset" / "report.html"
    manifest = Dataset.open(Place.open(str(tmp_path / "subset"), Storage()), SUBSET).manifest
    assert {file.path for file in manifest.beside} == {"report.json", "report.html"}
    run("report", str(config), "--html", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()
    assert len(written.read_bytes()) < 300_000
    report = data.read_json(tmp_path / "subset", "report.json")
    flow = report["flow"]
    assert (flow["read"], flow["dropped"]) == (flow["scored"] + 3, {"tokenise: prompt_too_long": 3})
    assert flow["scored"] - sum(flow["not_ranked"].values()) == flow["ranked"]
    assert flow["ranked"] - flow["ranked_lower"] == flow["selected"] == report["selection"]["k"]
    assert "the prompt leaves no room for a response" in Page(written.read_text()).text
    assert str(tmp_path) not in written.read_text()


def test_time_and_throughput_are_those_of_the_scoring(tmp_path: Path):
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": "no", "score_chosen": i, "score_rejected": 0.0}
        for i in range(30)
    ]
    scored = pipeline.score(rows, reward="columns", path=tmp_path / "scored")
    pipeline.select(scored, metric="explicit", fraction=0.5).write(tmp_path / "subset")
    scoring = data.read_json(tmp_path / "subset", "report.json")["scoring"]
    assert (scoring["rows"], scoring["of_rows"]) == (30, 30)
    assert scoring["rows_per_second"] == pytest.approx(30 / scoring["seconds"])
    assert "tokens_per_second" not in scoring  # no model read any
    page = " ".join(Page((tmp_path / "subset" / "report.html").read_text()).text.split())
    assert f"{number(scoring['seconds'])} s: {number(scoring['rows_per_second'])} rows a second" in page


def test_examples_are_shown_where_they_are_asked_for(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run("select", str(config))
    run("report", str(config), "--html", str(tmp_path / "page.html"), "--examples", "2")
    html = (tmp_path / "page.html").read_text()
    assert html.count("question ") > 6
    assert "question " not in (tmp_path / "subset" / "report.html").read_text()
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(config), "--html", str(tmp_path / "p"), "--examples", "2", "--set", "select.k=9",
                  "--set", "select.fraction=null"])  # fmt: skip
    assert ended.value.code == 2
    assert "selects other pairs" in capsys.readouterr().err


def test_metrics_side_by_side_can_be_a_page(scored: str, tmp_path: Path):
    run("compare", scored, "--fraction", "0.2", "--html", str(tmp_path / "compare.html"))
    page = Page((tmp_path / "compare.html").read_text())
    assert "potential 0.2" in page.text
    assert "Rank correlation" in page.text


def test_a_browser_shows_the_page_without_an_error_or_a_request(tmp_path: Path):
    page = tmp_path / "report.html"
    page.write_text(report_page(report_of(topics(agreeing_table(300))), FACTS))
    dom, console, asked = looked_at(page, tmp_path)
    assert console == []
    assert asked == ["/report.html"]
    assert "weight 1: overlap 100.0%" in dom  # the script ran
    assert '<th scope="col"><button type="button">value</button></th>' in dom


@pytest.mark.slow
def test_a_page_of_a_million_rows_is_small_and_quick(tmp_path: Path):
    table = topics(agreeing_table(1_000_000))
    found, source = found_in(table)
    started = time.process_time()
    report = summarise(found, source)
    html = report_page(report, FACTS)
    assert time.process_time() - started < 10
    assert len(html) < 3_000_000
    assert sum(report["plane"]["quadrants"]["all"].values()) == 1_000_000
    page = tmp_path / "report.html"
    page.write_text(html)
    _, console, asked = looked_at(page, tmp_path)
    assert console == []
    assert asked == ["/report.html"]
