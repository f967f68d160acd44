"""One split of one config is read: rows of a test split get into no training set unasked."""

import json
import os

import fsspec
import pytest

from pipeline.errors import SourceError
from pipeline.sources.files import scan_files
from pipeline.sources.splits import Wanted
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
ROW = to.as_strings(to.pair())
CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/tr-*
  - split: test
    path:
    - data/te-*
    - data/extra/**
- config_name: other
  data_dir: other
---
# Pairs
"""


def made(folder, names, card=None):
    """Files of these names with one pair each, and a README.md."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write = to.write_parquet if name.endswith(".parquet") else to.write_jsonl
        write(folder / name, [ROW])
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def read(folder, split=None, config=None):
    scan = scan_files(FS, str(folder), Wanted(split=split, config=config))
    return scan.part.split, [file.path for file in scan.files]


SHARDS = {
    split: [f"data/{split}-{index:05d}-of-00002.parquet" for index in range(2)]
    for split in ("train_prefs", "test_prefs")
}


@pytest.mark.parametrize(
    ("training", "others", "split"),
    [
        (["a.jsonl", "b.jsonl"], [], None),
        (["train.jsonl"], ["test.jsonl", "dev.jsonl"], "train"),
        (["x/train.jsonl", "y/train.jsonl"], ["x/test.jsonl", "red_team.jsonl"], "train"),
        (["train/0.jsonl", "train/1.jsonl"], ["validation/0.jsonl"], "train"),
        (["my-training_set/0.jsonl"], ["EVAL/0.jsonl"], "train"),
        (["split=train/part-0.parquet"], ["split=test/part-0.parquet"], "train"),
        (["prefs_train_0.jsonl", "prefs_train_1.jsonl"], ["prefs.test.jsonl"], "train"),
        (["train.jsonl"], ["train/test.jsonl", "test/train-00000-of-00001.jsonl"], "train"),
        (SHARDS["train_prefs"], SHARDS["test_prefs"], "train_prefs"),
        (SHARDS["train_prefs"], [*SHARDS["test_prefs"], "data/train_sft-00000-of-00001.parquet"], "train_prefs"),
        (["data/en-00000-of-00001.parquet"], [], "en"),
        (["contest.jsonl", "pretrained.jsonl", "latest-00000-of-00001.jsonl"], [], None),
    ],
)
def test_names_of_files_and_folders_tell_the_split(tmp_path, training, others, split):
    made(tmp_path, [*training, *others])
    assert read(tmp_path) == (split, sorted(training))
    assert read(tmp_path, split="all")[1] == sorted([*training, *others])
    assert read(tmp_path, split=split or "train") == (split or "train", sorted(training))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["test.jsonl"], r"It has test \(1 file\)\. Choose one: `source: \{split: test\}`"),
        (["data/eval-0.jsonl", "data/valid.jsonl"], r"validation \(1 file\), test \(1 file\)"),
        (["data/en-00000-of-00001.jsonl", "data/de-00000-of-00001.jsonl"], r"de \(1 file\), en \(1 file\)"),
        ([f"data/train_{name}-00000-of-00001.parquet" for name in ("gen", "sft")], r"\{split: train_gen\}"),
    ],
)
def test_what_is_not_plainly_for_training_is_asked_for(tmp_path, names, told):
    made(tmp_path, names)
    with pytest.raises(SourceError, match=told):
        read(tmp_path)


def test_a_split_is_chosen_by_name_and_several_are_joined(tmp_path):
    made(tmp_path, ["train.jsonl", "test.jsonl", "dev.jsonl"])
    assert read(tmp_path, split="test") == ("test", ["test.jsonl"])
    assert read(tmp_path, split="train+validation") == ("train+validation", ["dev.jsonl", "train.jsonl"])
    with pytest.raises(SourceError, match=r"no split tset; it has train \(1 file\), validation .*source\.split"):
        read(tmp_path, split="tset")
    assert read(tmp_path / "test.jsonl") == ("test", ["test.jsonl"])
    with pytest.raises(SourceError, match="is one file, of split test"):
        read(tmp_path / "test.jsonl", split="train")


def test_the_card_comes_before_the_names_of_files(tmp_path):
    names = ["data/tr-test.jsonl", "data/te-0.jsonl", "data/extra/deep/train.jsonl", "other/train.jsonl", "loose.jsonl"]
    made(tmp_path, names, CARD)
    assert read(tmp_path) == ("train", ["data/tr-test.jsonl"])
    assert read(tmp_path, split="test") == ("test", ["data/extra/deep/train.jsonl", "data/te-0.jsonl"])
    assert read(tmp_path, config="other") == ("train", ["other/train.jsonl"])
    text = scan_files(FS, str(tmp_path)).part.text()
    assert text == "train of config default (1 file); not read: test (2 files), config other, 1 file of no split"
    with pytest.raises(SourceError, match=r"no config third; it has default, other\. Correct or remove source\.config"):
        read(tmp_path, config="third")
    (tmp_path / "README.md").write_text(CARD.replace("config_name: default", "config_name: first"))
    with pytest.raises(SourceError, match=r"several configs: first, other\. Choose one: `source: \{config: first\}`"):
        read(tmp_path)
    (tmp_path / "README.md").write_text(CARD.replace("data_dir: other", "data_dir: other\n  default: true"))
    with pytest.raises(SourceError, match="several configs"):
        read(tmp_path)
    (tmp_path / "README.md").write_text(CARD.replace("split: test", "split: train_sft"))
    with pytest.raises(SourceError, match="not clear"):
        read(tmp_path)
    elsewhere = CARD.replace("split: test", "split: train_sft").replace("data/e", "no/e").replace("data/te", "no/te")
    (tmp_path / "README.md").write_text(elsewhere)
    assert read(tmp_path) == ("train", ["data/tr-test.jsonl"])  # of the other split no file is there
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nA card without configs.")
    assert read(tmp_path, split="train")[1] == ["data/extra/deep/train.jsonl", "other/train.jsonl"]


@pytest.mark.parametrize(
    ("configs", "told"),
    [
        ("[{config_name: a, data_files: '*.csv'}]", "describes config a, but no data file of it is there"),
        ("[{config_name: a, data_files: [{split: train, path: {}}]}]", "of no known form"),
        ("[{config_name: a, data_files: ../x/*}]", r"\.\./x/\* lies outside the dataset"),
        ("[{config_name: a, data_files: 'https://x.org/a.jsonl'}]", "lies outside the dataset"),
        ("[{data_files: a.jsonl}]", "`configs` is no list of configs with names"),
        ("[", "README.md: its header is not YAML at line 2"),
    ],
)
def test_a_card_that_cannot_be_followed_is_refused(tmp_path, configs, told):
    made(tmp_path, ["a.jsonl"], f"---\nconfigs: {configs}\n---\n")
    with pytest.raises(SourceError, match=told):
        read(tmp_path)


def test_many_stars_in_a_card_take_no_time(tmp_path):
    stars = "*a" * 50
    made(tmp_path, ["a" * 100 + ".jsonl"], f"---\nconfigs: [{{config_name: a, data_files: '{stars}b'}}]\n---\n")
    with pytest.raises(SourceError, match="no data file of it is there"):
        read(tmp_path)


def test_a_saved_dataset_dict_has_splits_too(tmp_path):
    for split in ("train_prefs", "test_prefs"):
        (tmp_path / split).mkdir()
        to.write_arrow_stream(tmp_path / split / "data-00000-of-00001.arrow", [ROW])
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train_prefs", "test_prefs"]}')
    assert read(tmp_path) == ("train_prefs", ["train_prefs/data-00000-of-00001.arrow"])
    assert read(tmp_path, split="test_prefs") == ("test_prefs", ["test_prefs/data-00000-of-00001.arrow"])


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00001-25f4.parquet", "data/test-00000-of-00001-aa.parquet"],
        [f"data/{split}-00000-of-00001.parquet" for split in ("train_prefs", "train_gen", "test_prefs")],
        ["train.jsonl", "validation.jsonl", "preference/preference.jsonl", "disagreements/disagreements.jsonl"],
        ["en/train/0.jsonl", "en/test/0.jsonl", "de/train/0.jsonl"],
        ["my_train/0.jsonl", "my_test/0.jsonl", "dev/0.jsonl"],
        ["train_0.jsonl", "train_1.jsonl", "test_0.jsonl", "my-val.jsonl", "orpo_eval.jsonl"],
        ["data/human-00000-of-00001-25f.parquet", "data/gpt4_pair-00000-of-00001-c0.parquet"],
    ],
)
def test_splits_are_those_of_datasets(tmp_path, names):
    told_by = pytest.importorskip("datasets.data_files")
    made(tmp_path, names)
    patterns = told_by.get_data_patterns(str(tmp_path))
    for split, files in told_by.DataFilesDict.from_patterns(patterns, base_path=str(tmp_path)).items():
        assert read(tmp_path, split=str(split)) == (
            str(split),
            sorted(os.path.relpath(file, tmp_path) for file in files),
        )


@pytest.mark.parametrize(
    "pattern", ["*", "**", "data/*", "data/**", "**/*.jsonl", "data/t[r]ain-?.jsonl", "./data/*/x*"]
)
def test_patterns_of_a_card_are_those_of_datasets(tmp_path, pattern):
    told_by = pytest.importorskip("datasets.data_files")
    names = ["a.jsonl", "data/train-0.jsonl", "data/test-0.jsonl", "data/deep/x.jsonl"]
    made(tmp_path, names, f"---\nconfigs: [{{config_name: a, data_files: '{pattern}'}}]\n---\n")
    files = told_by.resolve_pattern(pattern, str(tmp_path), allowed_extensions=[".jsonl"])
    assert read(tmp_path)[1] == sorted(os.path.relpath(file, tmp_path) for file in files)
