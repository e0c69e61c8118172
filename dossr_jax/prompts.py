"""Prompts to CLIP token ids, and on to embeddings.

The prompts of the released model are stored as ids, so that the usual run needs no tokenizer.
Any other prompt goes through CLIP's byte-pair encoding, from a tokenizer folder of the user's or
from the `instant_clip_tokenizer` package, which carries the vocabulary inside it.

Text is made lower case and runs of whitespace count as one space. OpenCLIP also repairs mojibake,
HTML entities, curly quotes and ligatures before that; nothing here does, so a prompt with such
characters may get other ids than there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dossr_jax.errors import UserError

CONTEXT_LENGTH = 77
PAD_TOKEN = 0
START_TOKEN = 49406
END_TOKEN = 49407

# fmt: off
DEFAULT_PROMPT_TOKENS: dict[str, tuple[int, ...]] = {
    "clean, high-resolution, 8k": (
        START_TOKEN, 3772, 267, 1400, 268, 9977, 267, 279, 330, END_TOKEN,
    ),
    "": (START_TOKEN, END_TOKEN),
}
# fmt: on
"""Ids of the released model's prompt and of the empty one, without padding."""

_INSTALL = "install the extra: pip install 'dossr-jax[prompt]'"
# CLIP's words: contractions, runs of letters, single digits, runs of anything else but space.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def tokenize(
    prompts: Sequence[str],
    *,
    tokenizer_dir: Path | None = None,
    context_length: int = CONTEXT_LENGTH,
) -> np.ndarray:
    """Token ids of `prompts`, int32 (len(prompts), context_length).

    Each row is the start token, the prompt, the end token, then zeros (OpenCLIP's padding, and
    "!" in the vocabulary of Stable Diffusion 2.1). A prompt that is too long is cut; its end
    token stays. Prompts of `DEFAULT_PROMPT_TOKENS` are looked up there. All others use
    `tokenizer_dir`, the `tokenizer` folder of a diffusers-style model (`vocab.json` and
    `merges.txt`, or `tokenizer.json`), or without one the package `instant_clip_tokenizer`.

    Raises UserError where a prompt needs a tokenizer and none can be had or read.
    """
    encode = None
    tokens = np.full((len(prompts), context_length), PAD_TOKEN, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        ids = DEFAULT_PROMPT_TOKENS.get(prompt)
        if ids is None:
            encode = encode or _make_encode(tokenizer_dir)
            ids = encode(prompt)
        if len(ids) > context_length:
            ids = (*ids[: context_length - 1], ids[-1])
        row[: len(ids)] = ids
    return tokens


def embed(
    encoder: Callable[[jax.Array], jax.Array],
    prompts: Sequence[str],
    *,
    tokenizer_dir: Path | None = None,
) -> jax.Array:
    """Embeddings of `prompts`, (len(prompts), 77, width), by a TextEncoder or its jitted call.

    Raises UserError as :func:`tokenize` does.
    """
    return encoder(jnp.asarray(tokenize(prompts, tokenizer_dir=tokenizer_dir)))


def _make_encode(tokenizer_dir: Path | None) -> Callable[[str], Sequence[int]]:
    """Function from a prompt to its ids between start and end token."""
    return _packaged_encode() if tokenizer_dir is None else _folder_encode(Path(tokenizer_dir))


def _packaged_encode() -> Callable[[str], Sequence[int]]:
    try:
        import instant_clip_tokenizer
    except ImportError as error:
        raise UserError(
            f"this prompt needs a tokenizer: {_INSTALL}, or give a tokenizer folder "
            "(vocab.json and merges.txt)"
        ) from error
    tokenizer = vars(instant_clip_tokenizer)["Tokenizer"]()  # of a compiled module without types
    return lambda prompt: (START_TOKEN, *tokenizer.encode(prompt), END_TOKEN)


def _folder_encode(folder: Path) -> Callable[[str], Sequence[int]]:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(f"reading tokenizer folder {folder} needs a package: {_INSTALL}") from error
    vocab, merges, whole = (folder / n for n in ("vocab.json", "merges.txt", "tokenizer.json"))
    parts = vocab.is_file() and merges.is_file()
    if not parts and not whole.is_file():
        raise UserError(
            f"{folder} is no tokenizer folder: give one with vocab.json and merges.txt, "
            "or tokenizer.json"
        )
    try:
        if parts:
            tokenizer = _clip_bpe(vocab, merges)
        else:
            tokenizer = tokenizers.Tokenizer.from_file(str(whole))
            tokenizer.no_truncation()
            tokenizer.no_padding()
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())
        raise UserError(f"tokenizer folder {folder} cannot be read: {reason}") from error
    start, end = (tokenizer.token_to_id(t) for t in ("<|startoftext|>", "<|endoftext|>"))
    if start is None or end is None:
        raise UserError(
            f"tokenizer folder {folder} is not CLIP's: give one that has <|startoftext|> "
            "and <|endoftext|>"
        )
    return lambda prompt: (start, *tokenizer.encode(prompt, add_special_tokens=False).ids, end)


def _clip_bpe(vocab: Path, merges: Path):
    """CLIP's byte-level BPE as a `tokenizers.Tokenizer`, without start and end token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE.from_file(
            str(vocab),
            str(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    )
    space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    # Inverted and "removed": what no word matches, the space, goes.
    words = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    return tokenizer
