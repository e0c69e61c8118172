"""Command line of training: `dossr-train`, `python train.py`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dossr_jax import files, systems
from dossr_jax.commands import command_line
from dossr_jax.config import DataConfig, TrainConfig
from dossr_jax.errors import UserError, require_extra
from dossr_jax.training import experiments, flags

_EXTRA = ("grain", "array_record", "google.protobuf", "optax", "tensorboardX", "tyro")
_EXAMPLES = """\
examples:
  python train.py --list
  python train.py --config tiny --data photos/ --output runs/tiny --steps 20
  python train.py --config mini_dossr --data photos/ --output runs/dossr --init prior.safetensors
  python train.py --config sd21_dossr --data photos.tfds/ --output runs/sd \\
      --init sd21.safetensors --optimizer.learning-rate 5e-5 --stage.lora-rank 8

Every field of a configuration is an option: train.py NAME --help shows them all, with types,
values and descriptions.

The same command resumes a run that was stopped or killed, or makes it longer (--steps); on a
cluster, start it once per node or host. OUTPUT receives checkpoints/, pictures/, tensorboard/,
metrics.jsonl and at the end model.safetensors, the EMA weights in float32, for infer.py --model
and the next stage's --init. See docs/training.md.

exit status: 0 all steps done, or stopped by SIGTERM or Ctrl-C with the state saved; 2 bad input or
a failure, explained in one line.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        description="Train one stage of a model: pre-restorer, autoencoder, prior, DoSSR.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    flags.add_options(parser)
    parser.add_argument("--list", action="store_true", help="list the configurations and exit")
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="folder of images, of LR and HR images, or of a data set of dossr_jax.data.prepare; "
        "or tfds:NAME[/SPLIT], a data set that TensorFlow Datasets has prepared",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder of the run; an existing run is resumed"
    )
    parser.add_argument(
        "--init",
        metavar="FILE",
        type=Path,
        help="model file that a new run starts from: the previous stage's or dossr_jax.convert's",
    )
    parser.add_argument(
        "--validation",
        metavar="PATH",
        type=Path,
        help="images for validation, named as for --data (default: those that --data holds out)",
    )
    parser.add_argument("--steps", metavar="N", type=int, help="length of the whole run in steps")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="samples per step, over all devices"
    )
    export = parser.add_argument_group("export")
    export.add_argument("--export", metavar="FILE", type=Path, help="also write the model here")
    export.add_argument(
        "--export-dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="dtype of the weights in that file (default: bfloat16)",
    )
    export.add_argument(
        "--export-sampler",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="store another default sampler in the written files, as in fidelity=0.6",
    )
    export.add_argument(
        "--export-torch",
        metavar="FILE",
        type=Path,
        help="write the model as .safetensors with the keys of the PyTorch release, float32",
    )
    return parser


@command_line("stopped at once; the same command resumes from the last checkpoint")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = flags.read_arguments(parser, arguments)
    if args.help:
        print(flags.full_help(parser, args))
        return 0
    missing = [f"--{n}" for n in ("config", "data", "output") if not getattr(args, n)]
    if missing and not args.list:
        parser.error(f"{', '.join(missing)} needed (or --list)")
    if args.list:
        for name, summary in experiments.list_configs().items():
            print(f"{name:18} {summary}")
        return 0
    require_extra("train", *_EXTRA)
    from dossr_jax.training.fields import with_flags

    changes = list(args.flags)
    changes += [f"--steps={args.steps}"] if args.steps is not None else []
    changes += [f"--data.batch={args.batch_size}"] if args.batch_size is not None else []
    config = experiments.load_config(args.config, changes)
    sampler = [f"--model.sampler.{change}" for change in args.export_sampler]
    stored = with_flags(config, sampler)
    names = [change.partition("=")[0] for change in args.export_sampler]
    _run(config, args, {name: getattr(stored.model.sampler, name) for name in names})
    return 0


