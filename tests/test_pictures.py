"""Images lie upright whatever the file, and are the same however they are handed in."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.pixels import decode_image, image_header
from nearfar.data.sources import load_data
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.towers import build_tower

ORIENTATION = 0x0112
# What a viewer makes of the stored rows and columns: CIPA DC-008 (EXIF 2.32), figure 8, by its eight numbers.
SHOWN = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip
STORED = np.zeros((16, 32, 3), np.uint8)
STORED[:8, :16], STORED[8:, :16], STORED[:8, 16:] = (240, 20, 20), (20, 240, 20), (20, 20, 240)
EXACT = ("PNG", "TIFF", "TIFF lzw")


def saved(form: str, orientation: int) -> bytes:
    """An image of four colours that is to be turned."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    more = {
        "MPO": {"save_all": True, "append_images": [Image.fromarray(255 - STORED)]},
        "TIFF lzw": {"compression": "tiff_lzw"},
    }
    options = {"exif": exif, **({} if form in EXACT else {"quality": 95}), **more.get(form, {})}
    Image.fromarray(STORED).save(file, form.split()[0], **options)
    return file.getvalue()


def close(pixels: torch.Tensor, wanted: np.ndarray, form: str) -> bool:
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - wanted).mean()
    return difference == 0 if form in EXACT else difference < 15  # turned another way: 80


@pytest.mark.parametrize("cell", [".", "..", "/", "more"])
def test_a_folder_in_place_of_an_image_is_called_one(cell, tmp_path):
    (tmp_path / "more").mkdir()
    for i in range(6):
        Image.fromarray(STORED[:, :, i % 3]).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows, f"{cell},a"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"t\.csv:8: column 'image'.* is a folder: an image file was wanted"):
        open_corpus(DataConfig(str(tmp_path / "t.csv")))
    corpus = open_corpus(DataConfig(str(tmp_path / "t.csv"), skip_bad=True))
    assert (len(corpus.train) + len(corpus.test), len(corpus.bad)) == (6, 1)
    embedder = Embedder([build_tower("image", {"name": "small-cnn", "shape": [1, 8, 8], "outputs": 4})])
    for given in (str(tmp_path), tmp_path, [tmp_path / "0.png", tmp_path]):
        with pytest.raises(ValueError, match="is a folder: an image file was wanted"):
            embedder.embed(given)


AVIF = pytest.param(
    "AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
)


@pytest.mark.parametrize("form", [*EXACT, "JPEG", "MPO", "WEBP", AVIF])
def test_every_format_is_turned_upright_whoever_hands_it_in(form, tmp_path):
    for orientation, shown in SHOWN.items():
        data, wanted = saved(form, orientation), shown(STORED)
        path = tmp_path / f"{orientation}.bin"
        path.write_bytes(data)
        size = wanted.shape[:2]
        header = image_header(path)
        assert (header.height, header.width) == size
        pixels = decode_image(path, size, 3)
        assert close(pixels, wanted, form), orientation
        loaded = Image.open(path)
        loaded.load()
        for source in (data, Image.open(path), loaded, Image.open(path).convert("RGB")):
            assert torch.equal(decode_image(source, size, 3), pixels)


def late(data: bytes, kind: bytes, held: bytes) -> bytes:
    """A PNG file with a chunk after its pixels."""
    chunk = struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))
    return data[:-12] + chunk + data[-12:]


def test_orientation_after_the_pixels_of_a_png_and_in_xmp():
    exif, plain = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    Image.fromarray(STORED).save(plain, "PNG")
    xmp = '<x:xmpmeta xmlns:tiff="t"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info, early = PngInfo(), io.BytesIO()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(STORED).save(early, "PNG", pnginfo=info)
    told = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
    for data in (
        late(plain.getvalue(), b"eXIf", exif.tobytes()[6:]),
        late(plain.getvalue(), b"iTXt", told),
        early.getvalue(),
    ):
        header = image_header(data)
        assert (header.height, header.width) == (32, 16)
        assert close(decode_image(data, (32, 16), 3), SHOWN[6](STORED), "PNG")


