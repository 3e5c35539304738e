"""The transformer for scikit-learn: its rules, and what the embedding is worth on real data."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import nearfar as nf

EXPECTED_TO_FAIL: dict[str, str] = {}
"""Checks that cannot apply, each with its reason."""


def quick(**options) -> nf.ContrastiveEncoder:
    return nf.ContrastiveEncoder(**{"dim": 8, "hidden": 16, "epochs": 3, "random_state": 0} | options)


@parametrize_with_checks([quick()], expected_failed_checks=lambda _: EXPECTED_TO_FAIL)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x, y, train_size=500, test_size=500, random_state=0, stratify=y)


def test_wine_is_told_apart_better_than_raw():
    """178 wines, 13 measurements on very different scales; five-fold, nearest neighbours."""
    x, y = load_wine(return_X_y=True)
    raw = cross_val_score(KNeighborsClassifier(5), x, y, cv=5).mean()
    pipeline = make_pipeline(nf.ContrastiveEncoder(epochs=30, random_state=0), KNeighborsClassifier(5))
    ours = cross_val_score(pipeline, x, y, cv=5).mean()
    assert raw < 0.8
    assert ours > 0.93


def test_digits_as_images_with_and_without_classes(digits):
    x, x_test, y, y_test = digits
    knn = KNeighborsClassifier(5)
    supervised = nf.ContrastiveEncoder(epochs=30, random_state=0, image_shape=(8, 8)).fit(x, y)
    assert knn.fit(supervised.transform(x), y).score(supervised.transform(x_test), y_test) > 0.93
    alone = nf.ContrastiveEncoder(epochs=30, random_state=0, image_shape=(8, 8)).fit(x)
    untrained = nf.ContrastiveEncoder(epochs=1, lr=1e-12, random_state=0, image_shape=(8, 8)).fit(x)
    found = {e: knn.fit(e.transform(x), y).score(e.transform(x_test), y_test) for e in (alone, untrained)}
    assert found[alone] > found[untrained] + 0.02
    assert found[alone] > 0.9
    assert alone.loss_curve_[-1] < alone.loss_curve_[0]


def test_scarf_learns_without_classes(digits):
    x, x_test, y, y_test = digits
    encoder = nf.ContrastiveEncoder(epochs=20, random_state=0).fit(x)
    assert encoder.loss_curve_[-1] < 0.85 * encoder.loss_curve_[0]
    head = KNeighborsClassifier(5).fit(encoder.transform(x), y)
    assert head.score(encoder.transform(x_test), y_test) > 0.85


def test_images_come_flat_or_as_arrays(digits):
    x = digits[0][:60]
    flat = quick(image_shape=(8, 8)).fit(x).transform(x)
    assert np.array_equal(flat, quick().fit(x.reshape(-1, 8, 8)).transform(x.reshape(-1, 8, 8)))
    assert np.array_equal(flat, quick().fit(x.reshape(-1, 1, 8, 8)).transform(x))
    colour = np.random.default_rng(0).random((20, 3, 8, 8))
    assert quick().fit(colour, np.arange(20) % 2).transform(colour).shape == (20, 8)


def test_the_seed_decides(digits):
    x, y = digits[0][:80], digits[2][:80]
    same = quick().fit(x, y).transform(x)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert np.array_equal(quick().fit(x, y).transform(x), same)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers are drawn
    assert not np.array_equal(quick(random_state=1).fit(x, y).transform(x), same)
    one = np.random.RandomState(0)
    assert not np.array_equal(
        quick(random_state=one).fit(x, y).transform(x), quick(random_state=one).fit(x, y).transform(x)
    )


def test_embeddings_have_length_one_and_keep_the_type(digits):
    x = digits[0][:50]
    encoder = quick().fit(x)
    for dtype in (np.float32, np.float64):
        z = encoder.transform(x.astype(dtype))
        assert z.dtype == dtype
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(encoder.transform(x), encoder.transform(x.astype(np.float32)), atol=1e-5)


def test_a_pickled_one_is_the_same(digits):
    x = digits[0][:50]
    encoder = quick().fit(x)
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).transform(x), encoder.transform(x))


def test_pandas_come_back(digits):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(digits[0][:50], columns=[f"pixel {i}" for i in range(64)])
    out = quick().set_output(transform="pandas").fit(frame).transform(frame)
    assert list(out.columns) == [f"contrastiveencoder{i}" for i in range(8)]
    assert out.index.equals(frame.index)
    encoder = quick().fit(frame)
    assert list(encoder.feature_names_in_) == list(frame.columns)


def test_a_grid_search_over_it(digits):
    x, y = digits[0][:150], digits[2][:150]
    pipeline = make_pipeline(quick(epochs=40), KNeighborsClassifier(3))
    search = GridSearchCV(
        pipeline, {"contrastiveencoder__dim": [2, 16], "contrastiveencoder__temperature": [0.1]}, cv=2
    )
    search.fit(x, y)
    assert search.best_params_["contrastiveencoder__dim"] == 16
    assert search.score(x, y) > 0.8


@pytest.mark.parametrize(
    "y", [np.array(["a", "b"] * 20), np.array([3, 5] * 20), np.array([True, False] * 20), [[0], [1]] * 20]
)
def test_classes_of_any_type(y):
    x = np.random.default_rng(0).random((40, 5))
    encoder = quick().fit(x, y)
    assert len(encoder.classes_) == 2


def test_every_view_of_tables_and_images(digits):
    x = digits[0][:40]
    for views in ("auto", "scarf", "mask", "none"):
        assert np.isfinite(quick(views=views).fit(x, digits[2][:40]).transform(x)).all()
    for views in ("light", "simclr"):
        assert np.isfinite(quick(views=views, image_shape=(8, 8)).fit(x).transform(x)).all()


def test_a_constant_feature_and_huge_ones():
    x = np.random.default_rng(0).random((30, 4)) * [0.0, 1e-20, 1e20, 1.0] + [7.0, 0.0, 0.0, 1e6]
    assert np.isfinite(quick().fit(x).transform(x)).all()


def test_it_tells_how_it_goes(capsys):
    quick(verbose=2, epochs=4).fit(np.random.default_rng(0).random((20, 3)))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["epoch 2/4", "epoch 4/4"]


def test_parameters_are_kept_as_given():
    encoder = quick(temperature=0.3, views="none")
    assert clone(encoder).get_params() == encoder.get_params()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("classes", [True, False])
def test_images_of_any_number_of_channels_first_or_last(channels, classes):
    first = np.random.default_rng(0).random((24, channels, 16, 16)).astype(np.float32)
    last = np.moveaxis(first, 1, -1)
    y = np.arange(24) % 2 if classes else None
    encoder, other = quick(epochs=2).fit(first, y), quick(epochs=2).fit(last, y)
    assert encoder.image_shape_ == other.image_shape_ == (channels, 16, 16)
    wanted = encoder.transform(first)
    for found in (
        other.transform(last),
        other.transform(first),
        encoder.transform(last),
        other.transform(last.reshape(24, -1)),
    ):
        np.testing.assert_array_equal(found, wanted)
    more = np.zeros((2, channels + 1, 16, 16), np.float32)
    for wrong in (more, np.moveaxis(more, 1, -1)):
        with pytest.raises(ValueError, match=rf"images are .*, but the encoder was trained on \({channels}, 16, 16\)"):
            encoder.transform(wrong)


def test_images_that_could_be_read_in_two_ways_are_asked_about():
    x = np.random.default_rng(0).random((12, 3, 32, 4))
    says = r"images are \(3, 32, 4\), which could be .*image_shape=\(3, 32, 4\) or image_shape=\(4, 3, 32\)"
    with pytest.raises(ValueError, match=says):
        quick().fit(x)
    for shape in ((3, 32, 4), (4, 3, 32)):
        assert quick(epochs=1, image_shape=shape).fit(x).image_shape_ == shape
    with pytest.raises(ValueError, match=r"images are \(3, 32, 4\), but image_shape is \(3, 8, 8\)"):
        quick(image_shape=(3, 8, 8)).fit(x)


@pytest.mark.parametrize("views", ["light", "simclr"])
def test_views_of_images_that_are_not_red_green_and_blue(views):
    x = np.random.default_rng(0).random((16, 5, 16, 16)).astype(np.float32)
    assert np.isfinite(quick(views=views).fit(x).transform(x)).all()


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_a_negative_class_is_unknown(digits, kind):
    x, x_test, y, y_test = digits
    few = np.where(np.arange(500) < 100, y, -1).astype(kind)
    encoder = nf.ContrastiveEncoder(epochs=30, random_state=0).fit(x, few)
    assert encoder.classes_.tolist() == list(range(10))
    labelled = x[:100], y[:100]
    right = (
        KNeighborsClassifier(3)
        .fit(encoder.transform(labelled[0]), labelled[1])
        .score(encoder.transform(x_test), y_test)
    )
    assert right > 0.85
    unknown = encoder.transform(x[100:])  # were they one class, they would lie together
    assert (unknown @ unknown.T).mean() < 0.5


def test_unknown_rows_take_part_by_their_views_alone(digits):
    x, y = digits[0][:60], np.where(np.arange(60) < 30, digits[2][:60], -1)
    one, other = quick(views="none").fit(x, y), quick(views="none").fit(x, np.where(y < 0, -7, y))
    np.testing.assert_array_equal(one.transform(x), other.transform(x))  # any negative number
    assert not np.array_equal(quick().fit(x, y).transform(x), one.transform(x))
    with pytest.raises(
        ValueError, match=r"1 classes for 20 rows of known class \(a negative number is an unknown one\)"
    ):
        quick().fit(X.repeat(2, 0), np.array([1, -1] * 20))


X = np.random.default_rng(0).random((20, 4))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: quick().fit(X, np.zeros(20)), "1 classes for 20 rows"),
        (lambda: quick().fit(X, np.arange(20)), "20 classes for 20 rows"),
        (lambda: quick().fit(X, X[:, 0]), "continuous"),
        (lambda: quick().fit(X, np.zeros(3)), "one class a row was wanted"),
        (lambda: quick(dim=0).fit(X), "dim is 0"),
        (lambda: quick(batch_size=1).fit(X), "batch_size is 1"),
        (lambda: quick(views="scraf").fit(X), "did you mean"),
        (lambda: quick(views="simclr").fit(X), "simclr"),
        (lambda: quick(corruption=1.5).fit(X), "corruption is 1.5"),
        (lambda: quick(temperature="0.1").fit(X), "temperature is '0.1'"),
        (lambda: quick(lr=math.nan).fit(X), "lr is nan"),
        (lambda: quick(weight_decay=None).fit(X), "weight_decay is None"),
        (lambda: quick(verbose="yes").fit(X), "verbose is 'yes'"),
        (lambda: quick(views=None).fit(X), "no view 'None'"),
        (lambda: quick(image_shape=(3, 3)).fit(X), "a row has 4 numbers"),
        (lambda: quick(image_shape=(4,)).fit(X), "was wanted"),
        (lambda: quick().fit(X * 1e300), "beyond float32"),
        (lambda: quick().fit(X.reshape(20, 2, 2)).transform(X.reshape(20, 4, 1)), "trained on"),
    ],
)
def test_wrong_input(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()
