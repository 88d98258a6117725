"""Any packing of any documents keeps each token once, in order, and puts starts and separators where it says."""

from dataclasses import replace
from itertools import pairwise

import pytest
from harvest_fakes import FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_activations.core.packing import Packer, Packing, StartRule, check_packing
from weft_common.errors import InvalidArgumentError

# Token ids say which document they come from, and where they stand in it; the other two are far above.
_STRIDE = 100
BOS, SEPARATOR = 9_998, 9_999

PACKINGS = st.builds(
    lambda crosses, rule, separates, most, skipped: Packing(
        cross_documents=crosses,
        start_rule=rule,
        separator_token_id=SEPARATOR if crosses and separates else None,
        max_document_tokens=most,
        skipped_token_ids=tuple(sorted(skipped)),
    ),
    st.booleans(),
    st.sampled_from(StartRule),
    st.booleans(),
    st.sampled_from([0, 0, 1, 5, 17]),
    st.sets(st.sampled_from([doc * _STRIDE + at for doc in range(6) for at in range(25)]), max_size=40),
)


def _pack(
    packing: Packing, lengths: list[int], sequence_tokens: int, num_tokens: int
) -> tuple[Packer, list[list[int]]]:
    packer = Packer(packing, bos_token_id=BOS, sequence_tokens=sequence_tokens, num_tokens=num_tokens)
    documents = [[doc * _STRIDE + at for at in range(length)] for doc, length in enumerate(lengths)]
    for document in documents:
        packer.add(document)
    packer.finish()
    limit = packing.max_document_tokens or _STRIDE
    return packer, [document[:limit] for document in documents]


@settings(deadline=None)
@given(
    packing=PACKINGS,
    lengths=st.lists(st.integers(0, 25), max_size=6),
    sequence_tokens=st.integers(3, 12),
    num_tokens=st.sampled_from([1, 5, 20, 10_000]),
)
def test_any_packing_keeps_each_token_once_in_order(
    packing: Packing, lengths: list[int], sequence_tokens: int, num_tokens: int
) -> None:
    """What is kept is the documents' text, less filtered tokens and those on position 0; only that many tokens."""
    packer, documents = _pack(packing, lengths, sequence_tokens, num_tokens)
    filtered = set(packing.skipped_token_ids)
    kept: list[int] = []
    for sequence in packer.sequences:
        ids = sequence.ids.tolist()
        assert 2 <= len(ids) <= sequence_tokens
        others = [at for at, each in enumerate(ids) if at and (each >= BOS or each in filtered)]
        assert sequence.skipped.tolist() == others
        own = [each for at, each in enumerate(ids) if at and at not in others]
        assert len(own) == sequence.num_kept == sequence.kept().sum() > 0
        assert sequence.ids[1:][sequence.kept()].tolist() == own
        kept += own
    text = [each for document in documents for each in document if each not in filtered]
    assert len(kept) + packer.left == num_tokens
    on_position_0 = {int(sequence.ids[0]) for sequence in packer.sequences}
    if packing.starts_sequences(BOS):
        assert kept == text[:num_tokens]
        assert on_position_0 <= {BOS}
    else:
        assert kept == [each for each in text if each in set(kept)]
        seen = {int(each) for sequence in packer.sequences for each in sequence.ids}
        assert set(kept) == (seen & set(text)) - on_position_0


@settings(deadline=None)
@given(packing=PACKINGS, lengths=st.lists(st.integers(0, 25), max_size=6), sequence_tokens=st.integers(3, 12))
def test_starts_and_separators_stand_where_the_rules_say(
    packing: Packing, lengths: list[int], sequence_tokens: int
) -> None:
    """By sequence, by document or nowhere; a separator between two documents of one sequence and nowhere else."""
    packer, documents = _pack(replace(packing, skipped_token_ids=()), lengths, sequence_tokens, 10_000)
    firsts = {document[0] for document in documents if document}
    rule = StartRule.SEQUENCE if packing.start_rule is StartRule.MODEL else packing.start_rule
    before_document = [BOS] if rule is StartRule.DOCUMENT else []
    between = [] if packing.separator_token_id is None else [SEPARATOR]
    for sequence in packer.sequences:
        ids = sequence.ids.tolist()
        wanted: list[int] = [BOS] if rule is StartRule.SEQUENCE else []
        for each in (token for token in ids if token < BOS):
            if each in firsts:
                has_text = any(token < BOS for token in wanted)
                wanted += [*(between if has_text else []), *before_document]
            wanted.append(each)
        assert ids == wanted
        if not packing.cross_documents:
            assert len({token // _STRIDE for token in ids if token < BOS}) == 1
    if packing.cross_documents:
        room = len(between) + len(before_document)
        for sequence, _ in pairwise(packer.sequences):
            assert sequence_tokens - room <= len(sequence.ids) <= sequence_tokens


@pytest.mark.parametrize(
    ("packing", "bos", "words"),
    [
        (Packing(start_rule=StartRule.SEQUENCE), None, "adds no start token"),
        (Packing(start_rule=StartRule.DOCUMENT), None, "adds no start token"),
        (Packing(separator_token_id=1), 0, "no sequence crosses documents"),
        (Packing(max_document_tokens=-1), 0, "max_document_tokens is -1"),
        (Packing(skipped_token_ids=(128,)), 0, "skipped_token_ids has 128, outside the vocabulary.* 0 to 127"),
        (Packing(skipped_token_ids=(-1,)), 0, "has -1, outside"),
        (Packing(cross_documents=True, separator_token_id=128), 0, "separator_token_id has 128"),
        (Packing(skipped_token_ids=tuple(range(1001))), 0, "1001 skipped_token_ids; give 1000"),
    ],
)
def test_bad_packings_are_refused(packing: Packing, bos: int | None, words: str) -> None:
    """Tokens that the model does not have, and rules that contradict each other."""
    with pytest.raises(InvalidArgumentError, match=words):
        check_packing(packing, FakeBackend(bos_token_id=bos).describe("fake"))