def _run(config: TrainConfig, args: argparse.Namespace, sampler: Mapping[str, Any]) -> None:
    """Train; `sampler` has the fields of the sampler that exported files store instead."""
    # Imported here: `--help` and wrong arguments need none of it.
    import jax
    import ml_dtypes

    from dossr_jax.convert.conversion import convert
    from dossr_jax.systems.dossr.release import check_release_shape
    from dossr_jax.training.history import NOTE, describe_training
    from dossr_jax.training.loop import start_crops, train
    from dossr_jax.training.stages import Stage
    from dossr_jax.training.state import trained_model

    _check_places(args)
    if args.export_torch:
        system = systems.system_of(config.model)
        if system.export is None:
            raise UserError(f"--export-torch: {system.title} has no form for PyTorch; leave it out")
        if config.model.system == "dossr":
            check_release_shape(config.model)
    with _all_or_nothing(args.output):
        _check_images(args.data, config.data)
        trained = train(
            config, data=args.data, output=args.output, init=args.init, validation=args.validation
        )
    if not trained.complete:
        return
    config, _, state = trained.run
    model = trained_model(trained.run)
    Stage.of(config).finalize(model, lambda: start_crops(trained.source, config))
    if jax.process_index():
        return
    stored = dataclasses.replace(model.config.sampler, **sampler)
    model.config = dataclasses.replace(model.config, sampler=stored)
    notes = {
        NOTE: describe_training(args.init, args.output, config=args.config, steps=int(state.step))
    }
    targets: list[tuple[Path, Any]] = [(args.output / "model.safetensors", None)]
    if args.export:
        dtype = None if args.export_dtype == "float32" else ml_dtypes.bfloat16
        targets.append((args.export, dtype))
    for path, dtype in targets:
        systems.save_model(path, model, dtype=dtype, notes=notes)
        print(f"wrote {path}")
    if args.export_torch:
        convert(targets[0][0], args.export_torch, to="release", overwrite=True)


def _check_places(args: argparse.Namespace) -> None:
    """Refuse, before anything is read, places that cannot be written or are not to be.

    Raises:
      UserError: naming the place.
    """
    from dossr_jax.data.sources import is_prepared

    files.check_folder(args.output)
    for option, folder in (("--data", args.data), ("--validation", args.validation)):
        if folder is None or is_prepared(folder):
            continue
        if args.output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{args.output}: lies in {folder}, whose images are {option}, and the run's "
                "pictures would count among them; choose another --output"
            )
    for path in filter(None, (args.export, args.export_torch)):
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such folder; make it first")
        if path.is_dir():
            raise UserError(f"{path}: a folder; name a file to write the model to")
        files.check_folder(path.parent)
    if args.export_torch and args.export_torch.suffix != ".safetensors":
        raise UserError(
            f"{args.export_torch}: not the name of a .safetensors file; call it "
            f"{args.export_torch.name}.safetensors"
        )


def _check_images(data: Path, config: DataConfig) -> None:
    """Refuse data of which no image can be used: found later, it would leave a checkpoint behind.

    Raises:
      UserError: with the reason.
    """
    from dossr_jax.data.sources import open_source
    from dossr_jax.training.validation import fixed_batch

    fixed_batch(open_source(data, split="train", hold_out=config.hold_out), config, 1)


@contextlib.contextmanager
def _all_or_nothing(output: Path) -> Iterator[None]:
    """Remove what a run has added to `output` if it fails before its first checkpoint is complete.

    What was there before stays, and so does a run that can be resumed.
    """
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    before = set() if missing else set(output.iterdir())
    try:
        yield
    except BaseException:
        _remove_strays(output, before, missing)
        raise


def _remove_strays(output: Path, before: Collection[Path], missing: Sequence[Path]) -> None:
    import jax

    begun = any(path.name.isdigit() for path in output.glob("checkpoints/*"))
    if begun or not output.exists() or jax.process_index():
        return
    for path in set(output.iterdir()) - set(before):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another run has begun in one of them
        for folder in missing:
            folder.rmdir()
