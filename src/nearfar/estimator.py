"""Contrastive learning for people who never write a loop: a transformer for scikit-learn."""

from __future__ import annotations

import copy
from typing import Any, no_type_check

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.data.classes import known_rows
from nearfar.data.layout import image_layout
from nearfar.data.other_views import corrupted
from nearfar.data.views import VIEWS, make_view
from nearfar.encoders.backbones import small_cnn
from nearfar.encoders.precision import building
from nearfar.given import at_least
from nearfar.lengths import unit_rows
from nearfar.losses.arguments import check_range
from nearfar.losses.softmax import NTXentLoss, SupConLoss
from nearfar.names import unknown
from nearfar.training.loop import fit, shuffled_batches

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError('ContrastiveEncoder needs scikit-learn 1.6 or newer: pip install "nearfar[cli]"') from error

CHUNK = 4096  # rows transformed at a time


class ContrastiveEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learns an embedding of rows or images: near for what belongs together, far for the rest.

    With classes, rows of one class belong together (SupCon, Khosla et al. 2020, arXiv:2004.11362). Without, two random views
    of a row do (SimCLR, arXiv:2002.05709); of a table, a view has some features replaced by another row's (SCARF, Bahri et
    al. 2022, arXiv:2106.15147), and what enters the last layers is kept. Where some classes are unknown (-1), the two losses are
    added: one over the rows whose class is known, one over all (Vaze et al. 2022, arXiv:2201.02602, eq. 3). Embeddings have
    length one.

    Args:
        dim: Width of the embedding.
        hidden: Width of the two hidden layers of a table's network. Images have a small convolutional one.
        temperature: τ of the loss; 0.1 is both papers' best.
        epochs: Passes over the rows.
        batch_size: Rows of a batch, which are also each other's negatives; at most all rows.
        lr: Learning rate (AdamW).
        weight_decay: Of AdamW; small tables need some.
        views: ``"auto"``: ``"scarf"`` for tables, ``"light"`` for images; or any of ``nearfar.data.views.VIEWS`` that is for
            vectors or images. With classes, ``"auto"`` takes the rows as they are.
        corruption: The share of features that ``"scarf"`` replaces; 0.6 is the paper's.
        image_shape: ``(height, width)`` or ``(channels, height, width)`` of images that come as flat rows. Arrays
            ``(n, h, w)``, ``(n, c, h, w)`` and ``(n, h, w, c)`` say it themselves, with any number of channels; where that could
            be read in two ways, this says which.
        random_state: Seed, or generator, of initial weights, batches and views.
        device: Where to train and transform.
        verbose: Print the loss of every so many epochs; 0: nothing.

    Attributes:
        module_: The encoder, as trained, on the CPU.
        n_features_in_: Numbers in a row.
        classes_: The classes seen; ``None`` if there were none.
        image_shape_: ``(channels, height, width)``, or ``None`` for tables.
        loss_curve_: The loss at the end of every epoch.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> import nearfar as nf
        >>> encoder = nf.ContrastiveEncoder(dim=8, epochs=5, random_state=0)
        >>> encoder.fit(X, y).transform(X).shape
        (150, 8)
        >>> encoder.get_feature_names_out()[:2].tolist()
        ['contrastiveencoder0', 'contrastiveencoder1']
    """

    _flat_last = False  # whether flat rows hold the channels of a pixel side by side

    @no_type_check  # scikit-learn's rule: parameters are looked at in fit, not here
    def __init__(
        self,
        dim: int = 32,
        *,
        hidden: int = 256,
        temperature: float = 0.1,
        epochs: int = 50,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        views: str = "auto",
        corruption: float = 0.6,
        image_shape: tuple[int, ...] | None = None,
        random_state: Any = None,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.dim = dim
        self.hidden = hidden
        self.temperature = temperature
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.views = views
        self.corruption = corruption
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> ContrastiveEncoder:
        """Trains.

        Args:
            X: Rows ``(n, d)``, or images ``(n, h, w)``, ``(n, c, h, w)`` or ``(n, h, w, c)``.
            y: Classes ``(n,)`` of any type; without them every row is its own class. A negative number, as in scikit-learn's
                ``LabelPropagation``, and a missing one (None, NaN, ``pandas.NA``) are an unknown class.

        Returns:
            Itself.

        Raises:
            ValueError: If an input or a parameter cannot be used; the message says which and why.
        """
        self._check_parameters()
        rows, classes = self._read_training(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with building():
                encoder = self._network(rows)
                head = nn.Sequential(nn.ReLU(), nn.Linear(self.dim, self.dim))
        device = torch.device(self.device)
        encoder, head = encoder.to(device).train(), head.to(device)
        self.loss_curve_ = self._train(encoder, head, rows.to(device), classes, seed)
        self.module_ = encoder.cpu().eval()
        return self

    def transform(self, X: Any) -> Any:
        """Embeds.

        Args:
            X: As in :meth:`fit`, of the same width.

        Returns:
            Rows of length one ``(n, dim)``, float64 for float64 input, else float32.
        """
        check_is_fitted(self)
        rows = torch.tensor(self._read(X, reset=False))
        module = self.module_ if rows.dtype == torch.float32 else copy.deepcopy(self.module_).double()
        device = torch.device(self.device)
        module = module.to(device)
        with torch.inference_mode():
            z = torch.cat([module(part.to(device)).cpu() for part in self._shaped(rows).split(CHUNK)])
        self.module_.cpu()
        return unit_rows(z).numpy()

    # ---- how it is done ----------------------------------------------------------------------------------------------

    def _train(
        self, encoder: nn.Module, head: nn.Module, rows: Tensor, classes: Tensor | None, seed: int
    ) -> list[float]:
        batch = min(self.batch_size, len(rows))
        generator = torch.Generator().manual_seed(seed)
        by_class, by_view = SupConLoss(temperature=self.temperature), NTXentLoss(temperature=self.temperature)
        known = torch.zeros(len(rows), dtype=torch.bool) if classes is None else classes >= 0
        views = {supervised: self._view(rows, generator, supervised=supervised) for supervised in (True, False)}
        alone = not bool(known.all()) and (
            views[False] is not None or classes is None
        )  # rows of which nobody says the class
        parameters = [*encoder.parameters(), *(head.parameters() if alone else ())]

        def sides(at: Tensor, view: Any) -> list[Tensor]:
            here = rows[at.to(rows.device)]
            shown = [here] if view is None else [here, view(here)] if self._scarf else [view(here), view(here)]
            return [encoder(side) for side in shown]

        def value(at: Tensor) -> Tensor:
            terms = [by_view(*map(head, sides(at, views[False])))] if alone else []
            if classes is not None and bool(known[at].any()):
                at = at[known[at]]
                terms.append(by_class(*sides(at, views[True]), labels=classes[at].to(rows.device)))
            return torch.stack(terms).sum()

        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        epoch = len(rows) // batch
        curve = []
        batches = shuffled_batches(len(rows), batch, generator)
        for pause in fit(value, optimizer, batches, steps=self.epochs * epoch, every=epoch):
            curve.append(pause.loss)
            if self.verbose and len(curve) % self.verbose == 0:
                print(f"epoch {len(curve)}/{self.epochs}: loss {pause.loss:.4f}, {pause.seconds:.1f} s")
        return curve

    @property
    def _scarf(self) -> bool:
        return self.views == "scarf" or (self.views == "auto" and self.image_shape_ is None)

    def _view(self, rows: Tensor, generator: torch.Generator, *, supervised: bool) -> Any:
        """Makes a random view of a batch; None: rows as they are."""
        if self.views == "none" or (self.views == "auto" and supervised):
            return None
        if self._scarf:
            return lambda batch: corrupted(batch, rows, self.corruption, generator)
        recipe, channels = "light" if self.views == "auto" else self.views, rows.shape[1]
        plain = {"mean": [0.0] * channels, "std": [1.0] * channels}
        if self.image_shape_ is None:
            vectors = make_view("vector", recipe, None, channels, **plain)
            return lambda batch: vectors(batch, generator=generator)
        images = make_view("image", recipe, self.image_shape_[1:], channels, **plain)
        low, high = rows.amin(), rows.amax()  # recipes for images are made for [0, 1]
        span = (high - low).clamp_min(1e-30)
        return lambda batch: images((batch - low) / span, generator=generator) * span + low

    def _network(self, rows: Tensor) -> nn.Module:
        mean, spread = (
            rows.double().mean((0, *range(2, rows.ndim))),
            rows.double().std((0, *range(2, rows.ndim)), correction=0),
        )
        first = _Standardise(
            mean.float(), spread.masked_fill(spread < 1e-12 * mean.abs().clamp_min(1e-300), 1.0).float()
        )
        if rows.ndim > 2:
            return nn.Sequential(first, small_cnn(tuple(rows.shape[1:]), self.dim))
        width = rows.shape[1]
        return nn.Sequential(
            first, nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.hidden), nn.ReLU(),
            nn.Linear(self.hidden, self.dim),
        )  # fmt: skip

    def _read_training(self, X: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        rows = self._read(X, reset=True)
        shaped = self._shaped(torch.tensor(rows).float())
        if not bool(shaped.isfinite().all()):
            raise ValueError("X has values beyond float32's range (3.4e38): scale it down")
        if y is None:
            self.classes_ = None
            return shaped, None
        known, places = known_rows(y)
        labels: Any = check_array(
            known,
            ensure_2d=False,
            dtype=None,  # pyright: ignore[reportArgumentType]
            ensure_all_finite=True,
            input_name="y",
            estimator=self,
        )
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        given = len(labels) if known is y else len(y)
        if labels.ndim != 1 or given != len(rows):
            raise ValueError(
                f"y has shape {(given, *labels.shape[1:])}, but there are {len(rows)} rows in X: one class a row was wanted"
            )
        check_classification_targets(labels)
        found, ids = np.unique(labels, return_inverse=True)
        below = int((found < 0).sum()) if found.dtype.kind in "if" else 0
        self.classes_, ids = found[below:], torch.from_numpy(ids.astype(np.int64)).sub(below).clamp(min=-1)
        count = int((ids >= 0).sum())
        if len(self.classes_) < 2 or len(self.classes_) == count:
            left = " of known class (a negative number is an unknown one)" if below else ""
            raise ValueError(
                f"y has {len(self.classes_)} classes for {count} rows{left}: two classes, and two rows of one of them, were "
                "wanted; leave y out to learn from the rows alone"
            )
        classes = torch.full((len(rows),), -1)
        classes[places if known is not y else slice(None)] = ids
        return shaped, classes

    def _read(self, X: Any, *, reset: bool) -> np.ndarray:
        """Flat finite rows; those of images with their channels first. What shape images have is kept."""
        if reset:
            self.image_shape_, self._flat_last = None, False
            if self.image_shape is not None:
                self.image_shape_, self._flat_last = image_layout(tuple(self.image_shape), "image_shape is", exact=True)
        last = self._flat_last
        if getattr(X, "ndim", 2) > 4:
            raise ValueError(
                f"X has shape {tuple(X.shape)}: rows (n, features), or images (n, h, w), (n, c, h, w) or (n, h, w, c), were wanted"
            )
        if getattr(X, "ndim", 2) in (3, 4):
            X = np.asarray(X)
            if reset or self.image_shape_ is not None:
                shape, last = image_layout(tuple(X.shape[1:]), "images are", known=self.image_shape_)
                if self.image_shape_ is not None and shape != self.image_shape_:
                    said = (
                        f"image_shape is {self.image_shape}"
                        if reset
                        else f"the encoder was trained on {self.image_shape_} (channels, height, width)"
                    )
                    raise ValueError(f"images are {tuple(X.shape[1:])}, but {said}: pass images of that shape")
                if reset:
                    self.image_shape_, self._flat_last = shape, last
            X = X.reshape(len(X), -1)
        rows: Any = validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_min_samples=2 if reset else 1
        )
        if self.image_shape_ is not None:
            channels, height, width = self.image_shape_
            if channels * height * width != rows.shape[1]:
                raise ValueError(f"image_shape is {self.image_shape}, but a row has {rows.shape[1]} numbers")
            if last:
                rows = np.moveaxis(rows.reshape(-1, height, width, channels), -1, 1).reshape(rows.shape)
        return np.ascontiguousarray(rows)  # torch knows no negative strides

    def _shaped(self, rows: Tensor) -> Tensor:
        return rows if self.image_shape_ is None else rows.view(len(rows), *self.image_shape_)

    def _check_parameters(self) -> None:
        for name, least in (("dim", 1), ("hidden", 1), ("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} is {value!r}: a whole number of {least} or more was wanted")
        if self.views not in ("auto", "scarf", "none", *VIEWS):
            raise ValueError(unknown("view", str(self.views), ("auto", "scarf", *VIEWS)))
        check_range("temperature", self.temperature, 0.0)
        check_range("corruption", self.corruption, 0.0, 1.0)
        for name in ("lr", "weight_decay"):
            check_range(name, getattr(self, name), 0.0, open_low=False)
        if not isinstance(self.verbose, bool):
            at_least("verbose", self.verbose, 0)

    @property
    def _n_features_out(self) -> int:
        return self.dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.non_deterministic = self.random_state is None
        return tags


class _Standardise(nn.Module):
    """Mean 0 and standard deviation 1 of each feature, or channel, of the training rows."""

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, rows: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (rows.ndim - 2))
        return (rows - self.mean.view(shape)) / self.spread.view(shape)