@pytest.mark.parametrize(
    "held", [b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0junk", b"Exif\0\0" + b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"]
)
def test_broken_exif_leaves_the_pixels_as_they_are(held):
    for form in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(STORED).save(file, form, exif=held, **({} if form == "PNG" else {"quality": 95}))
        assert close(decode_image(file.getvalue(), (16, 32), 3), STORED, form)


def test_an_orientation_that_there_is_not_is_upright():
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = 9
    Image.fromarray(STORED).save(file, "PNG", exif=exif)
    assert close(decode_image(file.getvalue(), (16, 32), 3), STORED, "PNG")


@pytest.fixture(scope="module")
def turned(tmp_path_factory) -> Path:
    """Sixteen PNG files on their side, of which no two are the same, by class."""
    root = tmp_path_factory.mktemp("turned")
    for i in range(16):
        exif, pixels = Image.Exif(), STORED.copy()
        exif[ORIENTATION], pixels[15, 31] = 6, i
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "ab"[i % 2] / f"{i}.png", exif=exif)
    return root


def test_every_way_into_a_data_set_turns_them(turned, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    files = sorted(turned.rglob("*.png"))
    (tmp_path / "t.csv").write_text(
        "image,label\n" + "\n".join(f"{f},{f.parent.name}" for f in files), encoding="utf-8"
    )
    rows = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "label": [f.parent.name for f in files]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "t.parquet")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for f in files:
            tar.add(f, f.name)
    for data in (turned, *(tmp_path / name for name in ("t.csv", "t.parquet", "t.tar"))):
        corpus = open_corpus(DataConfig(str(data)))
        (images,) = corpus.train.fetch([0]).columns.values()
        assert corpus.size == (32, 16), data
        assert np.array_equal(images[0, :, :30].permute(1, 2, 0).numpy(), SHOWN[6](STORED)[:30]), data
    stream = next(open_corpus(DataConfig(str(tmp_path / "t.tar"), streaming=True)).train.batches(2, seed=0))
    assert stream.columns["png"].shape == (2, 3, 32, 16)
    assert load_data(turned).train_inputs.shape[1:] == (3, 32, 16)


def test_an_embedder_sees_a_file_as_it_sees_pillows_image(turned):
    embedder = Embedder([build_tower("image", {"name": "small-cnn", "shape": [3, 16, 8], "outputs": 8})])
    path = turned / "a" / "0.png"
    upright = Image.fromarray(np.ascontiguousarray(SHOWN[6](np.asarray(Image.open(path)))))
    wanted = embedder.embed(upright)
    with Image.open(path) as lazy:
        for given in (path, str(path), lazy, Image.open(path).convert("RGB")):
            assert torch.equal(embedder.embed(given), wanted)
        assert lazy.size == (32, 16)  # the caller's image is left as it was
    photo = Image.effect_noise((160, 96), 60).convert("RGB")
    file = io.BytesIO()
    photo.save(file, "JPEG")
    (turned.parent / "p.jpg").write_bytes(file.getvalue())
    assert torch.equal(
        embedder.embed(Image.open(file)), embedder.embed(turned.parent / "p.jpg")
    )  # also where it is scaled down


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("1", 1, (255, 255, 255)), ("L", 90, (90, 90, 90)), ("P", 7, None), ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("LA", (90, 255), (90, 90, 90)), ("LA", (90, 0), (255, 255, 255)), ("RGBA", (200, 0, 0, 102), (233, 153, 153)),
        ("PA", (7, 0), (255, 255, 255)), ("RGBa", (0, 0, 0, 0), (255, 255, 255)), ("La", (90, 255), (90, 90, 90)),
    ],
)  # fmt: skip
def test_every_mode_of_pillows_becomes_colours_on_white(mode, colour, wanted):
    image = Image.new("P", (4, 4), 7) if mode == "P" else Image.new(mode, (4, 4), colour)
    if mode == "P":
        image.putpalette([5 * k % 256 for k in range(768)])
        wanted = (5 * 21 % 256, 5 * 22 % 256, 5 * 23 % 256)
    pixels = decode_image(image, (4, 4), 3)
    assert [row.unique().tolist() for row in pixels] == [[value] for value in wanted]
