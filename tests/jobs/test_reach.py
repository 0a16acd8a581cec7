"""Settings inside of a job's keys, laid over its merged layers."""

from goan_cli.documents import Document
from goan_cli.jobs.reach import Miss, reach_inside, whole_and_inside
from goan_cli.jobs.schema import JobSpec

SETTINGS = Document(data={}, file=None)
NONE: frozenset[str] = frozenset()


def test_whole_and_inside() -> None:
    """Keys with dots are told from whole ones, each kind in its order."""
    whole, inside = whole_and_inside(Document(data={"loras.0.weight": 1, "steps": 2, "output.crf": 3}, file=None))
    assert whole.data == {"steps": 2}
    assert list(inside.items()) == [("loras.0.weight", 1), ("output.crf", 3)]
    assert whole_and_inside(Document(data=None, file=None)) == (Document(data=None, file=None), {})


def test_settings_of_one_key_are_checked_together() -> None:
    """Two settings can give what a key needs, and only what is set counts as said."""
    inside = {"guidance_schedule.shape": "linear", "guidance_schedule.end": 2}
    reached = reach_inside(JobSpec(), inside, SETTINGS, flawed=NONE)
    assert reached.problems == ()
    assert reached.spec.model_dump(exclude_unset=True) == {"guidance_schedule": {"shape": "linear", "end": 2}}
    assert reached.places == (("guidance_schedule", "shape"), ("guidance_schedule", "end"))


def test_one_wrong_key_stops_no_other() -> None:
    """A key with a wrong setting stays as it was and is flawed; the others are set."""
    spec = JobSpec.model_validate({"loras": ["a"], "output": {"crf": 20}, "gates": {"nan": "warn"}})
    inside = {"loras.0.weight": 9, "loras.0.trusted": True, "gates.nan.0": "off", "output.crf": 30}
    reached = reach_inside(spec, inside, SETTINGS, flawed=NONE)
    assert [problem.key for problem in reached.problems] == ["loras[0].weight"]
    path = ("gates", "nan", 0)
    assert reached.misses == (Miss(path=path, message="gates.nan is 'warn', which has nothing inside"),)
    assert reached.flawed == {"loras", "gates"}
    assert reached.spec == spec.model_copy(update={"output": reached.spec.output})
    assert reached.spec.output is not None
    assert reached.spec.output.crf == 30


def test_wrong_keys_are_left_alone() -> None:
    """What was wrong already is not counted or checked again; a key that no job has is told nevertheless."""
    inside = {"loras.3.weight": 1, "stpes.x": 1}
    reached = reach_inside(JobSpec(), inside, SETTINGS, flawed=frozenset({"loras", "stpes"}))
    assert reached.misses == ()
    assert [(problem.key, problem.hint) for problem in reached.problems] == [("stpes", "did you mean steps?")]
