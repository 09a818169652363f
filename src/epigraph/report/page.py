"""One training run as one HTML file: what the records say, in words, tables and pictures. It trains nothing.

Text in the records is untrusted, and the template escapes it (:mod:`epigraph.report.written`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from epigraph.report import words
from epigraph.report.comparisons import comparisons
from epigraph.report.curve import MAX_POINTS, Row, by_step, training_curve_svg
from epigraph.report.mass import joined, mass_svg, top
from epigraph.report.records import MassRecord, Run, Summary, read_run
from epigraph.report.scores import ScoreGroup, ScoreRow, before_and_after, headline_metric, score_groups, unlike
from epigraph.report.written import out_for, rendered, write_page

MODEL_SIDE = 220.0
GAP = 28.0
LABEL_WIDTH = 130.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Squares:
    """Two squares whose areas are two file sizes; sides in CSS pixels."""

    model_side: float
    artifact_side: float

    @property
    def artifact_left(self) -> float:
        """Where the artifact's square begins."""
        return self.model_side + GAP

    @property
    def width(self) -> float:
        """The picture's width, with room for the words beside a small square."""
        return self.artifact_left + max(self.artifact_side, LABEL_WIDTH)

    @property
    def height(self) -> float:
        """The picture's height, with room for the words above the artifact."""
        return max(self.model_side + 1, self.artifact_side + 48)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the run in ``folder`` to ``out`` (default ``folder/report.html``) and return its path.

    An older report there is replaced, at once and whole. Raises :class:`RecordsNotFound`, :class:`BadRows`, or
    :class:`OutputExists` where ``out`` is a folder.
    """
    out = out_for(folder, out)
    return write_page(render(read_run(folder)), out)


def render(run: Run) -> str:
    """The page as text; the same records give the same text."""
    return rendered("page.html.jinja", page_values(run))


def page_values(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    headline = headline_metric(run.evaluations, run.development)
    groups = score_groups(run.evaluations, headline)
    before, after = before_and_after(run.evaluations)
    rows: list[Row] = [*run.steps, *run.development]
    return {
        "run": run,
        "title": title(run),
        "lead": " ".join(lead(run, groups)),
        "glance": at_a_glance(run, groups),
        "groups": groups,
        "unlike": unlike(run.evaluations),
        "curves": {
            "wide": Markup(training_curve_svg(rows)),
            "narrow": Markup(training_curve_svg(rows, width=350, height=240)),
        },
        "steps_a_point": -(-len(run.steps) // MAX_POINTS),
        "development": by_step(run.development),
        "development_metrics": list(dict.fromkeys(name for x in run.development for name in x.dev)),
        "comparisons": comparisons(before, after),
        "compared": after or before,
        "mass": run.mass,
        "mass_is_current": run.mass is None or mass_is_current(run.mass, run.summary),
        "mass_pictures": mass_pictures(run.mass) if run.mass else [],
        "squares": squares(run.summary) if run.summary else None,
        "recipe": words.flat(run.recipe) if run.recipe is not None else None,
        "provenance": provenance(run.summary) if run.summary else None,
        "flat": words.flat,
    }


def title(run: Run) -> str:
    """The page's title in words."""
    if run.summary is None:
        return f"What was learnt: {run.name}"
    return f"What {run.summary.model} learnt: {run.summary.task}"


def lead(run: Run, groups: tuple[ScoreGroup, ...]) -> list[str]:
    """The run in a few plain sentences, as many as its records allow."""
    sentences = _summary_sentences(run.summary) if run.summary else []
    score = _score_sentence(groups)
    if score:
        sentences.append(score)
    if run.steps or run.summary:
        sentences.append(_training_sentence(run))
    return sentences


def at_a_glance(run: Run, groups: tuple[ScoreGroup, ...]) -> list[tuple[str, str, str]]:
    """The figures worth remembering, as (what, how much, beside what)."""
    figures = []
    pair = _headline_pair(groups)
    if pair is not None:
        group, before, after = pair
        was, now = (words.decimal(x.value, group.places) for x in (before, after))
        figures.append((f"{words.metric_name(group.metric)} after training", now, f"{was} before"))
    if run.summary is not None:
        kept = words.percent(run.summary.stored_numbers / run.summary.model_parameters)
        figures.append(("Numbers kept", words.count(run.summary.stored_numbers), f"{kept} of the model"))
        beside = f"beside a model of {words.size(run.summary.model_bytes)}"
        figures.append(("Artifact", words.size(run.summary.artifact_bytes), beside))
        steps = f"{words.count(len(run.steps))} steps" if run.steps else "steps not recorded"
        figures.append(("Time to train", words.duration(run.summary.seconds), steps))
    return figures


