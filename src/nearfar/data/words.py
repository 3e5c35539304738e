"""Texts that belong together, from packages of Debian and Ubuntu: WordNet's words and glosses, emoji and their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nearfar.data.corpus import Column, TensorPart
from nearfar.data.labelled import require

WORDNET_PLACES = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict", "~/.cache/nearfar/wordnet", "data/wordnet")
# Of the lexicographer files, by number: lexnames(5WN).
WORDNET_CLASSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession", "verb.social",
    "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
WORDNET_FILES = ("data.adj", "data.adv", "data.noun", "data.verb")
EMOJI_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf", "~/.fonts/NotoColorEmoji.ttf",
)  # fmt: skip
# The only size that the font's bitmaps have, and the side of the pictures made of them.
EMOJI_FONT_SIZE, EMOJI_SIDE = 109, 64


def find(name: str, places: tuple[str, ...], files: tuple[str, ...], get: str) -> Path:
    """The first of the places where all the files are; with no files, the first that is one.

    Raises:
        FileNotFoundError: If there is none; the message says how to get them.
    """
    for place in map(Path, places):
        path = place.expanduser()
        if all((path / file).is_file() for file in files) if files else path.is_file():
            return path
    raise FileNotFoundError(f"{name} is not in {', '.join(places)}. To get it: {get}")


def wordnet_rows(folder: Path) -> tuple[TensorPart, tuple[Column, ...]]:
    """A row a synset: its gloss without examples, and its first word; the class is the lexicographer file.

    Rows of one word have one id: "bank" by the river and "bank" with money are two right answers to it.

    Raises:
        ValueError: If a line cannot be read; the message names it.
    """
    glosses, words, classes, names = [], [], [], []
    ids: dict[str, int] = {}
    for file in WORDNET_FILES:
        path = folder / file
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line[:8].isdigit():  # the licence
                continue
            cells, _, gloss = line.partition(" | ")
            parts = cells.split(" ", 5)
            if not gloss or len(parts) < 6 or not parts[1].isdigit() or int(parts[1]) >= len(WORDNET_CLASSES):
                raise ValueError(f"{path}:{number}: is no synset of WordNet: get the file anew")
            words.append(parts[4].partition("(")[0].replace("_", " "))  # adjectives may end in "(a)", their place
            glosses.append(gloss.split('; "')[0].strip())
            classes.append(int(parts[1]))
            names.append(f"{path}:{number}")
    groups = torch.tensor([ids.setdefault(word.lower(), len(ids)) for word in words])
    rows = TensorPart({"gloss": glosses, "word": words}, torch.tensor(classes), groups, names)
    return rows, (Column("gloss", "text"), Column("word", "text", "positive"))


def emoji_rows(path: Path) -> tuple[TensorPart, tuple[Column, ...]]:
    """A row a code point that the font has a picture of: 64×64 pixels on white, and its Unicode name in lower case."""
    pictures, names, points = [], [], []
    for point, picture in draw_emoji(path):
        pictures.append(picture)
        names.append(unicodedata.name(chr(point)).lower())
        points.append(f"U+{point:04X} {chr(point)}")
    rows = TensorPart({"image": torch.stack(pictures), "name": names}, names=points)
    return rows, (Column("image", "image"), Column("name", "text", "positive"))


def draw_emoji(path: Path) -> Iterator[tuple[int, Any]]:
    """Code points of pictures with the pictures, ``uint8 (3, 64, 64)``."""
    pil, draw, fonts = (require(f"PIL.{name}", "drawing emoji") for name in ("Image", "ImageDraw", "ImageFont"))
    numpy = require("numpy", "drawing emoji")
    try:
        # The plain layout: the shaping one fails on characters that the font lacks.
        font = fonts.truetype(str(path), EMOJI_FONT_SIZE, layout_engine=fonts.Layout.BASIC)
    except OSError as error:
        raise ValueError(f"{path} cannot be used as Noto Color Emoji ({error}): get it anew") from error
    for point in (*range(0xA0, 0x3400), *range(0x1F000, 0x1FB00)):
        character = chr(point)
        if unicodedata.category(character) in ("Cn", "Me", "Sk"):  # unknown, enclosing marks, skin tones
            continue
        width, height = font.getmask(character, mode="RGBA").size
        if not width or not height:
            continue
        picture = pil.new("RGB", (max(width, height),) * 2, "white")
        at = ((max(width, height) - width) // 2, (max(width, height) - height) // 2)
        draw.Draw(picture).text(at, character, font=font, embedded_color=True)
        if picture.getextrema() == ((255, 255),) * 3:
            continue
        scaled = picture.resize((EMOJI_SIDE, EMOJI_SIDE), pil.Resampling.LANCZOS)
        yield point, torch.from_numpy(numpy.array(scaled)).permute(2, 0, 1).contiguous()
