"""Images that are handed in as arrays: of another size, other channels, channels last."""

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.encoders.embedder import Embedder
from nearfar.encoders.items import fit_images
from nearfar.encoders.towers import build_tower

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 52, 3), dtype=np.uint8)
RGB = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


def embedder(
    channels: int = 3, kind: str = "image", name: str = "small-cnn", shape: tuple[int, ...] = (16, 16)
) -> Embedder:
    torch.manual_seed(0)
    return Embedder([build_tower(kind, {"name": name, "shape": [channels, *shape], "outputs": 8})])


@pytest.fixture(scope="module")
def made() -> Embedder:
    return embedder()


def test_another_size_is_scaled_as_pillow_scales(made):
    pictures = [Image.fromarray(pixels) for pixels in PIXELS]
    wanted = np.stack([np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)) for picture in pictures])
    found = fit_images(RGB, (3, 16, 16)).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert (found != wanted).mean() < 0.01
    torch.testing.assert_close(made.embed(RGB), made.embed(pictures), rtol=0, atol=0.003)
    small = RGB[:, :, :7, :5]
    assert made.embed(small).isfinite().all()


def test_it_does_not_matter_how_arrays_come(made):
    wanted = made.embed(RGB)
    floats = RGB.float() / 255
    for given in (RGB.numpy(), PIXELS, list(RGB), list(PIXELS), [RGB[0], PIXELS[1], RGB[2]]):
        torch.testing.assert_close(made.embed(given), wanted)
    for given in (floats, floats.double(), floats.numpy(), PIXELS / 255, list(floats), [floats[0], RGB[1], floats[2]]):
        torch.testing.assert_close(made.embed(given), wanted, rtol=0, atol=0.01)
    mixed = [RGB[0], Image.fromarray(PIXELS[1]), floats[2]]
    torch.testing.assert_close(made.embed(mixed), wanted, rtol=0, atol=0.01)
    for given, held in ((PIXELS[:, ::-1], RGB.flip(2)), (PIXELS[..., ::-1], RGB.flip(1)), (PIXELS[::-1], RGB.flip(0))):
        torch.testing.assert_close(made.embed(given), made.embed(held))
        torch.testing.assert_close(made.embed(list(given)), made.embed(held))
    torch.testing.assert_close(made.embed((PIXELS / 255).astype(">f4")), made.embed(floats))
    assert made.embed(RGB[:0]).shape == (0, 8)


def test_paths_come_in_arrays_and_columns(made, tmp_path):
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    arrow = pytest.importorskip("pyarrow")
    for given in (np.array(paths), np.array(paths, object), arrow.array(paths), tuple(paths)):
        assert torch.equal(made.embed(given), made.embed(paths))


def test_what_is_no_image_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 3, 0, 0\) hold no pixel"):
        made.embed(torch.zeros(2, 3, 0, 0, dtype=torch.uint8))
    for given in (
        torch.zeros(2, 3, 8, 8, dtype=torch.complex64),
        np.zeros((2, 8, 8, 3), complex),
        [np.zeros((8, 8, 3), complex)],
    ):
        with pytest.raises(TypeError, match=r"complex.* wanted real numbers"):
            made.embed(given)


def test_images_of_several_sizes_in_a_list(made):
    found = made.embed([RGB[0], RGB[1, :, :30, :20], RGB[2, :1]])
    for row, alone in zip(found, (RGB[:1], RGB[1:2, :, :30, :20], RGB[2:, :1].expand(-1, 3, -1, -1))):
        torch.testing.assert_close(row[None], made.embed(alone))


def test_grey_and_colour_become_one_another(made):
    grey = RGB[:, :1]
    assert torch.equal(made.embed(grey), made.embed(grey.expand(-1, 3, -1, -1)))
    wanted = np.stack([np.asarray(Image.fromarray(pixels).convert("L")) for pixels in PIXELS])
    found = fit_images(RGB, (1, 40, 52)).squeeze(1).numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 1
    one = embedder(1)
    torch.testing.assert_close(one.embed(RGB), one.embed(torch.from_numpy(wanted).unsqueeze(1)), rtol=0, atol=0.02)


def test_an_alpha_channel_is_laid_over_white():
    clear = torch.cat([RGB, torch.full_like(RGB[:, :1], 51)], 1)  # a fifth
    assert fit_images(clear, (3, 40, 52)).sub(204).float().sub(RGB.float() / 5).abs().max() <= 1
    assert (fit_images(clear[:, 2:], (1, 40, 52)).float() - (204 + RGB[:, 2:].float() / 5)).abs().max() <= 1
    four = embedder(4)
    assert torch.equal(fit_images(clear, (4, 40, 52)), clear)  # for a model of four channels they are four
    assert four.embed(clear.permute(0, 2, 3, 1)).equal(four.embed(clear))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.zeros(2, 5, 16, 16), r"the image tower was given \(2, 5, 16, 16\): wanted \(n, 3, 16, 16\)"),
        (
            torch.zeros(3, 16, 16),
            r"given \(3, 16, 16\).*One image is images\[None\]; grey ones without channels are images\[:, None\]",
        ),
        (torch.zeros(2, 768), r"the image tower was given \(2, 768\)"),
        ([torch.zeros(16, 16)], r"the image tower was given \(1, 16, 16\)"),
        (torch.full((2, 3, 8, 8), 3.0), "float images are between 3 and 3: wanted uint8, or floats in"),
        (torch.full((2, 3, 8, 8), 300), "int64 images are between 300 and 300: wanted uint8"),
        (np.full((2, 3, 8, 8), 300, np.uint16), "uint16 images are between 300 and 300: wanted uint8"),
        (torch.full((2, 3, 8, 8), float("nan")), "float images are between nan and nan"),
    ],
)
def test_what_cannot_be_made_to_fit_is_refused_in_words(given, says, made):
    with pytest.raises(ValueError, match=says):
        made.embed(given)


def test_a_model_of_other_channels_reads_no_files(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="read as grey or as RGB, and the model reads 13 channels: pass tensors"):
        embedder(13).embed(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"the image tower was given \(3, 3, 40, 52\): wanted \(n, 13, 16, 16\)"):
        embedder(13).embed(RGB)


def test_other_sizes_of_vectors_and_series_are_refused_in_words():
    vectors = Embedder([build_tower("vector", {"name": "mlp", "shape": [5], "outputs": 8})])
    with pytest.raises(ValueError, match=r"the vector tower was given \(3, 7\): wanted \(rows, 5\)"):
        vectors.embed(torch.zeros(3, 7))
    flat = embedder(2, "series", "mlp", (30,))
    with pytest.raises(
        ValueError,
        match=r"the series tower was given \(3, 2, 40\), and its network takes no other size than \(rows, 2, 30\)",
    ):
        flat.embed(torch.zeros(3, 2, 40))
    assert embedder(2, "series", "series-cnn", (30,)).embed(torch.zeros(3, 2, 40)).shape == (3, 8)
    with pytest.raises(
        ValueError, match=r"the image tower was given \(3, 3, 40, 52\), and its network takes no other size"
    ):
        embedder()("image", RGB)
