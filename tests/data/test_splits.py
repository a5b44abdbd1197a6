import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bincounter.data.datamodule import BinDataModule
from bincounter.data.grouping import FINGERPRINT_BYTES, assign_groups
from bincounter.data.layouts.abid import Abid
from bincounter.data.records import SPLITS, BinRecord, Manifest, PhotoFile
from bincounter.data.splits import assign_splits, load_or_assign_splits, read_split, write_split
from bincounter.errors import ConfigError, DataError

USUAL = (0.8, 0.1, 0.1)
FRACTIONS = st.sampled_from([USUAL, (0.8, 0.05, 0.15), (0.6, 0.4, 0.0), (0.0, 0.0, 1.0), (0.2, 0.3, 0.5)])


def split(counts, groups=None, fractions=USUAL, method="grouped", seed=0, sides=None, fold=None):
    counts = np.asarray(counts)
    groups = np.arange(len(counts)) if groups is None else np.asarray(groups)
    return assign_splits(
        counts, groups, fractions=fractions, method=method, seed=seed, given=sides or [None] * len(counts), fold=fold
    )


@st.composite
def grouped_photos(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=60, max_size=200))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, draw(st.integers(1, 6)), len(groups)), rng.permutation(groups), sizes


@settings(max_examples=60, deadline=None)
@given(grouped_photos(), FRACTIONS, st.integers(0, 2**32 - 1))
def test_groups_stay_whole_and_sides_near_their_shares(photos, fractions, seed):
    counts, groups, sizes = photos
    sides = split(counts, groups, fractions, seed=seed)
    assert all(len(set(sides[groups == group])) == 1 for group in range(len(sizes)))
    held = np.bincount(sides, minlength=3)
    assert held.sum() == len(counts)
    assert all(held[side] == 0 for side in range(3) if fractions[side] == 0)
    assert np.abs(held - np.array(fractions) * len(counts)).max() <= 2 * max(sizes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(20, 80), min_size=1, max_size=6), FRACTIONS, st.integers(0, 2**32 - 1))
def test_random_split_is_stratified_by_count(sizes, fractions, seed):
    counts = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    sides = split(counts, np.zeros(len(counts), int), fractions, "random", seed)
    for count, size in enumerate(sizes):
        held = np.bincount(sides[counts == count], minlength=3)
        assert np.abs(held - np.array(fractions) * size).max() <= 2


@settings(max_examples=20, deadline=None)
@given(grouped_photos(), st.sampled_from(["grouped", "random"]), st.sampled_from([3, 5]))
def test_folds_hold_each_photo_out_once(photos, method, parts):
    counts, groups, sizes = photos
    fractions = (0.9 - 1 / parts, 0.1, 1 / parts)
    folds = [split(counts, groups, fractions, method, sides=["train"] * len(counts), fold=i) for i in range(parts)]
    assert (np.sum([sides == SPLITS.index("test") for sides in folds], axis=0) == 1).all()
    for sides in folds:
        assert np.abs(np.bincount(sides) - np.array(fractions) * len(counts)).max() <= 3 * max(sizes)
        if method == "grouped":
            assert all(len(set(sides[groups == group])) == 1 for group in range(len(sizes)))


def test_same_seed_same_split_other_seed_other_split():
    counts, groups = np.arange(600) % 5, np.arange(600) // 2
    assert (split(counts, groups, seed=3) == split(counts, groups, seed=3)).all()
    assert (split(counts, groups, seed=3) != split(counts, groups, seed=4)).any()


def test_rare_counts_go_to_training_first():
    counts = np.concatenate([np.arange(200) % 4, [90, 91, 91]])
    assert split(counts)[-3:].tolist() == [0, 0, 0]


def test_many_rare_counts_leave_the_small_sides_their_photos():
    assert np.bincount(split(np.repeat(np.arange(50), 2))).tolist() == [80, 10, 10]


