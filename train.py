"""Train one stage of a model: `python train.py --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes

BAD_INPUT = 2

try:
    from configs import CONFIGS, MODULES
    from dossr_jax import training, weights
    from dossr_jax.config import ConfigError, TrainConfig, from_dict, to_dict
    from dossr_jax.convert.__main__ import convert
    from dossr_jax.convert.release import check_release_shape
    from dossr_jax.errors import UserError
    from dossr_jax.training.loop import Trained, start_crops, train
except ModuleNotFoundError as lack:
    print(f"error: {lack}; training needs an extra: pip install '.[train]'", file=sys.stderr)
    sys.exit(BAD_INPUT)

_EXPORT_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": None}
_EXAMPLES = """\
examples:
  python train.py --list
  python train.py --config tiny --data photos/ --output runs/tiny --steps 20
  python train.py --config mini_dossr --data photos/ --output runs/dossr --init prior.safetensors
  python train.py --config sd21_dossr --data photos.tfds/ --output runs/sd \\
      --init sd21.safetensors --set optimizer.learning_rate=5e-5 --set data.workers=8

The same command goes on with a run that was stopped, killed, or is to be longer (--steps); on a
cluster it is started once a node or host. OUTPUT receives checkpoints/, pictures/, tensorboard/,
metrics.jsonl and at the end model.safetensors, the averaged weights in float32, which infer.py's
--model and the next stage's --init take. docs/training.md has more.

exit status: 0 all steps done, or stopped by SIGTERM or Ctrl-C with the state saved; 2 something
is wrong with what was given, or came up on the way: the one line of it says what to do.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train one stage of a model: pre-restorer, autoencoder, prior, DoSSR, refiner.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list the configurations and stop")
    parser.add_argument("--config", metavar="NAME", choices=CONFIGS, help="one of --list")
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="folder of images, of LR and HR images, or of a data set of dossr_jax.data.prepare",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder of the run; one that holds a run goes on"
    )
    parser.add_argument(
        "--init",
        metavar="FILE",
        type=Path,
        help="model file that a new run starts from: the stage before, or dossr_jax.convert's",
    )
    parser.add_argument(
        "--validation",
        metavar="PATH",
        type=Path,
        help="images for validation (default: those that --data holds out)",
    )
    parser.add_argument("--steps", metavar="N", type=int, help="length of the whole run in steps")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="samples a step, over all devices"
    )
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="change any setting of the configuration, as in data.crop=256 or seed=1",
    )
    export = parser.add_argument_group("at the end")
    export.add_argument("--export", metavar="FILE", type=Path, help="write the model here, too")
    export.add_argument(
        "--export-dtype",
        choices=_EXPORT_DTYPES,
        default="bfloat16",
        help="of the weights in that file (default: bfloat16)",
    )
    export.add_argument(
        "--export-torch",
        metavar="FILE",
        type=Path,
        help="write the model as .safetensors with the keys of the PyTorch release, float32",
    )
    return parser


def make_config(name: str, settings: Mapping[str, str]) -> TrainConfig:
    """The named configuration with dotted fields changed to values in JSON, or plain strings.

    Raises:
      UserError: no such field, or a value that does not fit it.
    """
    values = json.loads(json.dumps(to_dict(CONFIGS[name])))
    for field, text in settings.items():
        *parents, last = field.split(".")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise UserError(f"--set {field}: {name} has no such field; see dossr_jax/config.py")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        old = section[last]
        if isinstance(old, float) and isinstance(value, int):
            value = float(value)
        if old is not None and type(value) is not type(old):
            raise UserError(f"--set {field}={text}: not of the kind of {json.dumps(old)}")
        section[last] = value
    try:
        return from_dict(TrainConfig, values)
    except (ConfigError, TypeError, ValueError) as error:
        raise UserError(f"--config {name}: {error}") from error


def check_exports(config: TrainConfig, args: argparse.Namespace) -> None:
    """Find out before the training what would keep its result from being written.

    Raises:
      UserError: no such folder, or networks that PyTorch's release does not have.
    """
    for path in filter(None, (args.export, args.export_torch)):
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such folder; make it first")
    if args.export_torch:
        check_release_shape(config.model)


def save(trained: Trained, args: argparse.Namespace) -> None:
    """Write the averaged model everywhere it is wanted."""
    config, graphdef, state = trained.run
    model = training.trained_model(trained.run, state)
    if config.stage == "vae":
        training.set_scale_factor(model, start_crops(trained.source, config))
    if jax.process_index():
        return
    notes = {"recipe": f"{args.config}, {int(state.step)} steps"}
    target = args.output / "model.safetensors"
    targets = [(target, None)]
    if args.export:
        targets.append((args.export, _EXPORT_DTYPES[args.export_dtype]))
    for path, dtype in targets:
        weights.save_model(path, model, dtype=dtype, notes=notes)
        print(f"wrote {path}")
    if args.export_torch:
        convert(target, args.export_torch, to="release", overwrite=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.list:
        for name, module in zip(CONFIGS, MODULES, strict=True):
            print(f"{name:18} {module.__doc__.splitlines()[0]}")
        return 0
    if missing := [f"--{n}" for n in ("config", "data", "output") if not getattr(args, n)]:
        parser.error(f"{', '.join(missing)} needed (or --list)")
    settings = dict(setting.partition("=")[::2] for setting in args.set)
    settings |= {"steps": str(args.steps)} if args.steps is not None else {}
    settings |= {"data.batch": str(args.batch_size)} if args.batch_size is not None else {}
    try:
        config = make_config(args.config, settings)
        check_exports(config, args)
        trained = train(
            config,
            data=args.data,
            output=args.output,
            init=args.init,
            validation=args.validation,
        )
        if trained.complete:
            save(trained, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
