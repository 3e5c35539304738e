"""Images of more than bytes: which of their numbers are black and white, once for a data set, and as in training later."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

import nearfar as nf
from nearfar.cli import main
from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.pixels import decode_image, find_ranges, image_header
from nearfar.data.sources import load_data
from nearfar.encoders.towers import build_tower
from nearfar.index.run import open_run

RAMP = np.linspace(0, 4095, 256).round().reshape(16, 16).astype(np.uint16)


def png16(values: np.ndarray, significant: int = 0) -> bytes:
    """A PNG file of sixteen bits, with one to four channels, as the specification has it."""
    height, width, channels = np.atleast_3d(values).shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    chunks += [(b"sBIT", bytes([significant] * channels))] if significant else []
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(values: np.ndarray, tags: dict[int, object] | None = None, compression: str | None = None) -> bytes:
    info, file = TiffImagePlugin.ImageFileDirectory_v2(), io.BytesIO()
    for number, value in (tags or {}).items():
        info[number] = value
    Image.fromarray(values).save(file, "TIFF", tiffinfo=info, compression=compression)
    return file.getvalue()


def shades(data: bytes, channels: int = 1, like: list[bytes] | None = None) -> np.ndarray:
    """What is made of an image, in a data set of others like it."""
    images = [data, *(like or [])]
    ranges = find_ranges(images, [image_header(image) for image in images])
    header = image_header(data)
    return decode_image(data, (header.height, header.width), channels, ranges).permute(1, 2, 0).numpy().squeeze()


def linear(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Zero for the lowest and 255 for the highest, rounded: what is wanted, by hand."""
    return np.floor((values.astype(np.float64) - low) / (high - low) * 255 + 0.5)


