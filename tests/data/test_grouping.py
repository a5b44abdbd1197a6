import io
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bincounter.data.grouping import FINGERPRINT_BYTES, assign_groups, fingerprint
from bincounter.data.preprocessing import decode
from bincounter.data.splits import assign_splits

NAMES = st.one_of(st.from_regex(r"[a-c]{0,2}0{0,2}[0-9]{0,3}", fullmatch=True), st.text(max_size=8))


def scene(seed, cells=8, side=200):
    grid = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)


def photographed_again(image, seed):
    """The scene with one item more, and the camera a little closer."""
    item = Image.new("RGB", (80, 70), tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist()))
    changed = image.copy()
    changed.paste(item, (60, 90))
    return changed.crop((5, 5, 195, 195))


def encoded(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def printed(image, quality=90):
    return fingerprint(decode(encoded(image, quality), 32))


def groups_of(images, names=None):
    return grouped(np.stack([printed(image) for image in images]), names=names)


def grouped(fingerprints, items=None, content=None, names=None, given=None):
    number = len(fingerprints)
    content = np.arange(number, dtype=np.uint64) if content is None else np.asarray(content, np.uint64)
    return assign_groups(items or [None] * number, fingerprints, content, names, given).tolist()


def by_items(*sets, content=None):
    return grouped(np.zeros((len(sets), FINGERPRINT_BYTES), np.uint8), [frozenset(s) for s in sets], content)


def test_fingerprint_has_its_size_and_type():
    print_ = fingerprint(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8))
    assert (print_.shape, print_.dtype) == ((FINGERPRINT_BYTES,), np.uint8)


class TestGroupsThatTheSourceSays:
    def test_they_keep_their_numbers_whatever_the_photos_show(self):
        same = np.stack([printed(scene(1))] * 4)
        assert grouped(same, given=[7, 3, 3, 7]) == [7, 3, 3, 7]

    def test_identical_files_join_them(self):
        apart = np.stack([printed(scene(seed)) for seed in range(4)])
        assert grouped(apart, content=[1, 2, 2, 4], given=[9, 5, 6, 6]) == [9, 5, 5, 5]

    def test_photos_without_one_are_compared_with_all_others(self):
        shown = np.stack([printed(scene(seed)) for seed in (1, 2, 1, 3, 3)])
        assert grouped(shown, given=[4, 0, None, None, None]) == [4, 0, 4, 5, 5]


class TestItems:
    def test_half_of_the_items_in_common_is_one_scene(self):
        assert by_items("ab", "bc", "a", "xyz", "xy", "ab") == [0, 1, 0, 2, 2, 0]

    def test_scenes_are_joined_transitively(self):
        assert by_items("ab", "abc", "bc") == [0, 0, 0]
        assert by_items("ab", "bc") == [0, 1]

    def test_every_empty_bin_is_a_scene_of_its_own(self):
        assert by_items("", "", "a", "") == [0, 1, 2, 3]

    def test_identical_files_are_one_scene_whatever_their_items(self):
        assert by_items("", "", "a", "b", content=[7, 7, 7, 8]) == [0, 0, 0, 1]

    def test_known_items_overrule_looks(self):
        same = np.stack([printed(scene(1))] * 4)
        assert grouped(same, [frozenset("a"), frozenset("b"), None, None]) == [0, 1, 2, 2]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=5), min_size=1, max_size=40))
    def test_agrees_with_comparing_every_pair(self, sets):
        links = [
            (i, j)
            for i, j in combinations(range(len(sets)), 2)
            if 2 * len(sets[i] & sets[j]) >= len(sets[i] | sets[j]) > 0
        ]
        left, right = np.array(links, int).reshape(-1, 2).T
        graph = coo_array((np.ones(len(links)), (left, right)), shape=(len(sets), len(sets)))
        expected = connected_components(graph, directed=False)[1]
        found = np.array(by_items(*sets))
        assert ((found[:, None] == found) == (expected[:, None] == expected)).all()
        assert [int(group) for group in dict.fromkeys(found.tolist())] == list(range(found.max() + 1))

    def test_an_item_in_every_bin_joins_nothing_by_itself(self):
        assert len(set(by_items(*({"tape", f"x{i}", f"y{i}"} for i in range(3000))))) == 3000


class TestLooks:
    COPIES = (
        ("JPEG at quality 30", lambda image: Image.open(io.BytesIO(encoded(image, 30)))),
        ("a third of the size", lambda image: image.resize((67, 67))),
        ("another aspect ratio", lambda image: image.resize((300, 150))),
        ("one percent cropped", lambda image: image.crop((2, 2, 198, 198))),
        ("brighter", lambda image: ImageEnhance.Brightness(image).enhance(1.15)),
        ("darker", lambda image: ImageEnhance.Brightness(image).enhance(0.7)),
        ("less contrast", lambda image: ImageEnhance.Contrast(image).enhance(0.8)),
    )

    @pytest.mark.parametrize("change", [change for _, change in COPIES], ids=[name for name, _ in COPIES])
    def test_copies_are_one_group(self, change):
        images = [scene(seed) for seed in range(20)]
        assert groups_of(images + [change(image) for image in images]) == [*range(20), *range(20)]

    def test_mirrored_and_recoloured_photos_are_others(self):
        image = scene(0)
        red, green, blue = image.split()
        swapped = Image.merge("RGB", (blue, red, green))
        assert groups_of([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), swapped]) == [0, 1, 2]

    def test_noise_is_not_alike(self):
        assert len(set(groups_of([scene(seed, cells=200) for seed in range(60)]))) == 60

    def test_flat_photos_are_told_apart_by_colour(self):
        shades = [
            Image.new("RGB", (50, 50), colour)
            for colour in ("black", "white", "red", "lime", "blue", "grey", "#818181")
        ]
        found = groups_of(shades + [shade.resize((90, 70)) for shade in shades])
        assert found == [*range(7), *range(7)]

    def test_gradients_of_other_directions_and_colours_are_others(self):
        ramp, even = Image.linear_gradient("L"), Image.new("L", (256, 256), 40)
        bands = [[ramp.rotate(turn), even, even] for turn in (0, 90, 180, 270)]
        ramps = [Image.merge("RGB", three[first:] + three[:first]) for three in bands for first in range(3)]
        assert len(set(groups_of(ramps))) == 12

    def test_a_photo_is_linked_wherever_its_copy_is(self):
        prints = np.stack([printed(scene(seed, side=32)) for seed in range(2500)])
        assert grouped(np.concatenate([prints, prints[::-1]])) == [*range(2500), *range(2499, -1, -1)]


