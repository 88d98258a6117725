"""What interpretation costs, as Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter

__all__ = ["PrometheusInterpretation"]

_RESULTS = ("answered", "refused", "rejected", "strange", "failed", "reused")
_SIDES = ("question", "answer")


class PrometheusInterpretation:
    """`weft_interpretation_*`: questions by what became of them, tokens, broken answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._questions = Counter(
            "weft_interpretation_questions_total",
            "Questions to the interpreter's endpoint; reused: answered from the bucket, without a call.",
            ["result"],
            registry=registry,
        )
        self._tokens = Counter(
            "weft_interpretation_tokens_total", "Tokens that the endpoint counted.", ["side"], registry=registry
        )
        self._broken = Counter(
            "weft_interpretation_broken_total", "Answers that were not what was asked for.", registry=registry
        )
        for result in _RESULTS:
            self._questions.labels(result)
        for side in _SIDES:
            self._tokens.labels(side)

    def call(self, result: str, question_tokens: int, answer_tokens: int) -> None:
        """Count one question."""
        self._questions.labels(result).inc()
        self._tokens.labels("question").inc(question_tokens)
        self._tokens.labels("answer").inc(answer_tokens)

    def broken(self) -> None:
        """Count one broken answer."""
        self._broken.inc()
