"""Command line of the converter: `python -m dossr_jax.convert`, `dossr-convert`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dossr_jax.commands import command_line
from dossr_jax.convert.conversion import DTYPES, convert

_EPILOG = """\
INPUT is one of
  a DoSSR checkpoint of the PyTorch release (.ckpt, .pth, .safetensors, or shards: their folder or
    their index, *.safetensors.index.json)
  SD 2.1 as one file or as a diffusers folder; needs --rrdb and gives the model training starts from
    (a controlnet/ in the folder, as --to diffusers writes it, makes it a whole DoSSR)
  the files of another system, all of them: ResShift's UNet and autoencoder; DASR's generator and
    predictor; SD 2.1, ControlNet and first network of DiffBIR; SD 2.1 and the .pkl of OSEDiff or
    PiSA-SR; SwinIR or an RRDBNet alone; or a folder with the files (see docs/systems)
  a folder with weights.safetensors, config.yaml and golden.npz (see docs/porting.md)
  a model file of dossr_jax, to write it in another form

examples
  python -m dossr_jax.convert dossr.ckpt dossr.safetensors --dtype bfloat16
  python -m dossr_jax.convert v2-1_512-ema-pruned.safetensors start.safetensors \\
      --rrdb RealESRGAN_x4plus.pth
  python -m dossr_jax.convert stable-diffusion-2-1-base/ start.safetensors --rrdb realesrgan
  python -m dossr_jax.convert resshift_realsrx4_s4_v3.pth autoencoder_vq_f4.pth resshift.safetensors
  python -m dossr_jax.convert dossr.safetensors back.safetensors --to release
  python -m dossr_jax.convert dossr.safetensors sd_folder --to diffusers
  python -m dossr_jax.convert dossr.safetensors my-dossr --card --licence cc-by-sa-4.0
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.convert",
        description="Convert between PyTorch checkpoints and model files of dossr_jax. Every key "
        "is accounted for, or nothing is written and the misfits are listed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help="what to convert, see below"
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="file or folder to write")
    parser.add_argument(
        "--to",
        choices=("dossr", "orbax", "release", "diffusers"),
        default="dossr",
        help="dossr: one .safetensors file with the config inside (default); orbax: an Orbax "
        "checkpoint folder; release: .safetensors with the PyTorch release's keys; diffusers: a "
        "folder with unet/, controlnet/, vae/, scheduler/ and, if it is there, text_encoder/",
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="write a folder in the layout of Hugging Face: config.json, model.safetensors and a "
        "model card (README.md); --model takes the folder",
    )
    parser.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="licence of the weights for the card, such as cc-by-sa-4.0 (default: what the file or "
        "its system says, else unknown)",
    )
    parser.add_argument(
        "--rrdb",
        metavar="FILE",
        help="pre-restorer to add, or to put in place of the model's: an RRDBNet .pth or "
        ".safetensors (Real-ESRGAN, BSRGAN, LDL, ESRGAN), an ncnn .param, or 'realesrgan' or "
        "'realesrgan-anime' for the models that are installed with the package",
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        type=Path,
        help="the model's YAML file of the release; without it the configuration is read off the "
        "keys, except the width of an attention head",
    )
    parser.add_argument(
        "--head-dim",
        metavar="N",
        type=int,
        help="width of an attention head (64, as in SD 2.1, where no YAML file gives it)",
    )
    parser.add_argument(
        "--keep-text",
        action="store_true",
        help="keep the text tower, to embed other prompts and to get every key of the release back",
    )
    parser.add_argument(
        "--context",
        metavar="NPZ",
        type=Path,
        help="prompt embeddings, where the checkpoint has no text tower: arrays context and "
        "context_neg (tokens, width)",
    )
    parser.add_argument(
        "--dtype",
        choices=("keep", *DTYPES),
        default="keep",
        help="dtype of the written weights (keep: unchanged); schedule buffers keep their dtype",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take the EMA weights (model_ema.*) where a checkpoint has them beside the plain ones",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which of several models with the same keys it is, where the names of its files do "
        "not tell: ResShift s15, s4, sinsr; DiffBIR v1, v2.1",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    return parser


@command_line("stopped; nothing was written")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, 2 for bad input."""
    convert(**vars(_parser().parse_args(argv)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
