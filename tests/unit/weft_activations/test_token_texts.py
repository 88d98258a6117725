"""Texts of prompts and of generated tokens, with the tokenizers of models made here."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.changing import Prompt
from weft_activations.core.generating import Generation, Sampling
from weft_activations.core.inference import Inference
from weft_activations.core.token_texts import tokens_alone, tokens_of_run

TEXT = "in 東京 🦊é."


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.text("東京🦊é a\n", max_size=12))
def test_texts_of_a_prompt_put_together_are_the_prompt(backend: TransformersBackend, text: str) -> None:
    """A byte-level tokenizer cuts characters; a prompt has one string a token and none of them a part."""
    ids = backend.tokenize("llama", text) if text else []
    tokens = tokens_of_run(backend, "llama", ids)
    assert [token.token_id for token in tokens] == ids
    assert "".join(token.text for token in tokens) == text
    assert [token.piece for token in tokens] == backend.token_pieces("llama", ids)


async def test_tokens_of_a_text_are_whole_and_of_ids_are_what_they_are_alone(
    inference: Inference, backend: TransformersBackend
) -> None:
    """Tokenize, Run and captures tell a run; Detokenize and next tokens tell tokens that do not follow each other."""
    tokens = await inference.tokenize("llama", TEXT, special_tokens=True)
    ids = [token.token_id for token in tokens]
    assert "".join(token.text for token in tokens) == TEXT
    alone = await inference.detokenize("llama", ids)
    assert [token.text for token in alone] == [
        piece.decode(errors="replace") for piece in backend.token_pieces("llama", ids)
    ]
    assert sum("\ufffd" in token.text for token in alone) > len("東京🦊é")
    assert tokens_alone(backend, "llama", ids) == alone
    found = await inference.likely("llama", backend.forward("llama", ids, ["logits"])["logits"], ids)
    assert [each.token for each in found] == alone


async def test_generated_texts_put_together_are_what_the_tokenizer_decodes(
    inference: Inference, models_dir: Path
) -> None:
    """Drawn at random, bytes hardly ever are whole characters; what was told of them is never taken back."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(models_dir / "llama")
    sampling = Sampling(40, temperature=50.0, seed=3)
    generation = Generation(inference, max_bytes=1 << 20)
    found = [each async for each in generation.generate("llama", Prompt(text=TEXT), (), sampling)]
    assert "".join(token.text for token in found[0].prompt) == TEXT
    ids = [each.likely.token.token_id for each in found]
    texts = [each.likely.token.text for each in found]
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    cut = sum(tokenizer.decode([each]) != text for each, text in zip(ids, texts, strict=True))
    assert cut > 0