@pytest.mark.parametrize("method", ["grouped", "random", "given"])
def test_side_without_photos_is_answered(method):
    with pytest.raises(DataError, match=r"fractions=\[0.8,0.1,0.1\] leaves no photo for the validation split"):
        split([1, 2], fractions=USUAL, method=method, sides=["train", "test"])


def test_one_group_cannot_be_divided():
    with pytest.raises(DataError, match="50 photos in 1 near-copy group"):
        split(np.arange(50) % 5, np.zeros(50, int))


class TestSidesOfTheLayout:
    SIDES = ("train", "train", "train", "validation", "test", "test")

    def test_are_taken_as_they_are(self, caplog):
        with caplog.at_level(logging.INFO):
            assert split([1] * 6, sides=self.SIDES).tolist() == [0, 0, 0, 1, 2, 2]
        assert "data.split.fractions and data.split.seed are not used" in caplog.text

    def test_are_split_anew_where_near_copies_straddle_them(self, caplog):
        groups = np.repeat(np.arange(50), 2)
        sides = (["train"] * 8 + ["validation", "test"]) * 10
        with caplog.at_level(logging.WARNING):
            assignment = split([1] * 100, groups, sides=sides)
        assert all(len(set(assignment[groups == group])) == 1 for group in range(50))
        assert [record.getMessage() for record in caplog.records] == [
            "20 of 100 photos are near-copies of photos in another split folder: splitting by group instead "
            "(data.split.method=given keeps the folders' split)"
        ]

    def test_are_kept_by_name_even_then(self):
        assert split([1] * 6, [0] * 6, method="given", sides=self.SIDES).tolist() == [0, 0, 0, 1, 2, 2]

    def test_give_way_to_scoring_every_photo(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert split([1] * 6, fractions=(0, 0, 1), sides=self.SIDES).tolist() == [2] * 6
        assert not caplog.records

    def test_give_way_where_they_are_not_the_sides_asked_for(self, caplog):
        assignment = split([1] * 60, sides=["train", "validation"] * 30)
        assert np.bincount(assignment).tolist() == [48, 6, 6]
        assert "not train and validation and test for every photo" in caplog.text

    @pytest.mark.parametrize(
        ("sides", "there"), [([None] * 3, "no photo"), (["train", None, "test"], "only 2 of 3 photos")]
    )
    def test_are_asked_for_and_missing(self, sides, there):
        with pytest.raises(ConfigError, match=f"{there} is in one: set data.split.method=grouped"):
            split([1, 2, 3], method="given", sides=sides)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": {"method": "foo"}}, "data.split.method=foo is not one of grouped, given, random"),
        ({"split": {"test": 0.2}}, "split=test is not one of method, fractions, seed, fold"),
        ({"split": {"fractions": (0.5, 0.1, 0.1)}}, "write three shares"),
        ({"split": {"fractions": (0.9, 0.1)}}, "write three shares"),
        ({"split": {"fold": 0, "fractions": (0.8, 0.2, 0)}}, "data.split.fold=0 needs a test share"),
        ({"split": {"fold": 7, "fractions": (0.6, 0.2, 0.2)}}, "makes 5 parts, 0 to 4"),
        ({"counts": [1, 1, 2]}, "has a count twice"),
        ({"counts": []}, "leaves nothing to distinguish"),
        ({"batch_size": 0}, "data.batch_size=0 is out of range"),
    ],
)
def test_wrong_arguments_of_a_data_module_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        BinDataModule("bins", **options)


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean data\.split\.method=grouped"):
        split([1] * 50, method="groupd")


