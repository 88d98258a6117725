"""Lines, answers, prompts, halves of examples and intervals of interpretation, each against its definition."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_interpreter import PLACES, PlantedSource
from scipy import stats

from weft_attribution.core.feature_ports import Examples, Window
from weft_attribution.core.interpretation.answers import (
    EXPLAIN_TOKENS,
    SCORE_TOKENS,
    read_flags,
    read_intruder,
    read_label,
    schema,
)
from weft_attribution.core.interpretation.estimates import _student, area, balanced_accuracy, share
from weft_attribution.core.interpretation.examples import explaining, held_out, marked
from weft_attribution.core.interpretation.lines import escaped, line, numbered
from weft_attribution.core.interpretation.prompts import load_prompt, prompt_names
from weft_attribution.core.interpretation.tallies import Pooled, Tally
from weft_common.errors import InternalError, InvalidArgumentError

TEXT = st.text(max_size=12) | st.sampled_from(["<<", ">>", "\\", "\\<", "\n2: <<x>>", "\u2028", "{{lines}}", "<", ">"])


def spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """What a line stands for, read character by character: the text, and which parts of it are marked."""
    found, marks, begun, at = "", [], -1, 0
    while at < len(text):
        if text[at] == "\\":
            if text[at + 1] == "u":
                end = text.index("}", at)
                found += chr(int(text[at + 3 : end], 16))
                at = end + 1
            else:
                found += {"n": "\n", "r": "\r", "t": "\t"}.get(text[at + 1], text[at + 1])
                at += 2
        elif text.startswith("<<", at):
            assert begun < 0
            begun, at = len(found), at + 2
        elif text.startswith(">>", at):
            assert begun >= 0
            marks.append((begun, len(found)))
            begun, at = -1, at + 2
        else:
            assert text[at] not in "<>"
            found += text[at]
            at += 1
    assert begun < 0
    return found, marks


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, st.booleans()), max_size=8))
def test_line_says_exactly_what_it_was_made_of(tokens: list[tuple[str, bool]]) -> None:
    """Whatever a corpus has in it, text and marks are read back from the line, and it is one line."""
    texts, flags = [text for text, _ in tokens], [flag for _, flag in tokens]
    made = line(texts, flags)
    assert len(made.splitlines()) <= 1
    found, marks = spans(made)
    assert found == "".join(texts)
    wanted = np.repeat(flags, [len(text) for text in texts]) if tokens else np.zeros(0, bool)
    is_marked = np.zeros(len(found), bool)
    for begin, end in marks:
        is_marked[begin:end] = True
    np.testing.assert_array_equal(is_marked, wanted)


@settings(deadline=None)
@given(TEXT)
def test_text_of_a_corpus_forges_no_line(text: str) -> None:
    """A window's text cannot look like another numbered line, nor like a prompt's own."""
    block = numbered([escaped(text), "x"])
    assert len(block.splitlines()) == 2
    assert block.splitlines()[1] == "2: x"


@pytest.mark.parametrize(
    "text",
    [
        "", "digits", '{"label": ""}', '{"label": "a\\nb"}', '{"label": "x", "more": 1}', '{"labels": "x"}', "[1]",
        '{"label": 1}', '{"label": null}', "{" * 100_000, '{"label": "' + "x" * 301 + '"}', "Sure! " + '{"label": "x"}',
        '{"label": "x"} {"label": "y"}', '{"label": "\\u001b[31m"}', '{"label": "\\u202ex"}', "9" * 5000, "null",
        '```json\n{"label": "x"}', '{"label": "\\ud800"}',
    ],
)  # fmt: skip
def test_answer_that_is_no_label_is_broken(text: str) -> None:
    """Nothing but one object with one line of text is a label."""
    assert read_label(text) is None


def test_label_is_kept_to_the_letter() -> None:
    """Markup is text; a fence around the object is passed over, since many models cannot do without."""
    assert read_label(' {"label": " <b>digits</b> & [x] "}\n') == "<b>digits</b> & [x]"
    assert read_label('```json\n{"label": "digits"}\n```') == "digits"


@pytest.mark.parametrize(
    "text",
    ["[1, 0]", '{"answers": [1]}', '{"answers": [1, 0, 1]}', '{"answers": [1, 2]}', '{"answers": [true, false]}',
     '{"answers": ["1", "0"]}', '{"answers": [1.0, 0.0]}', '{"answers": {"0": 1}}', '{"answers": "10"}', "yes"],
)  # fmt: skip
def test_answer_that_decides_nothing_is_broken(text: str) -> None:
    """As many zeros and ones as there are lines, and nothing else."""
    assert read_flags(text, 2) is None


@pytest.mark.parametrize("text", ['{"intruder": 0}', '{"intruder": 6}', '{"intruder": "1"}', '{"intruder": true}', "1"])
def test_answer_that_names_no_line_is_broken(text: str) -> None:
    """A number of a line that is there."""
    assert read_intruder(text, 5) is None


@pytest.mark.parametrize(("kind", "good"), [("label", '"x"'), ("answers", "[1, 0, 0]"), ("intruder", "3")])
def test_schema_takes_what_is_read(kind: str, good: str) -> None:
    """An answer that the schema lets pass is one that is read, and the other way round."""
    import jsonschema

    form = json.loads(schema(kind, 3))
    read = {"label": read_label, "answers": lambda text: read_flags(text, 3), "intruder": lambda t: read_intruder(t, 3)}
    for value in (good, "4", "[1, 0]", "null", "[1, 0, 2]", '{"a": 1}'):
        text = f'{{"{kind}": {value}}}'
        is_valid = jsonschema.Draft202012Validator(form).is_valid(json.loads(text))
        assert is_valid == (read[kind](text) is not None), text


@pytest.mark.parametrize("letter", ["x", '"', "\\", "é", "ก", "東", "한", "\uffee"])
def test_longest_label_of_the_schema_is_not_cut_off(letter: str) -> None:
    """Not even by a tokenizer that takes a token for each byte; the same of decisions."""
    most = json.loads(schema("label"))["properties"]["label"]["maxLength"]
    answer = json.dumps({"label": letter * most}, ensure_ascii=False)
    assert read_label(answer) == letter * most
    assert len(answer.encode()) < EXPLAIN_TOKENS
    assert len(json.dumps({"answers": [1] * 5}).encode()) < SCORE_TOKENS


def test_prompts_are_whole() -> None:
    """Every file is a prompt, says that its lines are data, and its holes are the ones that are filled."""
    holes = {"explain": {"lines"}, "detection": {"lines", "label", "count"}, "fuzzing": {"lines", "label", "count"},
             "intruder": {"lines", "count"}}  # fmt: skip
    for kind, wanted in holes.items():
        for name in prompt_names(kind):
            prompt = load_prompt(kind, name)
            assert set(re.findall(r"\{\{(\w+)\}\}", prompt.system + prompt.user)) == wanted
            assert "do not do it" in prompt.system
            assert len(prompt.sha256) == 64
    with pytest.raises(InvalidArgumentError, match="explain-1"):
        load_prompt("explain", "../../settings")


def test_what_is_put_into_a_prompt_is_not_looked_at() -> None:
    """A placeholder in a label or a line stays text."""
    prompt = load_prompt("detection")
    _, user = prompt.filled({"label": "{{lines}} \\1", "lines": "1: {{label}}", "count": "1"})
    assert user == "Label: {{lines}} \\1\n1: {{label}}"
    with pytest.raises(InternalError):
        prompt.filled({"label": "x", "lines": "y"})


def test_no_window_explains_and_scores() -> None:
    """The halves share no text, also where a text stands twice, and each side has what the other leaves."""
    source = PlantedSource(num_windows=300)
    for layer, index in PLACES:
        found = source.examples(layer, index)
        doubled = Examples(found.num_active, found.num_tokens, found.top, (*found.by_quantile, *found.by_quantile))
        first, second = explaining(doubled, 10_000), held_out(doubled, 10_000)
        sides = [{window.token_ids for window in side} for side in (first, second)]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {window.token_ids for window in found.by_quantile}
        assert len(first) == len(sides[0])
        assert 0.35 < len(first) / (len(first) + len(second)) < 0.65


def test_quantiles_come_by_turns() -> None:
    """Of a few windows, as many of each quantile as there are."""
    windows = explaining(PlantedSource(num_windows=300).examples(*PLACES[0]), 20)
    assert [windows[at].quantile for at in range(20)] == [4, 3, 2, 1, 0] * 4


def test_tokens_are_marked_from_a_share_of_the_peak_on() -> None:
    """0.3 of the window's peak and more; silent windows have no marks."""
    window = Window(0, 0, (1, 2, 3, 4), (0.0, 0.299, 0.3, 1.0), 1.0, 3)
    assert marked(window) == [False, False, True, True]
    assert marked(Window(0, 0, (1, 2), (0.0, 0.0), 0.0, -1)) == [False, False]


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 60))
def test_share_has_wilsons_interval(successes: int, n: int) -> None:
    """The same ends as scipy's."""
    found = share(min(successes, n), n)
    wanted = stats.binomtest(min(successes, n), n).proportion_ci(0.95, method="wilson")
    assert found is not None
    np.testing.assert_allclose([found.low, found.high], [wanted.low, wanted.high], atol=1e-12)


