"""Train one stage of a model.

    python train.py --config mini_vae --data BANK --output runs/vae
    python train.py --config mini_rrdb --data BANK --output runs/rrdb --init VAE_MODEL

The bank comes from dossr_jax.data.bank, VAE_MODEL is runs/vae/model.safetensors: each stage starts
from the model of the one before.

Writes OUTPUT/state.safetensors (to resume) and OUTPUT/model.safetensors (averaged weights in
float32, what the next stage's --init and infer.py's --model take). A folder that holds a state is
resumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from configs import CONFIGS
from dossr_jax import training, weights
from dossr_jax.config import TrainConfig
from dossr_jax.data.batches import Bank, Latents
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR

NOTES = {
    "name": "dossr-mini",
    "license": "CC-BY-SA-4.0",
    "data": "free photos of Debian packages, see docs/mini.md",
}
_LOG_EVERY = 20
_SAVE_SECONDS = 180
_EVAL_BATCHES = 8
_ENCODE_BATCH = 8
_START_CROPS = 200


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, choices=CONFIGS)
    parser.add_argument("--data", required=True, type=Path, help="bank of dossr_jax.data.bank")
    parser.add_argument("--output", required=True, type=Path, help="folder of this run")
    parser.add_argument("--init", type=Path, help="model file that the stage before wrote")
    parser.add_argument("--export", type=Path, help="also write the model in bfloat16 here")
    parser.add_argument("--steps", type=int, help="length of the run in steps")
    parser.add_argument("--minutes", type=float, help="length of the whole run in minutes instead")
    parser.add_argument("--batch-size", type=int, help="batch of every window")
    parser.add_argument("--crops", type=int, help="crops to encode for a latent stage")
    parser.add_argument("--seed", type=int)
    return parser.parse_args()


def make_config(args: argparse.Namespace) -> TrainConfig:
    """The named configuration with the command line's changes."""
    names = ("steps", "minutes", "crops", "seed")
    changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    config = dataclasses.replace(CONFIGS[args.config], **changes)
    if args.batch_size:
        windows = (dataclasses.replace(w, batch=args.batch_size) for w in config.windows)
        config = dataclasses.replace(config, windows=tuple(windows))
    return config


def load_latents(model: DoSSR, bank: Bank, folder: Path, split: str, count: int) -> Latents:
    """Latents of a bank's first `count` crops, from the cache beside the bank if they are there.

    Crop i is paired with its LR of preset i modulo their number.
    """
    count = min(count, len(bank))
    cache = folder / f"latents-{training.fingerprint(model)}-{split}-{count}.npz"
    if not cache.exists():
        pairs = []
        for i in tqdm(range(0, count, _ENCODE_BATCH), desc=f"encode {split}"):
            # The last batch is filled up with repeats: one compiled shape.
            index = np.minimum(np.arange(i, i + _ENCODE_BATCH), count - 1)
            lr = bank.lr[index, index % len(bank.presets)]
            pairs.append(
                [np.asarray(a, np.float16) for a in training.encode_pair(model, bank.hr[index], lr)]
            )
        x0, x_lr = (np.concatenate(a)[:count] for a in zip(*pairs, strict=True))
        temporary = cache.with_suffix(".tmp.npz")
        np.savez(temporary, x0=x0, x_lr=x_lr)
        temporary.replace(cache)
    with np.load(cache) as file:
        return Latents(file["x0"], file["x_lr"])


def draw_batch(
    source: Bank | Latents, config: TrainConfig, step: int, total: int
) -> dict[str, np.ndarray]:
    """The batch of a step: a function of seed and step, which makes a resumed run continue."""
    rng = np.random.default_rng([config.seed, step])
    windows = [w for w in config.windows if step >= w.start * total]
    window = windows[rng.integers(len(windows))]
    return source.batch(rng, window.size, window.batch)


def evaluate(eval_step, state, source: Bank | Latents, config: TrainConfig) -> dict[str, float]:
    """Mean metrics over fixed batches of the validation split."""
    window = config.windows[0]
    results = []
    for i in range(_EVAL_BATCHES):
        batch = source.batch(np.random.default_rng(i), window.size, window.batch)
        results.append(eval_step(state, batch, jax.random.key(i)))
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def log(text: str) -> None:
    tqdm.write(f"{time.strftime('%H:%M:%S')} {text}")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> None:
    began = time.monotonic()
    config = make_config(args)
    stage = training.STAGES[config.stage]
    args.output.mkdir(parents=True, exist_ok=True)
    state_path, model_path = args.output / "state.safetensors", args.output / "model.safetensors"

    # --- model and data
    model = training.load_for(config, args.init)
    sources = {split: Bank(args.data, split) for split in ("train", "validation")}
    if stage.latent:
        sources = {
            split: load_latents(model, bank, args.data, split, config.crops)
            for split, bank in sources.items()
        }
    if config.stage == "vae" and not state_path.exists():
        training.start_vae(model, sources["train"].hr[:_START_CROPS])
    graphdef, state = training.init_state(config, model)
    if state_path.exists():
        state = training.restore_state(state_path, config, state)
        log(f"resumed at step {int(state.step)}")
    train_step = training.make_train_step(config, graphdef)
    eval_step = training.make_eval_step(config, graphdef)
    key = jax.random.key(config.seed)

    def save() -> None:
        training.save_state(state_path, config, state)
        averaged = training.averaged_model(graphdef, state)
        if config.stage == "vae":
            sample = sources["train"].batch(np.random.default_rng(0), 32, 64)["hr"]
            training.set_scale_factor(averaged, sample)
        weights.save_model(model_path, averaged, notes=NOTES)
        if args.export:
            training.export(args.export, averaged, NOTES)
        metrics = evaluate(eval_step, state, sources["validation"], config)
        log(f"step {step} validation " + " ".join(f"{k} {v:.4f}" for k, v in metrics.items()))

    # --- the loop
    step, total = int(state.step), config.steps
    first, looped = step, time.monotonic()
    saved = marked = looped
    recent: list[dict] = []
    bar = tqdm(total=total, initial=step, desc=config.stage, mininterval=5)
    while step < total:
        state, metrics = train_step(state, draw_batch(sources["train"], config, step, total), key)
        recent.append(metrics)
        step += 1
        bar.update()
        if step % _LOG_EVERY and step != total:
            continue
        means = {k: float(jnp.mean(jnp.stack([m[k] for m in recent]))) for k in recent[0]}
        now = time.monotonic()
        pace, recent, marked = (now - marked) / len(recent), [], now
        if not np.isfinite(means["loss"]):
            raise UserError(
                f"loss is {means['loss']} at step {step}; the last good state is "
                f"{state_path}: lower the learning rate"
            )
        if config.minutes is not None:
            # As many steps as the time left allows at the pace so far; none once it is over.
            left = began + 60 * config.minutes - now
            total = step + max(0, int((step - first) * left / (now - looped)))
            state = state._replace(total_steps=jnp.int32(total))
            bar.total = total
        bar.set_postfix(loss=f"{means['loss']:.4f}")
        if step % (10 * _LOG_EVERY) == 0:
            log(
                f"step {step}/{total} {pace:.3f} s/step "
                + " ".join(f"{k} {v:.4g}" for k, v in means.items())
            )
        if now - saved > _SAVE_SECONDS and step < total:
            save()
            saved = marked = time.monotonic()
    bar.close()
    save()


def main() -> None:
    try:
        run(parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
