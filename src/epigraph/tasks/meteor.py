"""METEOR 1.5 (Denkowski & Lavie 2014) by its own Java program. It knows tokens, and where the program is.

The E2E challenge and the COCO caption scripts run the same program with the same options.
"""

from __future__ import annotations

from collections.abc import Sequence

from epigraph.tasks.java import Conversation, conversation, find_jar

JAR = "meteor/meteor-1.5.jar"

# Reading its tables takes ten seconds, a row a hundredth of one: these are for a machine that has much else to do.
_START_S = 300.0
_ROW_S = 1.0


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR of all rows, from the sums of their statistics, and of each row alone; 0 to 1.

    Texts are tokens with one blank between them. Raises :class:`MetricUnavailable` where Java or the program is not
    there, fails, or takes longer than five minutes and a second a row.
    """
    arguments = ("-Xmx2G", "-jar", str(find_jar(JAR)), "-", "-", "-stdio", "-l", "en", "-norm")
    with conversation(arguments, timeout_s=_START_S + _ROW_S * len(predictions)) as java:
        statistics = [_statistics(java, *row) for row in zip(predictions, references, strict=True)]
        java.tell(" ||| ".join(["EVAL", *statistics]))
        rows = [float(java.hear()) for _ in predictions]
        return float(java.hear()), rows


def _statistics(java: Conversation, prediction: str, references: Sequence[str]) -> str:
    # The mark between texts must not stand in one, and the scripts drop it too.
    java.tell(" ||| ".join(["SCORE", *(x.replace("|||", "") for x in references), prediction.replace("|||", "")]))
    return java.hear()
