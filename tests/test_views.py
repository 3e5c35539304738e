"""Views: against Pillow, torch and kornia; by seed, by rank, by recipe; and the picture of them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.nn.functional import interpolate

from nearfar.cli import main
from nearfar.data.colour import LUMA, jitter, recolour, turn
from nearfar.data.gallery import view_grid
from nearfar.data.image_views import ImageRecipe, ImageView
from nearfar.data.other_views import SeriesView, TokenView, VectorView
from nearfar.data.views import VIEWS, make_view
from nearfar.data.warps import blurring, crop_boxes, resampling, warp

ZERO, ONE = torch.tensor([0.0]), torch.tensor([1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0):
    return torch.rand(*shape, generator=seeded(seed))


class TestWarps:
    @pytest.mark.parametrize("wanted", [(5, 7), (12, 9), (8, 10), (3, 20)])
    def test_scaling_is_that_of_torch(self, wanted):
        images = noise(2, 3, 8, 10)
        matrices = [resampling(ZERO.expand(2), ONE.expand(2), images.shape[2 + i], wanted[i]) for i in range(2)]
        torch.testing.assert_close(
            warp(images, *matrices), interpolate(images, wanted, mode="bilinear", antialias=True)
        )

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_crop_is_the_crop_scaled(self, channels):
        images = noise(2, channels, 8, 10)
        rows = resampling(torch.tensor([2 / 8, 1 / 8]), torch.tensor([4 / 8, 5 / 8]), 8, 8)
        columns = resampling(torch.tensor([3 / 10, 0.0]), torch.tensor([6 / 10, 5 / 10]), 10, 10)
        views = warp(images, rows, columns)
        for view, crop in zip(views, (images[:1, :, 2:6, 3:9], images[1:, :, 1:6, 0:5])):
            wanted = interpolate(crop, (8, 10), mode="bilinear")[0]
            torch.testing.assert_close(
                view[:, 1:-1, 1:-1], wanted[:, 1:-1, 1:-1]
            )  # at the edge it sees beyond the crop

    def test_a_mirror_image(self):
        images = noise(2, 1, 4, 6)
        flip = torch.tensor([True, False])
        columns = resampling(ZERO.expand(2), ONE.expand(2), 6, 6, flip)
        views = warp(images, torch.eye(4).expand(2, 4, 4), columns)
        torch.testing.assert_close(views, torch.stack([images[0].flip(2), images[1]]))

    def test_boxes_lie_inside_with_the_area_and_the_ratio_asked_for(self):
        start, length = crop_boxes(noise(20_000, 22), (0.2, 1.0), (3 / 4, 4 / 3), aspect=2.0)
        assert start.min() >= 0
        assert (start + length).max() <= 1 + 1e-6
        area, ratio = length.prod(1), 2 * length[:, 1] / length[:, 0]
        inside = (ratio > 0.7499) & (ratio < 1.3334)
        assert inside.float().mean() > 0.99  # ten draws hardly ever all miss
        assert area.min() >= 0.2 - 1e-6
        # At twice the height, a box as high as wide and inside covers 2/3 at most (4/3 by 1 of 2 by 1).
        assert area[inside].max() <= 2 / 3 + 1e-4
        length = crop_boxes(noise(20_000, 22), (0.2, 0.7), (3 / 4, 4 / 3))[1]  # none of these is refused
        torch.testing.assert_close(length.prod(1).mean(), torch.tensor(0.45), atol=0.003, rtol=0)
        assert abs((length[:, 1] / length[:, 0]).log().mean()) < 0.005
        square, _ = crop_boxes(noise(20_000, 22), (0.2, 0.5), (1.0, 1.0))[1].unbind(1)
        torch.testing.assert_close(square.square().mean(), torch.tensor(0.35), atol=0.003, rtol=0)

    def test_blurring_is_kornias(self):
        kornia = pytest.importorskip("kornia.filters")
        images, sigma = noise(2, 3, 16, 20), torch.tensor([0.7, 1.6])
        views = warp(images, blurring(sigma, 16, 3), blurring(sigma, 20, 3))
        wanted = kornia.gaussian_blur2d(images, (7, 7), sigma.unsqueeze(1).expand(2, 2))
        torch.testing.assert_close(views[..., 3:-3, 3:-3], wanted[..., 3:-3, 3:-3])
        torch.testing.assert_close(
            warp(images, blurring(ZERO.expand(2), 16, 3), torch.eye(20).expand(2, 20, 20)), images
        )


class TestColours:
    def change(self, images, strengths, uniform, grey=False):
        applied, lost = torch.ones(len(images), dtype=torch.bool), torch.full((len(images),), grey)
        return recolour(images, *jitter(images.mean((2, 3)), uniform, strengths, applied, lost))

    @pytest.mark.parametrize(
        ("place", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
    )
    @pytest.mark.parametrize("factor", [0.6, 1.3])
    def test_each_is_pillows(self, place, enhance, factor):
        pixels = (60 + 80 * noise(12, 12, 3)).to(torch.uint8).numpy()  # no value is cut off
        strengths, uniform = [0.0] * 4, torch.zeros(1, 4)
        strengths[place], uniform[0, place] = 0.5, factor - 0.5
        view = self.change(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, strengths, uniform)
        wanted = np.asarray(enhance(Image.fromarray(pixels)).enhance(factor))
        assert np.abs(view[0].permute(1, 2, 0).numpy() * 255 - wanted).max() < 1.5  # Pillow rounds, twice

    def test_together_they_are_one_after_another(self):
        images, uniform, strengths = noise(4, 3, 6, 6), noise(4, 4, seed=1), (0.4, 0.5, 0.6, 0.1)
        brightness, contrast, saturation = (1 - s + 2 * s * uniform[:, i] for i, s in enumerate(strengths[:3]))
        luma = torch.tensor(LUMA).view(1, 3, 1, 1)
        wanted = images * brightness.view(-1, 1, 1, 1)
        mean = (wanted * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        wanted = mean + (wanted - mean) * contrast.view(-1, 1, 1, 1)
        grey = (wanted * luma).sum(1, keepdim=True)
        wanted = grey + (wanted - grey) * saturation.view(-1, 1, 1, 1)
        angle = 2 * math.pi * 0.1 * (2 * uniform[:, 3] - 1)
        wanted = torch.einsum("bij,bjhw->bihw", turn(angle), wanted)
        torch.testing.assert_close(self.change(images, strengths, uniform), wanted)
        lost = self.change(images, strengths, uniform, grey=True)
        torch.testing.assert_close(lost, (wanted * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1))

    def test_one_channel(self):
        images, uniform = noise(4, 1, 6, 6), noise(4, 4)
        grey = self.change(images.expand(-1, 3, -1, -1), (0.4, 0.5, 0.6, 0.1), uniform)
        torch.testing.assert_close(self.change(images, (0.4, 0.5, 0.6, 0.1), uniform).expand(-1, 3, -1, -1), grey)

    def test_hue_is_turned_and_brightness_kept(self):
        luma = torch.tensor(LUMA)
        matrices = turn(torch.tensor([0.0, 2.0, 2 * math.pi]))
        torch.testing.assert_close(luma @ matrices[1], luma)
        torch.testing.assert_close(matrices[1] @ torch.ones(3), torch.ones(3))
        torch.testing.assert_close(matrices[2], torch.eye(3), atol=1e-5, rtol=0)
        third = turn(torch.tensor([2 * math.pi / 3]))[0]
        assert sorted((third @ torch.eye(3)).argmax(0).tolist()) == [0, 1, 2]  # red, green and blue change places
        assert (third @ torch.eye(3)).argmax(0).tolist() != [0, 1, 2]

    def test_those_not_applied_are_left_alone(self):
        images = noise(2, 3, 4, 4)
        none = torch.zeros(2, dtype=torch.bool)
        torch.testing.assert_close(
            recolour(images, *jitter(images.mean((2, 3)), noise(2, 4), (0.8,) * 4, none, none)), images
        )


class TestViews:
    IMAGES = (noise(32, 3, 40, 40) * 255).to(torch.uint8)

    @pytest.mark.parametrize(("kind", "recipe"), [(kind, name) for name, row in VIEWS.items() for kind in row.kinds])
    def test_a_seed_gives_the_same_view_and_rows_of_ranks_are_those_of_one_process(self, kind, recipe):
        batch = {
            "image": self.IMAGES, "vector": noise(32, 6), "series": noise(32, 2, 30),
            "text": {"ids": torch.arange(32 * 9).view(32, 9), "mask": torch.ones(32, 9, dtype=torch.bool)},
        }[kind]  # fmt: skip
        view = make_view(kind, recipe, (40, 40), {"image": 3, "vector": 6}.get(kind, 2))

        def drawn(of, seed, rows=None):
            out = view(of, generator=seeded(seed), rows=rows)
            return out["mask"] if isinstance(out, dict) else out

        def part(at):
            return {k: v[at] for k, v in batch.items()} if isinstance(batch, dict) else batch[at]

        whole = drawn(batch, 3)
        assert torch.equal(whole, drawn(batch, 3))
        assert torch.equal(whole, drawn(batch, 4)) == (recipe in ("none", "dropout"))
        pieces = [drawn(part(slice(0, 20)), 3, (0, 32)), drawn(part(slice(20, 32)), 3, (20, 32))]
        torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=1e-5)
        torch.manual_seed(7)
        first = drawn_global = view(batch)
        torch.manual_seed(7)
        again = view(batch)
        if isinstance(first, dict):
            first, again = drawn_global["mask"], again["mask"]
        assert torch.equal(first, again)

    def test_none_is_what_an_encoder_sees_in_evaluation(self):
        view = make_view("image", "none", (40, 40), 3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
        wanted = (self.IMAGES / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
            3, 1, 1
        )
        torch.testing.assert_close(view(self.IMAGES), wanted)

    def test_views_are_standardised_and_stay_within_the_range(self):
        view = make_view("image", "simclr", (40, 40), 3, mean=[0.5] * 3, std=[0.25] * 3)
        out = view(self.IMAGES)
        assert (out.dtype, out.shape) == (torch.float32, (32, 3, 40, 40))
        assert out.abs().max() <= 2.0001
        assert self.IMAGES.dtype == torch.uint8  # and the batch is left as it was
        floats = self.IMAGES / 255
        kept = floats.clone()
        torch.testing.assert_close(view(floats, generator=seeded()), view(self.IMAGES, generator=seeded()))
        assert torch.equal(floats, kept)

    def test_the_probabilities_are_the_recipes(self):
        images = torch.zeros(4_000, 3, 4, 4)
        images[:, 0, :, :2] = 0.5  # red on the left
        view = ImageView(
            ImageRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.3, jittered=0.0, grey=0.2, blur=0.0),
            (4, 4),
            ZERO,
            ONE,
        )
        out = view(images, generator=seeded())
        assert abs((out[:, 0, 0, 3] > out[:, 0, 0, 0]).float().mean() - 0.3) < 0.03
        assert (
            abs((out[:, 0] == out[:, 1]).all((1, 2)).logical_and(out[:, 0, 0].amax(1) > 0).float().mean() - 0.2) < 0.03
        )

    def test_small_and_grey_images_get_the_weaker_recipe(self):
        small, large = make_view("image", "simclr", (32, 32), 3), make_view("image", "simclr", (64, 64), 3)
        assert (small.recipe.blur, small.recipe.jitter[0]) == (0.0, 0.4)
        assert (large.recipe.blur, large.recipe.jitter[0], large.recipe.scale[0]) == (0.5, 0.8, 0.08)
        assert "hue" in small.describe()
        assert "hue" not in make_view("image", "simclr", (28, 28), 1).describe()

    def test_other_sizes(self):
        assert make_view("image", "simclr", (24, 20), 3)(self.IMAGES).shape == (32, 3, 24, 20)

    def test_a_view_of_ones_own(self, tmp_path, monkeypatch):
        (tmp_path / "mine.py").write_text(
            "import torch\n\ndef make(size, channels):\n    return torch.nn.Upsample(size)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        view = make_view("image", "mine:make", (6, 7), 3, mean=[1.0] * 3, std=[0.5] * 3)
        out = view(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), generator=seeded())
        assert (out.shape, out.unique().tolist()) == ((2, 3, 6, 7), [0.0])  # it gets [0, 1], the encoder its own scale

    def test_wrong_recipes_are_answered(self):
        with pytest.raises(ValueError, match=r"there is no view 'simclear'; did you mean 'simclr'"):
            make_view("image", "simclear", (4, 4), 1)
        with pytest.raises(ValueError, match=r"view 'simclr' is for image inputs, these are series: pass crop, none"):
            make_view("series", "simclr")
        with pytest.raises(ValueError, match=r"rows=\(20, 32\) for a batch of 20"):
            make_view("image", "simclr", (40, 40), 3)(self.IMAGES[:20], rows=(20, 32))

    def test_a_series_is_stretched(self):
        ramp = torch.arange(50.0).view(1, 1, 50).expand(200, 1, 50)
        out = SeriesView(ONE, noise=0.0, scale=0.0)(ramp, generator=seeded())[:, 0]
        steps = out.diff(dim=1)[:, 2:-2]
        torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-3, rtol=1e-3)  # still a straight line
        assert steps.min() > 0.49
        assert steps.max() < 1.01
        assert abs(steps[:, 0].mean() - 0.75) < 0.03
        noisy = SeriesView(torch.tensor([2.0]), noise=0.1, scale=0.0, least=1.0)(
            torch.zeros(100, 1, 50), generator=seeded()
        )
        assert abs(noisy.std() - 0.2) < 0.01

    def test_features_are_hidden(self):
        view = VectorView(torch.full((5,), 7.0), torch.full((5,), 2.0), hidden=0.25, noise=0.5)
        out = view(torch.zeros(4_000, 5), generator=seeded())
        assert abs((out == 7).float().mean() - 0.25) < 0.01
        assert abs(out[out != 7].std() - 1.0) < 0.03

    def test_tokens_are_hidden_alike_whatever_the_padding(self):
        view = TokenView(0.3)
        short = {"input_ids": torch.ones(3, 6).long(), "attention_mask": torch.ones(3, 6).long()}
        long = {"input_ids": torch.ones(3, 900).long(), "attention_mask": torch.ones(3, 900).long()}
        one, two = (view(batch, generator=seeded())["attention_mask"] for batch in (short, long))
        assert torch.equal(one, two[:, :6])
        assert one.dtype == torch.int64
        assert (two[:, 0] == 1).all()
        assert abs(two.float().mean() - 0.7) < 0.02


class TestPicture:
    def test_originals_come_first_and_views_after_them(self):
        images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        images[0, 0], images[1, 2] = 255, 255
        view = make_view("image", "none", (8, 8), 3, mean=[0.0] * 3, std=[1.0] * 3)
        page = np.asarray(view_grid(images, view, views=2))
        side, gap = 64, 4
        assert page.shape == (2 * (side + gap) + gap, 3 * (side + gap) + 3 * gap, 3)
        assert page[gap + 5, gap + 5].tolist() == [255, 0, 0]
        assert page[2 * gap + side + 5, 2 * gap + side + 2 * gap + 5].tolist() == [0, 0, 255]
        assert page[0].min() == 255

    def test_the_command(self, tmp_path, capsys):
        out = tmp_path / "v.png"
        assert main(["views", "digits", "-o", str(out), "--rows", "3", "--views", "2"]) == 0
        with Image.open(out) as picture:
            assert picture.size == (3 * (64 + 4) + 12, 3 * (64 + 4) + 4)
        assert "3 images of digits with 2 views each" in capsys.readouterr().out
        assert [p.name for p in tmp_path.iterdir()] == ["v.png"]

    def test_texts_cannot_be_drawn(self, tmp_path, capsys):
        (tmp_path / "t.csv").write_text("text\na\nb\n")
        assert main(["views", str(tmp_path / "t.csv"), "-o", str(tmp_path / "v.png")]) == 2
        assert "t holds text: only views of images can be drawn" in capsys.readouterr().err

    @pytest.mark.parametrize("what", ["data", "views"])
    def test_the_tables_are_listed(self, what, capsys):
        assert main(["list", "--what", what]) == 0
        text = capsys.readouterr().out
        for name in {"data": ["digits", "wordnet", "emoji"], "views": ["simclr", "tokens"]}[what]:
            assert name in text