class TestNames:
    def test_neighbouring_numbers_link_a_bin_photographed_again(self):
        bins = [image for seed in range(40) for image in (scene(seed), photographed_again(scene(seed), seed))]
        names = [f"{index % 2}/{10 * (index // 2) + index % 2:05d}.jpg" for index in range(80)]
        assert groups_of(bins, names) == [index // 2 for index in range(80)]
        assert len(set(groups_of(bins))) > 70

    @pytest.mark.parametrize("second", ["bin-00018", "IMG00018", "18", "00020", "scene"])
    def test_only_numbers_of_one_series_are_neighbours(self, second):
        bins = [scene(1), photographed_again(scene(1), 2)]
        assert groups_of(bins, ["00017", second]) == [0, 1]
        assert groups_of(bins, ["00017", "00018"]) == [0, 0]

    def test_consecutive_photos_of_similar_bins_are_not_linked(self):
        common = scene(0, cells=4)
        bins = [Image.blend(common, scene(seed), 0.6) for seed in range(1, 301)]
        found = groups_of(bins, [f"{index:04d}" for index in range(300)])
        assert np.bincount(found).max() <= 6

    @settings(max_examples=60, deadline=None)
    @given(st.lists(NAMES, min_size=1, max_size=30))
    def test_any_name_is_taken(self, names):
        prints = np.random.default_rng(0).integers(0, 256, (len(names), FINGERPRINT_BYTES), dtype=np.uint8)
        assert grouped(prints, names=names) == list(range(len(names)))


@pytest.fixture(scope="module")
def real_bins(abid_photos):
    """Names, item sets and fingerprints of 4,000 photos, neighbours among them as in the whole set."""
    paths = sorted((abid_photos / "bin-images").glob("*.jpg"))[:4000]
    metadata = (json.loads((abid_photos / "metadata" / f"{path.stem}.json").read_text()) for path in paths)
    prints = np.stack([fingerprint(decode(path.read_bytes(), 32)) for path in paths])
    return [path.stem for path in paths], [frozenset(stated["BIN_FCSKU_DATA"]) for stated in metadata], prints


@pytest.fixture(scope="module")
def real_pairs(real_bins):
    """Pairs of real photos of one scene, by their items, and pairs of bins with nothing in common."""
    items = real_bins[1]
    known = {item: column for column, item in enumerate(sorted(frozenset().union(*items)))}
    holds = np.zeros((len(items), len(known)), np.float32)
    for row, inside in enumerate(items):
        holds[row, [known[item] for item in inside]] = 1
    shared, sizes = holds @ holds.T, holds.sum(axis=1)
    one_scene = (shared > 0) & (3 * shared >= sizes[:, None] + sizes)  # Jaccard of one half
    others = (shared == 0) & (sizes[:, None] > 0) & (sizes > 0)  # an empty bin may have been filled
    return one_scene, others


@pytest.mark.photos
def test_real_photographs_of_one_bin_are_linked_and_others_are_not(real_bins, real_pairs):
    names, _, prints = real_bins
    groups = np.array(grouped(prints, names=names))
    one_scene, others = (kind[np.triu_indices(len(names), 1)] for kind in real_pairs)
    together = (groups[:, None] == groups)[np.triu_indices(len(names), 1)]
    assert together[one_scene].mean() >= 0.6
    assert others[together].mean() <= 0.1
    assert np.bincount(groups).max() <= 8


@pytest.mark.photos
def test_names_and_looks_keep_most_real_scenes_on_one_side(real_bins, real_pairs):
    names, _, prints = real_bins

    def leaked(groups):
        sides = assign_splits(
            np.zeros(len(names)), groups, fractions=(0.8, 0.1, 0.1), method="grouped", seed=0, given=[None] * len(names)
        )
        return real_pairs[0][np.ix_(sides == 2, sides == 0)].any(axis=1).mean()

    assert leaked(np.arange(len(names))) > 0.4
    assert leaked(np.array(grouped(prints, names=names))) < 0.25


@pytest.mark.photos
def test_real_copies_are_linked_without_names(abid_photos, abid_originals):
    paths = sorted((abid_originals / "bin-images").glob("*.jpg"))[:300]
    folders = (abid_originals / "bin-images", abid_photos / "bin-images")
    copies = [fingerprint(decode((folder / path.name).read_bytes(), 32)) for folder in folders for path in paths]
    found = np.array(grouped(np.stack(copies)))
    assert (found[:300] == found[300:]).all()
    assert len(set(found)) >= 295
