"""The joint objective: a task loss and contrastive terms on the features of the same forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from nearfar.encoders.heads import FeatureNorm, ProjectionHead
from nearfar.encoders.prototypes import Prototypes, class_sums, mixed_logits
from nearfar.given import as_labels, at_least
from nearfar.joint.balance import GradientBalance
from nearfar.joint.capture import Tap, check_captured, check_given
from nearfar.joint.relation import (
    Relation,
    call_loss,
    labels_in,
    read_relation,
    repeat_views,
    scalar,
    what_it_takes,
)
from nearfar.joint.schedules import Schedule, as_schedule
from nearfar.joint.terms import LossLike, named_losses, read_weights
from nearfar.pairs import Pairs


class Joint(nn.Module):
    """``α · task + (1 − α) · contrastive`` around any task loss and any model.

    The model is not changed and stays out of this module: the features are read where ``features`` says, by a hook,
    or given to the call. A projection head and losses with parameters live here and not in the model, so an
    optimiser must be told of them: ``[*model.parameters(), *criterion.parameters()]``.

    Args:
        task: ``task(outputs, targets)``, one number: any loss or function.
        contrastive: One loss, a list, or a dict of names: called as ``loss(z, labels=y)`` or ``loss(z, pairs=p)``.
        features: The layer to read, for instance ``model.avgpool``. See *Features* below.
        alpha: The task's share in [0, 1], a number or a schedule; several contrastive terms are summed. 0.5 unless
            ``weights`` are given.
        weights: In its place, a weight (or schedule) for ``"task"`` and for each term by name, 1 where left out; or
            a sequence, the task's first. The total is their weighted sum.
        balance: ``"gradient"`` scales each term until its gradient at the features is as long as the task's
            (Esser et al. 2021, arXiv:2012.09841, eq. 7), so that the weights are ratios of gradients. It costs a
            backward pass a term down to the features. Not the default: it gained nothing where it was measured.
        head: Projection before the contrast: a width (``ProjectionHead``), a module, or None. Never needed after
            training; prototypes are of the features before it.
        normalize: ``"batchnorm"`` standardises the features first (``FeatureNorm``, statistics held here); a
            ``CosineHead`` in the model with ``features=model.head.norm`` does so for the classifier too. Whether either
            is sooner than features as they are depends on the task: ``nf.compare`` tells.
            Cosine losses divide by the rows' norms themselves in any case.
        pool: What becomes of features with more than two dimensions: ``"mean"``, or ``"first"``: the first token.
        readout: ``"prototypes"`` keeps moving class sums of the normalised features (``Prototypes``) for ``predict``.
        num_classes: For the prototypes, where the outputs are not ``(n, num_classes)``.

    Features:
        ``(n, d)``; ``(n, d, h, w)`` is averaged over places and ``(n, tokens, d)`` over tokens. A hook keeps the last
        forward pass, used once. ``v·n`` rows beside ``n`` labels are ``v`` views, all first views first.

    Attributes:
        terms: Detached values of the last call: ``"task"``, each term by name (a single loss is ``"contrastive"``),
            ``"total"``, and the weights in force, ``"weight/task"`` and so on. Ready for ``log_dict``.
        step: Training calls so far, in a buffer: what schedules read. A training call is one in training mode with
            gradients enabled; others move no state.

    Raises:
        ValueError: If a weight or a name is not usable.
        TypeError: If an argument is of the wrong kind.

    Reference: the sum of both losses, Khosla et al. 2020 (arXiv:2004.11362) for SupCon; see docs/joint.md.

    Example:
        >>> import nearfar as nf
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), features=model[1], alpha=0.5)
        >>> loss = criterion(model(torch.randn(6, 8)), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> loss.backward()
        >>> sorted(criterion.terms)
        ['contrastive', 'task', 'total', 'weight/contrastive', 'weight/task']
    """

    step: Tensor

    def __init__(
        self,
        task: LossLike,
        contrastive: LossLike | Sequence[LossLike] | Mapping[str, LossLike],
        *,
        features: nn.Module | None = None,
        alpha: float | Schedule | None = None,
        weights: Mapping[str, float | Schedule] | Sequence[float | Schedule] | None = None,
        balance: Literal["gradient"] | None = None,
        head: int | nn.Module | None = None,
        normalize: Literal["batchnorm"] | None = None,
        pool: Literal["mean", "first"] = "mean",
        readout: Literal["prototypes"] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("balance", balance, ("gradient", None)), ("normalize", normalize, ("batchnorm", None)),
            ("pool", pool, ("mean", "first")), ("readout", readout, ("prototypes", None)),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{what}={value!r} is not known: pass {' or '.join(map(repr, known))}")
        if not callable(task):
            raise TypeError(f"the task loss is a {type(task).__name__}: wanted a loss or a function (outputs, targets)")
        self.task = task
        self.contrastive = nn.ModuleDict(named_losses(contrastive))
        self.alpha, self.weights = read_weights(alpha, weights, list(self.contrastive))
        self._takes = {name: what_it_takes(loss) for name, loss in self.contrastive.items()}
        self.pool = pool
        self.head = _head(head)
        self.norm = FeatureNorm(None) if normalize else None
        self.balance = GradientBalance(len(self.contrastive)) if balance else None
        num_classes = None if num_classes is None else at_least("num_classes", num_classes, 1)
        self.prototypes = Prototypes(num_classes) if readout else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.terms: dict[str, Tensor] = {}
        self._tap: Tap | None = None
        if features is not None:
            self.attach(features)

    def forward(
        self,
        outputs: Any,
        targets: Any,
        labels: Int[Tensor, "n"] | Shaped[Tensor, "n c"] | None = None,
        pairs: Pairs | None = None,
        features: Float[Tensor, "v_n ..."] | None = None,
    ) -> Float[Tensor, ""]:
        """The joint loss of a batch.

        Args:
            outputs: What the task loss takes first, such as logits ``(n, num_classes)``.
            targets: What it takes second.
            labels: Who belongs together, one integer a sample (negative: unknown); by default the targets, where they
                are class ids ``(n,)`` or class weights ``(n, c)`` (mixed or smoothed targets, label sets): rows then
                belong together by the inner product of their weights. Targets of tokens or places say nothing of samples.
            pairs: In place of labels, an ``nf.Pairs`` over the rows of the features.
            features: In place of the captured ones; ``v·n`` rows, see the class.

        Raises:
            RuntimeError: If no features were captured since the last call, or they carry no gradient.
            ValueError: If labels are missing or counts differ.
            TypeError: If a contrastive loss cannot use what is known (class ids where targets are soft, …).
        """
        learning = self.training and torch.is_grad_enabled()
        raw = self._features(features, outputs, learning)
        z = self.represent(raw, learning)
        relation = read_relation(
            targets, labels, pairs, len(z), any(takes.labels or takes.pairs for takes in self._takes.values()), outputs
        )
        projected = self.head(z)
        values = {"task": scalar("the task loss", self.task(outputs, targets))}
        for name, loss in self.contrastive.items():
            values[name] = call_loss(name, loss, self._takes[name], projected, relation)
        if learning and self.balance is not None:
            self.balance.update(values, raw)
        weights = self._weights()
        first, *others = (weight * value for weight, value in zip(weights, values.values()))
        total = sum(others, first)
        if learning:
            self.step += 1
            self._learn_prototypes(z.detach(), targets, relation, outputs)
        self.terms = {name: value.detach() for name, value in (values | {"total": total}).items()}
        self.terms |= {f"weight/{name}": torch.as_tensor(weight) for name, weight in zip(values, weights)}
        return total

    def attach(self, module: nn.Module) -> None:
        """Reads the features of a layer from now on, in place of the layer read so far."""
        self.close()
        self._tap = Tap(module)

    def close(self) -> None:
        """Takes the hook off the model; it goes by itself when the criterion does."""
        if self._tap is not None:
            self._tap.close()
        self._tap = None

    def represent(self, features: Float[Tensor, "n ..."], learning: bool = False) -> Float[Tensor, "n d"]:
        """Features as the contrast and the prototypes see them, before the head: pooled, normalised if asked for.

        Args:
            features: As captured; see the class.
            learning: Whether ``normalize="batchnorm"`` takes the batch's statistics, or the running ones.
        """
        if check_given(features).ndim < 2:
            raise ValueError(
                f"features have shape {tuple(features.shape)}: wanted (n, d), (n, tokens, d) or (n, d, h, w)"
            )
        if features.ndim == 3:
            features = features[:, 0] if self.pool == "first" else features.mean(1)
        features = features.flatten(2).mean(2) if features.ndim > 3 else features
        return features if self.norm is None else self.norm.train(learning)(features)

    def fit_prototypes(
        self,
        source: Float[Tensor, "n ..."] | Iterable[tuple[Tensor, Tensor]],
        labels: Int[Tensor, "n"] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        """Replaces the moving class sums by exact ones over a data set.

        Args:
            source: Features with ``labels``; or batches ``(features, labels)``; or, with ``model``, batches
                ``(inputs, labels)`` that it is run on, in evaluation mode, to capture the features.
            labels: Class ids, where ``source`` is a tensor.
            model: The model whose layer is read.

        Raises:
            RuntimeError: If this criterion keeps no prototypes, or nothing was captured.
            ValueError: If there is no batch, or the number of classes is not known yet.
        """
        prototypes = self._kept_prototypes()
        classes = prototypes.num_classes or len(prototypes.sums)
        if isinstance(source, Tensor):
            if labels is None:
                raise ValueError("features were given without labels: pass fit_prototypes(features, labels)")
            labels = as_labels(labels)
            source = [(source, labels)]
            classes = classes or (labels.shape[1] if labels.ndim == 2 else len(labels) and 1 + int(labels.max()))
        if not classes:
            raise ValueError(
                "the number of classes is not known before the first training call: pass num_classes= to nf.Joint"
            )
        training = model is not None and model.training
        sums: Tensor | None = None
        try:
            if model is not None:
                model.eval()
            with torch.no_grad():
                for inputs, ids in source:
                    if model is not None:
                        model(inputs)
                    z = self.represent(self._features(inputs if model is None else None, None, False))
                    added = class_sums(z, as_labels(ids, z.device), classes)
                    sums = added if sums is None else sums + added
        finally:
            if model is not None:
                model.train(training)
        if sums is None:
            raise ValueError("there was no batch to fit prototypes on: pass a loader or a list, not a used-up iterator")
        prototypes.fit(sums)

    def logits(
        self, features: Float[Tensor, "n ..."], outputs: Float[Tensor, "n c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """``10 · cos(f, M_c)`` by the prototypes; with the classifier's ``outputs``, both votes (``mixed_logits``)."""
        by_prototype = self._kept_prototypes()(self.represent(features))
        return by_prototype if outputs is None else mixed_logits(outputs, by_prototype)

    def predict(
        self, features: Float[Tensor, "n ..."], outputs: Float[Tensor, "n c"] | None = None
    ) -> Int[Tensor, "n"]:
        """The class of each row: the largest of ``logits``.

        Raises:
            RuntimeError: If this criterion keeps no prototypes, or there are none yet.
        """
        with torch.no_grad():
            return self.logits(features, outputs).argmax(1)

    def _weights(self) -> list[float | Float[Tensor, ""]]:
        """The weights in force, the task's first."""
        if self.alpha is not None:
            alpha = as_schedule("alpha", self.alpha, 1.0)(self.step)  # a number may have been assigned to it
            weights = [alpha, *[1 - alpha] * len(self.contrastive)]
        else:
            weights = [as_schedule(f"the weight of {name}", value)(self.step) for name, value in self.weights.items()]
        if self.balance is None:
            return weights
        return [weights[0], *(weight * scale for weight, scale in zip(weights[1:], self.balance()))]

    def _features(self, given: Tensor | None, outputs: Any, learning: bool) -> Float[Tensor, "n ..."]:
        """The features of this call: those given, else those captured."""
        captured = None if self._tap is None else self._tap.take()
        if given is not None:
            return given
        wants = learning and isinstance(outputs, Tensor) and outputs.requires_grad
        return check_captured(captured, None if self._tap is None else self._tap.name, wants)

    def _learn_prototypes(self, z: Float[Tensor, "v_n d"], targets: Any, relation: Relation, outputs: Any) -> None:
        """Prototypes are of the task's classes where the targets tell them, whatever the contrast is told."""
        if self.prototypes is None:
            return
        labels = labels_in(targets, outputs)
        labels = relation.labels if labels is None or len(z) % len(labels) else labels
        if labels is None:
            raise ValueError(
                "prototypes need classes, which neither targets nor labels tell: pass labels= (one a sample)"
            )
        classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else None
        self.prototypes.update(z, repeat_views(labels.to(z.device), len(z) // len(labels)), classes)

    def _kept_prototypes(self) -> Prototypes:
        if self.prototypes is None:
            raise RuntimeError('this criterion keeps no prototypes: build it with readout="prototypes"')
        return self.prototypes

    def __getstate__(self) -> dict[str, Any]:
        """A copy reads no layer until told to: its model is another one."""
        return {**super().__getstate__(), "_tap": None, "terms": {}}


def _head(head: int | nn.Module | None) -> nn.Module:
    if head is None or isinstance(head, nn.Module):
        return nn.Identity() if head is None else head
    return ProjectionHead(None, at_least("head", head, 1, "a width of at least 1, a module, or None"))
