"""Token ids: stored, from a tokenizer folder, from the package that carries the vocabulary."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dossr_jax import prompts
from dossr_jax.errors import UserError

STORED = list(prompts.DEFAULT_PROMPT_TOKENS)
TEXTS = [
    "a",
    "A person riding a MOTORCYCLE",
    "  tabs\tand\n\nlines   and  spaces ",
    "it's we're don't 'quoted' l'll'd",
    "10,000 x 2.5 = 25000!!! ??? ... :-)",
    "<tag> under_score #hash @at 100%",
    "naïve café, cafe\u0301, Ünïcödé, ÀÉÎ",
    "写真 фото 사진 🙂🙃",
    "supercalifragilisticexpialidocious",
    "the quick brown fox " * 30,
]


def write_folder(folder: Path, merges: list[tuple[str, str]]) -> Path:
    """A CLIP tokenizer folder: byte alphabet, the same at a word's end, merges, two specials."""
    # Bytes that print stand for themselves, the others for the characters from 256 on.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    pieces = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    vocab = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def small_folder(tmp_path):
    # Ids: 512 "th", 513 "the</w>", 514 "in", 515 "ing</w>", 516 start, 517 end.
    pairs = [("t", "h"), ("th", "e</w>"), ("i", "n"), ("in", "g</w>")]
    return write_folder(tmp_path / "tokenizer", pairs)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP's own vocabulary, which lies as text inside the extension module of the package."""
    package = pytest.importorskip("instant_clip_tokenizer")
    library = next(Path(package.__file__).parent.glob("*.so"), None)
    text = b"" if library is None else library.read_bytes()
    start = text.find(b"#version: 0.2")
    if start < 0:
        pytest.skip("this build of instant_clip_tokenizer carries no readable vocabulary")
    count = 49408 - 2 * 256 - 2
    lines = text[start : start + 2_000_000].split(b"\n")[1 : 1 + count]
    merges = [tuple(line.decode("utf-8").split()) for line in lines]
    return write_folder(tmp_path_factory.mktemp("clip") / "tokenizer", merges)


def transformers_ids(folder, texts, length=77):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder))
    rows = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    return [row + [0] * (length - len(row)) for row in rows]


def without(monkeypatch, *packages):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_stored_prompts_need_no_tokenizer(monkeypatch):
    without(monkeypatch, "tokenizers", "instant_clip_tokenizer")
    ids = prompts.tokenize(["clean, high-resolution, 8k", ""])
    assert ids.shape == (2, 77)
    assert ids.dtype == np.int32
    known = [49406, 3772, 267, 1400, 268, 9977, 267, 279, 330, 49407]
    assert ids[0].tolist() == known + [0] * 67
    assert ids[1].tolist() == [49406, 49407] + [0] * 75


def test_stored_prompts_are_what_the_package_makes_of_them():
    package = pytest.importorskip("instant_clip_tokenizer")
    expected = package.Tokenizer().tokenize_batch(STORED, context_length=77)
    np.testing.assert_array_equal(prompts.tokenize(STORED), expected)


def test_stored_prompts_are_what_the_vocabulary_makes_of_them(clip_folder):
    assert prompts.tokenize(STORED).tolist() == transformers_ids(clip_folder, STORED)


def test_package(monkeypatch):
    package = pytest.importorskip("instant_clip_tokenizer")
    without(monkeypatch, "tokenizers")
    expected = package.Tokenizer().tokenize_batch(TEXTS, context_length=77)
    np.testing.assert_array_equal(prompts.tokenize(TEXTS), expected)


def test_known_ids(clip_folder):
    # From the published CLIP vocabulary.
    expected = [49406, 320, 2533, 6765, 320, 10297, 49407]
    text = ["A person riding a motorcycle"]
    assert prompts.tokenize(text)[0, :7].tolist() == expected
    assert prompts.tokenize(text, tokenizer_dir=clip_folder)[0, :7].tolist() == expected


def test_folder_and_package_agree_on_composed_text(clip_folder):
    # A letter and its accent as two characters are joined by the folder's pipeline alone.
    texts = [text for text in TEXTS if "\u0301" not in text]
    np.testing.assert_array_equal(
        prompts.tokenize(texts, tokenizer_dir=clip_folder), prompts.tokenize(texts)
    )


def test_clip_folder_agrees_with_transformers(clip_folder):
    ours = prompts.tokenize(TEXTS, tokenizer_dir=clip_folder)
    assert ours.tolist() == transformers_ids(clip_folder, TEXTS)


