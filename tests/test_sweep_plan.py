"""Which jobs a spec comes to, and that no system gets more than another."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from epigraph.errors import BadValue
from epigraph.sweep.inputs import Inputs
from epigraph.sweep.plan import Job, Plan, check_search
from epigraph.sweep.spec import Spec

TEXT = """
name = "plan"
limits = [20, 50]
draws = [4, 5]
seeds = [1, 2]
[base]
model = "nowhere"
data = { task = "cards", dev_share = 0.3 }
training = { batch_size = 4 }
[budget]
steps = 30
[search]
factors = [0.5, 1, 2]
[[evaluate]]
limit = 9
[systems.prefix]
method = { num_virtual_tokens = 4 }
[systems.prompt]
method = { name = "prompt-tuning" }
lrs = [0.1, 0.2, 0.4]
[systems.bare]
method = { name = "untouched" }
"""
INPUTS = Inputs(base="b", data={"train": "t"}, evaluate=("e",), num_rows=(9,))


def plan(*changes: tuple[str, str]) -> Plan:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return Plan(Spec.model_validate(tomllib.loads(text)))


def losses(**by_lr: float) -> Callable[[Job], Mapping[str, Any] | None]:
    """A development loss for each learning rate of the search; ``inf`` for a run that failed."""

    def find(job: Job) -> Mapping[str, Any] | None:
        value = by_lr.get(f"x{job.recipe.training.lr:g}".replace(".", "_"))
        if job.kind == "final" or value is None:
            return None
        return {"failed": "it did"} if value == float("inf") else {"dev": {"loss": value}}

    return find


def nothing(_: Job) -> None:
    return None


def test_every_trained_system_gets_the_same_search_and_the_same_runs() -> None:
    made = plan()
    jobs = [job for cell in made.cells for job in [*cell.searches, *made.finals(cell, cell.rates[0])]]
    kinds = {(x.system, x.kind): sum((y.system, y.kind) == (x.system, x.kind) for y in jobs) for x in jobs}
    assert kinds == {
        ("prefix", "search"): 6,
        ("prefix", "final"): 8,
        ("prompt", "search"): 6,
        ("prompt", "final"): 8,
        ("bare", "final"): 1,
    }
    by_system = {
        name: [
            (x.kind, x.recipe.data, x.recipe.training.seed, x.recipe.training.steps) for x in jobs if x.system == name
        ]
        for name in ("prefix", "prompt")
    }
    assert by_system["prefix"] == by_system["prompt"]
    assert {x.recipe.training.steps for x in jobs} == {30}


def test_searches_are_on_one_draw_and_the_development_seed() -> None:
    searches = [x for cell in plan(("factors", "seed = 7\nfactors")).cells for x in cell.searches]
    assert {(x.draw, x.seed, x.recipe.data.draw, x.recipe.training.seed) for x in searches} == {(4, 7, 4, 7)}


def test_rates_are_multiples_of_a_systems_own_or_as_given() -> None:
    rates = {cell.system: [x.get("lr") for x in cell.rates] for cell in plan().cells}
    assert rates == {"prefix": [0.01, 0.02, 0.04], "prompt": [0.1, 0.2, 0.4], "bare": [None]}
    [head, *_] = (cell.rates for cell in plan().cells if cell.system == "prefix")
    assert [x["head_lr"] for x in head] == [0.0025, 0.005, 0.01]


def test_a_system_without_training_runs_once_whatever_the_rows_are() -> None:
    [cell] = [x for x in plan().cells if x.system == "bare"]
    [job] = plan().finals(cell, cell.rates[0])
    assert (job.limit, job.draw, job.seed, cell.searches) == (None, None, None, ())


def test_the_best_development_score_decides() -> None:
    made = plan()
    cell = made.cells[0]
    assert made.chosen(cell, nothing) is None
    assert made.chosen(cell, losses(x0_01=3.0, x0_02=2.0)) is None
    found = made.chosen(cell, losses(x0_01=3.0, x0_02=2.0, x0_04=2.5))
    assert found is not None
    assert found["lr"] == 0.02
    found = made.chosen(cell, losses(x0_01=3.0, x0_02=float("inf"), x0_04=2.5))
    assert found is not None
    assert found["lr"] == 0.04
    inf = float("inf")
    assert made.chosen(cell, losses(x0_01=inf, x0_02=inf, x0_04=inf)) is None


def test_a_score_that_is_better_when_higher_decides_the_other_way() -> None:
    made = plan(("factors", 'metric = "bleu"\nfactors'))

    def find(job: Job) -> Mapping[str, Any]:
        return {"dev": {"loss": 1.0, "bleu": job.recipe.training.lr}}

    found = made.chosen(made.cells[0], find)
    assert found is not None
    assert found["lr"] == 0.04
    assert made.cells[0].searches[0].recipe.training.dev_metric == "bleu"


def test_final_jobs_come_when_their_rate_is_chosen_and_draw_by_draw() -> None:
    made = plan()
    assert {x.kind for x in made.ready(nothing) if x.system != "bare"} == {"search"}
    ready = made.ready(losses(x0_01=3.0, x0_02=2.0, x0_04=2.5))
    finals = [x for x in ready if x.kind == "final"]
    assert {x.system for x in finals} == {"prefix", "bare"}
    assert {x.recipe.training.lr for x in finals if x.system == "prefix"} == {0.02}
    order = [(x.recipe.data.draw, x.recipe.training.seed) for x in finals]
    assert order == sorted(order)


def test_a_final_job_goes_on_from_the_search_of_the_same_run() -> None:
    made = plan()
    cell = made.cells[0]
    searched = {INPUTS.run(x) for x in cell.searches}
    finals = made.finals(cell, cell.rates[1])
    assert [INPUTS.run(x) in searched for x in finals] == [True, False, False, False]
    assert not searched & {INPUTS.key(x) for x in finals}
    assert all(made.goes_on(x) for x in cell.searches)
    assert not any(made.goes_on(x) for cell in plan(("factors", "seed = 9\nfactors")).cells for x in cell.searches)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps = 30", "steps = 31"),
        ("limit = 9", "limit = 8"),
        ("num_virtual_tokens = 4", "num_virtual_tokens = 5"),
        ("dev_share = 0.3", "dev_share = 0.2"),
        ("batch_size = 4", "batch_size = 5"),
    ],
)
def test_a_changed_spec_takes_no_old_record(old: str, new: str) -> None:
    def keys(made: Plan) -> set[str]:
        cell = next(x for x in made.cells if x.system == "prefix")
        return {INPUTS.key(x) for x in made.finals(cell, cell.rates[0])}

    assert keys(plan()) == keys(plan())
    assert not keys(plan()) & keys(plan((old, new)))


def test_other_rows_or_another_model_take_no_old_record() -> None:
    job = plan().job("prefix")
    others = [
        Inputs(base="c", data={"train": "t"}, evaluate=("e",), num_rows=(9,)),
        Inputs(base="b", data={"train": "u"}, evaluate=("e",), num_rows=(9,)),
        Inputs(base="b", data={"train": "t"}, evaluate=("f",), num_rows=(9,)),
    ]
    assert len({INPUTS.key(job), *(x.key(job) for x in others)}) == 4


ENSEMBLE = ("[systems.prefix]", "[[ensembles]]\nsystem = 'prefix'\n[systems.prefix]")


def test_an_ensemble_waits_for_all_seeds_of_its_subsample() -> None:
    made = plan(ENSEMBLE)
    [first, *_] = [x for x in made.cells if x.member is not None and x.limit == 20]
    rates = {"lr": 0.02, "head_lr": 0.005}
    jobs = made.finals(first, rates)
    assert [(x.draw, x.seed, [m.seed for m in x.members]) for x in jobs] == [(4, None, [1, 2]), (5, None, [1, 2])]
    assert {m.draw for m in jobs[0].members} == {4}
    assert (jobs[0].owner, jobs[0].system) == ("prefix", "prefix, ensemble of 2 (geometric)")
    searched = losses(x0_01=3.0, x0_02=2.0, x0_04=2.5)
    done = {x.plan for x in jobs[0].members}

    def find(job: Job) -> Mapping[str, Any] | None:
        return {"scores": {}} if job.plan in done else searched(job)

    assert [x.plan for x in made.ready(find) if x.members] == [jobs[0].plan]
    done = {jobs[0].members[0].plan, jobs[1].members[1].plan}
    assert [x for x in made.ready(find) if x.members] == []
    assert len({INPUTS.key(x) for x in [*jobs, *jobs[0].members]}) == 4


def test_an_ensemble_leaves_the_names_of_all_other_jobs() -> None:
    def keys(made: Plan) -> set[str]:
        return {INPUTS.key(x) for x in made.expected(nothing) if not x.members}

    assert keys(plan(ENSEMBLE)) == keys(plan())


def test_systems_are_scored_by_the_evaluations_that_name_them() -> None:
    made = plan(("limit = 9", "limit = 9\n[[evaluate]]\nsystems = ['bare']\nlimit = 3"))
    assert made.scored == {"prefix": (0,), "prompt": (0,), "bare": (0, 1)}
    assert [x.limit for x in made.job("bare").evaluations] == [9, 3]
    # What others are scored on too is none of a job's business.
    assert made.job("prefix").plan == plan().job("prefix").plan
    more = Inputs(base="b", data={"train": "t"}, evaluate=("e", "f"), num_rows=(9, 3))
    assert more.key(made.job("prefix")) == INPUTS.key(plan().job("prefix"))
    assert more.key(made.job("bare")) != INPUTS.key(plan().job("bare"))


def test_seconds_are_steps_once_a_pace_is_known() -> None:
    spec = plan(("steps = 30", "seconds = 60")).spec
    made = Plan(spec, {"prefix": 40, "prompt": 90})
    assert {(x.system, x.recipe.training.steps) for cell in made.cells for x in cell.searches} == {
        ("prefix", 40),
        ("prompt", 90),
    }


def test_a_search_needs_something_to_choose_by() -> None:
    check_search(plan(), has_dev=True, metrics=())
    with pytest.raises(BadValue, match="there are no development rows to choose a learning rate by"):
        check_search(plan(), has_dev=False, metrics=())
    with pytest.raises(BadValue, match=r"search.metric: got 'blue', expected one of loss, bleu"):
        check_search(plan(("factors", 'metric = "blue"\nfactors')), has_dev=True, metrics=("bleu",))
    check_search(plan(("[0.5, 1, 2]", "[1]"), ("lrs = [0.1, 0.2, 0.4]", "")), has_dev=False, metrics=())