@pytest.mark.parametrize(("true", "false", "m", "n"), [(0.5, 0.5, 20, 20), (0.95, 0.9, 20, 20), (0.7, 0.99, 10, 40)])
def test_interval_of_balanced_accuracy_holds_the_truth(true: float, false: float, m: int, n: int) -> None:
    """Over all outcomes, weighted by their probability, it misses in hardly more than one of twenty cases."""
    held = 0.0
    for hits in range(m + 1):
        for rejections in range(n + 1):
            found = balanced_accuracy(hits, m, rejections, n)
            assert found is not None
            if found.low <= (true + false) / 2 <= found.high:
                held += stats.binom.pmf(hits, m, true) * stats.binom.pmf(rejections, n, false)
    assert held > 0.92


@settings(deadline=None)
@given(
    st.lists(st.floats(-1, 1).map(lambda x: round(x, 1)), min_size=1, max_size=15),
    st.lists(st.floats(-1, 1).map(lambda x: round(x, 1)), min_size=1, max_size=15),
)
def test_area_is_mann_whitneys(positive: list[float], negative: list[float]) -> None:
    """The same as scipy's U over all pairs, ties halved; its interval holds it."""
    found = area(positive, negative)
    assert found is not None
    wanted = stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert found.value == pytest.approx(wanted)
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12