def squares(summary: Summary) -> Squares:
    """The artifact and the model as squares with areas in the ratio of their bytes, the larger at full size."""
    larger = max(summary.model_bytes, summary.artifact_bytes)
    return Squares(
        model_side=round(MODEL_SIDE * (summary.model_bytes / larger) ** 0.5, 2),
        artifact_side=round(MODEL_SIDE * (summary.artifact_bytes / larger) ** 0.5, 2),
    )


def mass_is_current(mass: MassRecord, summary: Summary | None) -> bool:
    """Whether the mass was measured on the artifact that is there, as far as the records say."""
    return summary is None or summary.content_hash is None or summary.content_hash == mass.content_hash


def mass_pictures(mass: MassRecord) -> list[tuple[str, Markup, int, float]]:
    """For each site its name, its heat map, how many virtual tokens a column is, and the share with the full colour."""
    return [
        (name, Markup(mass_svg(name, site)), joined(site)[0], top(joined(site)[1])) for name, site in mass.sites.items()
    ]


def provenance(summary: Summary) -> Mapping[str, list[tuple[str, str]]]:
    """Where the run was made and with what, as tables of (what, value)."""
    tables = {
        "Run": [
            ("model", summary.model),
            ("task", summary.task),
            ("method", summary.method),
            ("seed", str(summary.seed)),
            ("step kept", "not recorded" if summary.kept_step is None else words.count(summary.kept_step)),
            ("model parameters", words.count(summary.model_parameters)),
            ("model file", f"{words.count(summary.model_bytes)} bytes"),
            ("artifact file", f"{words.count(summary.artifact_bytes)} bytes"),
            ("numbers trained", words.count(summary.trained_numbers)),
            ("numbers kept", words.count(summary.stored_numbers)),
        ],
        "Versions": words.flat(summary.versions),
        "Machine": words.flat(summary.machine),
    }
    return {name: rows for name, rows in tables.items() if rows}


def _summary_sentences(summary: Summary) -> list[str]:
    trained = words.count(summary.trained_numbers)
    share = words.percent(summary.stored_numbers / summary.model_parameters)
    if summary.num_virtual_tokens == 0:
        return [f"{summary.method} trained {trained} numbers of {summary.model} on the task {summary.task}."]
    kept = f"{words.count(summary.stored_numbers)} numbers, {share} of the model"
    if summary.trained_numbers != summary.stored_numbers:
        kept += f", kept of the {trained} that training moved"
    tokens = f"{words.count(summary.num_virtual_tokens)} virtual token{'s' * (summary.num_virtual_tokens != 1)}"
    return [
        f"The {words.count(summary.model_parameters)} numbers of {summary.model} stayed as they were.",
        f"For the task {summary.task} it now reads {tokens} in front of the text, trained by {summary.method}: {kept}.",
    ]


def _score_sentence(groups: tuple[ScoreGroup, ...]) -> str | None:
    pair = _headline_pair(groups)
    if pair is None:
        return None
    group, before, after = pair
    was, now = (words.decimal(x.value, group.places) for x in (before, after))
    where = f"On {words.count(after.num_examples)} {group.split} examples"
    better = " (lower is better)" if group.lower_is_better else ""
    return f"{where} {words.metric_name(group.metric)} went from {was} to {now}{better}."


def _training_sentence(run: Run) -> str:
    steps = f"{words.count(len(run.steps))} step{'s' * (len(run.steps) != 1)}" if run.steps else "Training"
    if run.summary is None:
        return f"Training took {steps}."
    time, file = words.duration(run.summary.seconds), words.size(run.summary.artifact_bytes)
    took = f"Training took {steps} and {time}" if run.steps else f"Training took {time}"
    return f"{took}; the artifact is a file of {file}."


def _headline_pair(groups: tuple[ScoreGroup, ...]) -> tuple[ScoreGroup, ScoreRow, ScoreRow] | None:
    for group in groups:
        rows = {x.name: x for x in group.rows}
        if "before" in rows and "after" in rows:
            return group, rows["before"], rows["after"]
    return None