def manifest(photos=40, digest="d1"):
    records = tuple(
        BinRecord(f"{i % 4}/bin, {i:03d}", PhotoFile(Path(f"{i}.jpg")), i % 4, i // 2) for i in range(photos)
    )
    sizes, content = np.ones((photos, 2), np.int32), np.arange(photos, dtype=np.uint64)
    return Manifest(Path("bins"), records, (None,) * photos, sizes, content, (), digest)


def stored(cache, data=None, keep=None, fractions=USUAL, method="grouped", seed=0):
    data = data or manifest()
    keep = np.arange(len(data.records)) if keep is None else keep
    return load_or_assign_splits(data, keep, fractions=fractions, method=method, seed=seed, cache_dir=cache)


class TestStoredSplit:
    def test_is_read_again(self, tmp_path):
        stored(tmp_path)
        (path,) = (tmp_path / "splits").iterdir()
        rows = [[row.id, row.count, row.group, row.split] for row in read_split(path)]
        other = [SPLITS[(SPLITS.index(row[3]) + 1) % 3] for row in rows]
        write_split(path, manifest().records, np.array([SPLITS.index(side) for side in other]))
        assert [SPLITS[side] for side in stored(tmp_path)] == other

    def test_depends_on_data_and_settings(self, tmp_path):
        stored(tmp_path)
        stored(tmp_path, seed=1)
        stored(tmp_path, fractions=(0.5, 0.25, 0.25))
        stored(tmp_path, method="random")
        stored(tmp_path, data=manifest(digest="d2"))
        stored(tmp_path, keep=np.arange(0, 40, 2))
        assert len(list((tmp_path / "splits").iterdir())) == 6

    @pytest.mark.parametrize(
        "damage", [b"", b"id,count,group,split\n", b"\xff\xfe", b"id,count,group,split\nx,1,0,train\n"]
    )
    def test_is_made_again_when_damaged(self, tmp_path, damage):
        before = stored(tmp_path)
        (path,) = (tmp_path / "splits").iterdir()
        whole = path.read_bytes()
        path.write_bytes(damage)
        assert (stored(tmp_path) == before).all()
        assert path.read_bytes() == whole

    def test_covers_the_kept_photos_only(self, tmp_path):
        assert len(stored(tmp_path, keep=np.arange(10, 40))) == 30


def test_written_split_is_read_back(tmp_path):
    records = manifest(6).records
    write_split(tmp_path / "split.csv", records, np.array([0, 0, 1, 1, 2, 2]))
    rows = read_split(tmp_path / "split.csv")
    assert [(row.id, row.count, row.group) for row in rows] == [(r.id, r.count, r.group) for r in records]
    assert [row.split for row in rows] == ["train", "train", "validation", "validation", "test", "test"]


@pytest.mark.parametrize(
    "text", [None, "", "id,split\na,train\n", "id,count,group,split\na,1,0,elsewhere\n", "id,count,group,split\na,1\n"]
)
def test_what_is_no_split_is_answered(tmp_path, text):
    if text is not None:
        (tmp_path / "split.csv").write_text(text)
    with pytest.raises(DataError, match="is not a split"):
        read_split(tmp_path / "split.csv")


@pytest.mark.photos
@pytest.mark.parametrize("fractions", [USUAL, (0.8, 0.05, 0.15)])
def test_shares_of_real_photos(abid_photos, fractions):
    candidates = sorted(Abid().list(abid_photos).candidates, key=lambda candidate: candidate.id)
    counts = np.array([candidate.count for candidate in candidates])
    groups = assign_groups(
        [candidate.items for candidate in candidates],
        np.zeros((len(candidates), FINGERPRINT_BYTES), np.uint8),
        np.arange(len(candidates), dtype=np.uint64),
    )
    kept = (counts >= 1) & (counts <= 5)
    sides = split(counts[kept], groups[kept], fractions)
    wanted = np.outer(np.bincount(counts[kept]), fractions)
    held = np.stack([np.bincount(counts[kept][sides == side], minlength=6) for side in range(3)], axis=1)
    assert np.abs(held.sum(axis=0) - wanted.sum(axis=0)).max() <= 1
    assert np.abs(held - wanted).max() <= 1