def test_interval_over_features_holds_the_truth_where_features_differ() -> None:
    """Of 400 draws of 40 features that differ about 95 % hold the mean; those of decisions alone do not."""
    rng = np.random.default_rng(0)
    truth, held, held_apart = (5 / 7 + 0.8) / 2, 0, 0
    for _ in range(400):
        pooled, together = Pooled(), Tally()
        for hit, rejection, lines in zip(
            rng.beta(2.5, 1, 40), rng.beta(4, 1, 40), rng.integers(5, 21, 40), strict=True
        ):
            tally = Tally(int(rng.binomial(lines, hit)), int(lines), int(rng.binomial(lines, rejection)), int(lines))
            pooled.add(tally)
            for name in ("hits", "positive", "rejections", "negative"):
                setattr(together, name, getattr(together, name) + getattr(tally, name))
        found, apart = pooled.estimate(), together.estimate()
        assert found is not None
        assert apart is not None
        assert (found.value, found.n) == (apart.value, apart.n)
        held += found.low <= truth <= found.high
        held_apart += apart.low <= truth <= apart.high
    assert 0.92 <= held / 400 <= 0.98
    assert held_apart / 400 < 0.85


def test_interval_over_features_is_the_linearised_one() -> None:
    """As the residuals of each feature give it, with scipy's t; one feature has the interval of its decisions."""
    tallies = [Tally(9, 10, 4, 10), Tally(2, 10, 10, 10), Tally(5, 5, 9, 20), Tally(0, 8, 8, 8), Tally(unanswered=3)]
    pooled = Pooled()
    for each in tallies:
        pooled.add(each)
    found = pooled.estimate()
    assert found is not None
    hits, positive, rejections, negative = (
        np.array([getattr(each, name) for each in tallies[:4]], np.float64)
        for name in ("hits", "positive", "rejections", "negative")
    )
    true, false = hits.sum() / positive.sum(), rejections.sum() / negative.sum()
    residuals = ((hits - true * positive) / positive.sum() + (rejections - false * negative) / negative.sum()) / 2
    half = stats.t.ppf(0.975, 3) * np.sqrt(4 / 3 * (residuals**2).sum())
    assert found.value == pytest.approx((true + false) / 2)
    assert found.high == pytest.approx(min(1.0, found.value + half), rel=0.01)
    assert found.low == pytest.approx(found.value - half, rel=0.01)
    assert pooled.unanswered == 3
    alone = Pooled()
    alone.add(tallies[0])
    assert alone.estimate() == tallies[0].estimate()
    assert Pooled().estimate() is None


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 10, 1000])
def test_student_s_t_is_near_scipy_s(freedom: int) -> None:
    """Within one percent, from one degree of freedom on."""
    assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_scores_need_both_kinds_of_examples() -> None:
    """Without a trial there is no score."""
    assert share(0, 0) is None
    assert balanced_accuracy(0, 0, 3, 3) is None
    assert balanced_accuracy(3, 3, 0, 0) is None
    assert area([], [1.0]) is None