FULL = linear(RAMP, 0, 4095)
MILLION = RAMP.astype(np.int32) * 256


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(png16(RAMP), FULL, id="12 bits in a 16-bit PNG"),
        pytest.param(png16(RAMP // 4, 12), linear(RAMP // 4, 0, 4095), id="dark, and the file says 12 bits"),
        pytest.param(png16(RAMP * 16, 12), linear(RAMP * 16, 0, 65535), id="12 bits at the upper end, as PNG wants them"),
        pytest.param(png16(RAMP + 30_000), FULL, id="a narrow band"),
        pytest.param(tiff(RAMP), FULL, id="12 bits in a 16-bit TIFF"),
        pytest.param(tiff(RAMP, compression="tiff_lzw"), FULL, id="packed, with the empty tags that libtiff adds"),
        pytest.param(tiff(RAMP, {340: 0, 341: 8190}), linear(RAMP, 0, 8190), id="SMaxSampleValue"),
        pytest.param(tiff(RAMP, {280: 0, 281: 8190}), linear(RAMP, 0, 8190), id="MaxSampleValue"),
        pytest.param(tiff(MILLION), linear(MILLION, 0, 2**20 - 1), id="32-bit integers"),
        pytest.param(tiff(RAMP.astype(np.int32) - 2000), FULL, id="signed integers"),
        pytest.param(tiff((RAMP / 4095).astype(np.float32)), FULL, id="floats from 0 to 1"),
        pytest.param(tiff((RAMP / 4095 * 255).astype(np.float32)), FULL, id="floats from 0 to 255"),
        pytest.param(tiff((RAMP / 4095 * 0.01).astype(np.float32)), FULL, id="small floats"),
        pytest.param(tiff((RAMP / 4095 * 20 - 10).astype(np.float32)), FULL, id="floats around 0"),
    ],
)  # fmt: skip
def test_all_shades_are_kept(data, wanted):
    assert np.abs(shades(data) - wanted).max() <= 1


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_sixteen_bits_keep_their_lower_bytes(channels):
    values = np.random.default_rng(0).integers(0, 4096, (8, 8, channels)).astype(np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque
    wanted = values[..., :3] if channels > 2 else values[..., :1].repeat(3, 2)
    assert np.abs(shades(png16(values), 3) - linear(wanted, 0, 4095)).max() <= 1
    if channels == 4:
        values[..., 3] = 0
        assert (shades(png16(values), 3) == 255).all()  # clear is white


def test_numbers_that_say_that_there_is_none_are_black():
    values = np.full((4, 4), -9999, np.float32)
    values[0] = 0, 0.5, 1, np.inf
    assert shades(tiff(values, {42113: "-9999"}))[0].tolist() == [0, 128, 255, 0]
    values[1:] = np.nan
    assert shades(tiff(values))[0].tolist() == [0, 128, 255, 0]


def test_unsigned_and_reversed_numbers_are_read_as_the_file_says():
    big = np.array([[0, 2**31], [2**32 - 1, 2**30]], np.uint32)  # Pillow takes them for signed
    data = bytearray(tiff(big.astype(np.int64).astype(np.int32)))
    at = data.index(struct.pack("<HHI", 339, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 1)
    assert shades(bytes(data)).tolist() == [[0, 128], [255, 64]]
    reversed_ = bytearray(tiff(np.array([[0, 65535], [32768, 16384]], np.uint16)))
    at = reversed_.index(struct.pack("<HHI", 262, 3, 1))
    reversed_[at + 8 : at + 10] = struct.pack("<H", 0)  # white is zero
    assert shades(bytes(reversed_)).tolist() == [[255, 0], [127, 191]]


def test_pgm_files_and_jpeg_2000_say_their_range_themselves():
    for most in (1000, 4095):
        data = b"P5 2 1 %d\n" % most + np.array([most // 4, most // 2], ">u2").tobytes()
        assert np.abs(shades(data) - [63.75, 127.5]).max() <= 1
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "JPEG2000")
    assert image_header(file.getvalue()).stated == (0.0, 65535.0)


def test_a_dark_image_stays_darker_than_a_bright_one_of_its_data_set():
    dark, bright = png16(RAMP // 8), png16(RAMP)
    assert np.abs(shades(dark, like=[bright]) - linear(RAMP // 8, 0, 4095)).max() <= 1
    first, second = (tiff((RAMP * scale).astype(np.float32), {340: 0.0, 341: 4095.0 * scale}) for scale in (1.0, 0.25))
    assert shades(second, like=[first]).max() == 64  # each file states its own highest: the highest of all counts


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 12-bit images in 16-bit files, and a run on it."""
    root, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    for i in range(24):
        path = root / "x" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png16(rng.integers(0, 4096 if i else 800, (8, 8)).astype(np.uint16)))
    run = nf.train(data=str(root / "x"), steps=2, batch_size=8, threads=1, show=False, out=str(root / "run"))
    return root / "x", run.path


def test_what_was_found_is_kept_with_the_run_and_said(deep, capsys):
    data, run = deep
    corpus = open_corpus(DataConfig(str(data)))
    assert corpus.ranges == {"integer": (0.0, 4095.0)}
    assert nf.load(run).tower("image").ranges == corpus.ranges
    assert any("0 is black and 4095 white" in note for note in corpus.notes)
    assert any("0 is black and 4095 white" in note for note in load_data(data).notes)
    assert main(["evaluate", str(run)]) == 0
    assert "0 is black and 4095 white" in capsys.readouterr().err


def test_one_file_alone_is_seen_as_in_its_data_set(deep, tmp_path):
    data, run = deep
    dark = data / "a" / "0.png"
    opened = open_run(run)
    corpus = opened.open_data()
    part, row = next(
        (part, row) for part in (corpus.train, corpus.test) for row in range(len(part)) if part.name(row) == str(dark)
    )
    wanted = opened.embed("image", part.fetch([row]).columns["image"])
    for found in (nf.load(run).embed(dark), nf.load(run).embed(Image.open(dark)), opened.embed_image(dark)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes(dark.read_bytes())
    (tmp_path / "one" / "1.png").write_bytes(png16(np.full((8, 8), 9, np.uint16)))
    other = opened.open_data(str(tmp_path / "one"))  # by its own values it would be read otherwise
    assert other.ranges["integer"] == (0.0, 4095.0)


def test_what_starts_from_a_run_sees_images_as_it_did(deep, tmp_path):
    """By their own values, of 8 bits, these dark images would be read sixteen times as bright."""
    for i in range(12):
        path = tmp_path / "dark" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png16(np.random.default_rng(i).integers(0, 256, (8, 8)).astype(np.uint16)))
    data = str(tmp_path / "dark")
    assert open_corpus(DataConfig(data)).ranges == {"integer": (0.0, 255.0)}
    options = {"data": data, "steps": 1, "batch_size": 4, "threads": 1, "show": False}
    run = nf.train(**options, model=str(deep[1]), out=str(tmp_path / "run"))
    assert nf.load(run.path).tower("image").ranges == {"integer": (0.0, 4095.0)}
    assert any("0 is black and 4095 white (as in training)" in note for note in run.environment["decided"])
    told = nf.train(**options, model=str(deep[1]), pixel_range=(0, 500), out=str(tmp_path / "told"))
    assert nf.load(told.path).tower("image").ranges["integer"] == (0, 500)


def test_the_range_can_be_given(deep):
    data, _ = deep
    corpus = open_corpus(DataConfig(str(data), pixel_range=(0.0, 8190.0)))
    assert corpus.ranges["integer"] == (0.0, 8190.0)
    images = corpus.train.fetch(range(len(corpus.train))).columns["image"]
    assert 120 <= int(images.max()) <= 128
    assert load_data(data, pixel_range=(0.0, 8190.0)).train_inputs.max() < 0.51
    with pytest.raises(ValueError, match=r"pixel_range is \(5.0, 5.0\)"):
        DataConfig(pixel_range=(5.0, 5.0))


def test_folders_of_models_that_do_not_say_read_all_sixteen_bits(deep, tmp_path):
    import json
    import shutil

    shutil.copytree(deep[1] / "model", tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text(encoding="utf-8"))
    del config["towers"]["image"]["ranges"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert nf.load(tmp_path / "old").tower("image").ranges == {"integer": (0.0, 65535.0)}


def test_items_that_are_handed_in_share_one_range():
    embedder = nf.Embedder([build_tower("image", {"name": "small-cnn", "shape": [1, 16, 16], "outputs": 8})])
    dark, bright = (Image.fromarray((RAMP / scale).astype(np.float32)) for scale in (16380.0, 4095.0))
    seen = linear(RAMP, 0, 4 * 4095).astype(np.uint8)  # the bright one reaches 1, this a quarter of it
    torch.testing.assert_close(
        embedder.embed([dark, bright])[:1], embedder.embed(Image.fromarray(seen)), rtol=0, atol=0.01
    )
    assert not torch.allclose(embedder.embed(dark), embedder.embed(Image.fromarray(seen)), atol=0.01)


def test_pillows_sixteen_bit_modes_and_a_clear_number():
    values = np.array([[0, 65535], [32768, 16384]], np.uint16)
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2"), ("I", "<i4")):
        image = Image.frombytes(mode, (2, 2), values.astype(dtype).tobytes())
        assert decode_image(image, (2, 2), 1)[0].tolist() == [[0, 255], [128, 64]]
    clear = png16(values)
    at = clear.index(b"IDAT") - 4  # tRNS: 16384 is clear, and so white
    chunk = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 16384)
    clear = clear[:at] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + clear[at:]
    assert decode_image(clear, (2, 2), 1)[0].tolist() == [[0, 255], [128, 255]]


def raw_tiff(values: np.ndarray, kind: int) -> bytes:
    """A TIFF file of one plane as the specification (6.0) has it: integers (1), signed integers (2) or floats (3)."""
    (height, width), bits, data = values.shape, 8 * values.dtype.itemsize, values.tobytes()
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 134),
        (277, 1),
        (278, height),
        (279, len(data)),
        (339, kind),
    ]
    packed = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + packed + struct.pack("<I", 0) + data


@pytest.mark.parametrize(
    ("dtype", "kind", "said"),
    [
        ("<f8", 3, "floats of 64 bits"),
        ("<f2", 3, "floats of 16 bits"),
        ("<u8", 1, "integers of 64 bits"),
        ("<c8", 6, "complex numbers of 64"),
    ],
)
def test_a_kind_of_tiff_that_pillow_does_not_read_is_named(dtype, kind, said, tmp_path):
    values = np.linspace(0, 1, 64).reshape(8, 8)
    for i in range(6):
        path = tmp_path / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw_tiff((values + i).astype("<f4"), 3))
    assert len(open_corpus(DataConfig(str(tmp_path))).train) == 4
    (tmp_path / "a" / "0.tif").write_bytes(raw_tiff(values.astype(dtype), kind))
    for read in (lambda: open_corpus(DataConfig(str(tmp_path))), lambda: load_data(tmp_path)):
        with pytest.raises(
            ValueError, match=rf"0\.tif: .*a TIFF file of {said}.*Pillow does not read: save it with floats of 32"
        ):
            read()
    (tmp_path / "a" / "0.tif").write_bytes(b"II*\0 broken")
    with pytest.raises(ValueError, match="cannot identify image file"):
        load_data(tmp_path)
