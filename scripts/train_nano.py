"""Train the nano checkpoint and write it in the official format.

    nice python scripts/train_nano.py --work DIR [--out ds4export/data/nano] [--steps 2400]

Fetches the text with `apt-get download`, trains on one thread, saves its state to DIR/state.pt
every 100 steps and goes on from there when started again. `--export-only` writes that state.
"""

import argparse
import sys
from pathlib import Path

import torch
from nano import evaluate, text
from nano.checkpoint import write
from nano.design import CONFIG
from nano.train import Plan, Run

ROOT = Path(__file__).resolve().parent.parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for text and state")
    parser.add_argument("--out", type=Path, default=ROOT / "ds4export/data/nano")
    parser.add_argument("--held-out", type=Path, default=ROOT / "tests/data/nano_heldout.txt")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--export-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Text, training, export, evaluation."""
    args = _arguments()
    torch.set_num_threads(1)
    # bfloat16 products in training where the processor has them; evaluation turns it off again
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    args.work.mkdir(parents=True, exist_ok=True)
    training, held_out = text.split(text.chapters(text.raw_text(args.work)))
    tokenizer = text.train_tokenizer(training, CONFIG["vocab_size"])
    run = Run(args.work, Plan(steps=args.steps), text.encode(tokenizer, training))
    if not args.export_only:
        run.train()
    size = write(args.out, CONFIG, run.params)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "generation_config.json").write_text(evaluate.GENERATION_CONFIG)
    args.held_out.write_text("\n".join(held_out), encoding="utf-8")
    sys.stdout.write(f"wrote {args.out}  step {run.step}  {size} tensor bytes\n")
    sys.stdout.write(evaluate.report(args.out, args.held_out))


if __name__ == "__main__":
    main()
