"""Bytes of tokens, of tokenizers made here: what they join to, for any text."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from weft_activations.adapters.token_pieces import TokenPieces

TEXT = st.text(max_size=30) | st.text("東京🦊é a\n▁Ġ<", max_size=12)
CORPUS = ["the cat sat on the mat", "the capital of France is Paris", " the cat"]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's, with added tokens that stand outside of its map."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
        make_llama(tmp_path_factory.mktemp("tokenizer") / "llama")
    )
    tokenizer.add_tokens([AddedToken("  é  ", normalized=False)])
    return tokenizer


def sentence_piece(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """A BPE with U+2581 for spaces and bytes for what it does not know, as Llama's."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", "<s>", *tokens], show_progress=False)
    )
    # What the trainer is told to keep is no special token of Llama's.
    model = trained.model
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = trained.pre_tokenizer, decoder
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_pieces_of_a_byte_level_tokenizer_join_to_the_text(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    """Characters of many tokens and added tokens too; alone, a token is what it decodes to."""
    ids = byte_level.encode(text, add_special_tokens=False)
    pieces = TokenPieces(byte_level)(ids)
    assert b"".join(pieces).decode() == text
    added = set(byte_level.added_tokens_decoder)
    alone = [byte_level.decode([each]) for each in ids if each not in added]
    assert [
        piece.decode(errors="replace") for each, piece in zip(ids, pieces, strict=True) if each not in added
    ] == alone


@settings(max_examples=150, deadline=None)
@given(TEXT.filter(lambda text: "▁" not in text and "<" not in text))
@pytest.mark.parametrize("begin", [[], [decoders.Strip(" ", 1, 0)]], ids=["gemma", "llama"])
def test_pieces_of_a_sentence_piece_tokenizer_join_to_the_text(begin: list[decoders.Decoder], text: str) -> None:
    """Spaces at the begin of tokens stay, and bytes of unknown characters come together."""
    tokenizer = TOKENIZERS[len(begin)]
    pieces = TokenPieces(tokenizer)(tokenizer.encode(text, add_special_tokens=False))
    assert b"".join(pieces).decode() == text


TOKENIZERS = [sentence_piece(decoders.Sequence([*LLAMA, *more])) for more in ([], [decoders.Strip(" ", 1, 0)])]


def test_sentence_piece_tokens_keep_their_spaces() -> None:
    """The decoder takes the space of a token alone away; its piece has it, and a start token has its name."""
    tokenizer = TOKENIZERS[1]
    ids = [tokenizer.convert_tokens_to_ids("<s>"), *tokenizer.encode(" the cat", add_special_tokens=False)]
    assert "".join(tokenizer.decode([each]) for each in ids[1:]) != " the cat"
    assert b"".join(TokenPieces(tokenizer)(ids)) == b"<s> the cat"
    metaspace = sentence_piece(decoders.Metaspace(prepend_scheme="never"))
    assert b"".join(TokenPieces(metaspace)(ids)) == b"<s> the cat"


def test_other_tokenizers_say_what_they_decode_to_and_unknown_ids_nothing(byte_level: PreTrainedTokenizerFast) -> None:
    """WordPiece stays as its decoder has it, one without a Rust half goes by its pieces, and padding has no text."""
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    assert TokenPieces(PreTrainedTokenizerFast(tokenizer_object=words))([1, 2]) == [b"play", b"##ing"]
    names = ["▁the", "<0xE6>"]
    slow = SimpleNamespace(
        sp_model=object(), added_tokens_decoder={}, convert_ids_to_tokens=lambda ids: [names[each] for each in ids]
    )
    assert TokenPieces(slow)([0, 1]) == [b" the", b"\xe6"]
    assert TokenPieces(byte_level)([len(byte_level) + 5]) == [b""]


def test_folder_is_written_once(tmp_path: Path) -> None:
    """The tokenizer that is saved and read again has the same pieces."""
    TOKENIZERS[1].save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    ids = read.encode(" the 東", add_special_tokens=False)
    assert b"".join(TokenPieces(read)(ids)).decode() == " the 東"