def test_small_folder_by_hand(small_folder):
    pytest.importorskip("tokenizers")
    ids = prompts.tokenize(["The  thing"], tokenizer_dir=small_folder, context_length=6)
    assert ids.tolist() == [[516, 513, 512, 515, 517, 0]]


def test_small_folder_agrees_with_transformers(small_folder):
    rng = np.random.default_rng(0)
    alphabet = list("the inTHG's 09.,!?é\n")
    texts = ["".join(rng.choice(alphabet, size=n)) for n in range(1, 60)]
    ours = prompts.tokenize(texts, tokenizer_dir=small_folder, context_length=20)
    assert ours.tolist() == transformers_ids(small_folder, texts, 20)


def test_one_file_folder_means_the_same(small_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    saved = tmp_path / "saved"
    transformers.CLIPTokenizer.from_pretrained(str(small_folder)).save_pretrained(str(saved))
    for name in ("vocab.json", "merges.txt"):
        (saved / name).unlink(missing_ok=True)
    assert (saved / "tokenizer.json").is_file()
    np.testing.assert_array_equal(
        prompts.tokenize(TEXTS, tokenizer_dir=saved),
        prompts.tokenize(TEXTS, tokenizer_dir=small_folder),
    )


@pytest.mark.parametrize("length", [2, 3, 6])
def test_a_long_prompt_is_cut_and_keeps_its_end(small_folder, length):
    pytest.importorskip("tokenizers")
    texts = [STORED[0], "the " * 100]
    ids = prompts.tokenize(texts, tokenizer_dir=small_folder, context_length=length)
    assert ids[0].tolist() == [*prompts.DEFAULT_PROMPT_TOKENS[texts[0]][: length - 1], 49407]
    assert ids[1].tolist() == [516, *[513] * (length - 2), 517]


def test_rows_do_not_depend_on_one_another(small_folder):
    pytest.importorskip("tokenizers")
    texts = ["the", "", "thing " * 200, STORED[0], "in"]
    together = prompts.tokenize(texts, tokenizer_dir=small_folder)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_array_equal(row, prompts.tokenize([text], tokenizer_dir=small_folder)[0])


def test_embed_passes_ids_on():
    out = prompts.embed(lambda ids: ids[..., None] * jnp.ones((1, 1, 3)), STORED)
    assert out.shape == (2, 77, 3)
    np.testing.assert_array_equal(out[..., 0], prompts.tokenize(STORED))


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_no_tokenizer_at_all_names_the_extra(monkeypatch):
    without(monkeypatch, "instant_clip_tokenizer")
    with pytest.raises(UserError) as error:
        prompts.tokenize(["a cat"])
    assert "dossr-jax[prompt]" in one_line(error)


def test_folder_without_the_library_names_the_extra(monkeypatch, small_folder):
    without(monkeypatch, "tokenizers")
    with pytest.raises(UserError) as error:
        prompts.tokenize(["a cat"], tokenizer_dir=small_folder)
    assert "dossr-jax[prompt]" in one_line(error)


@pytest.mark.parametrize("remove", ["vocab.json", "merges.txt"])
def test_incomplete_folder(small_folder, remove):
    pytest.importorskip("tokenizers")
    (small_folder / remove).unlink()
    with pytest.raises(UserError) as error:
        prompts.tokenize(["a cat"], tokenizer_dir=small_folder)
    message = one_line(error)
    assert str(small_folder) in message
    assert remove in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "not json"),
        ("vocab.json", '{"a": 0}'),
        ("merges.txt", "#version: 0.2\none two three\n"),
        ("merges.txt", "#version: 0.2\nq q\n"),
    ],
)
def test_broken_folder(small_folder, name, content):
    pytest.importorskip("tokenizers")
    (small_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        prompts.tokenize(["a cat"], tokenizer_dir=small_folder)
    assert str(small_folder) in one_line(error)


def test_folder_of_another_tokenizer(small_folder):
    pytest.importorskip("tokenizers")
    vocab = json.loads((small_folder / "vocab.json").read_text(encoding="utf-8"))
    del vocab["<|startoftext|>"]
    (small_folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    with pytest.raises(UserError) as error:
        prompts.tokenize(["a cat"], tokenizer_dir=small_folder)
    assert "<|startoftext|>" in one_line(error)
