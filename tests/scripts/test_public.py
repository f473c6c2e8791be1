"""What `import philab` offers is there."""

import runpy
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "scripts" / "_public" / "philab.py"
PUBLIC = runpy.run_path(str(FILE))


@pytest.mark.parametrize("name", PUBLIC["__all__"])
def test_every_name_leads_to_something_that_explains_itself(name: str):
    found = PUBLIC["__getattr__"](name)
    assert found.__doc__
    assert found.__name__.rpartition(".")[2] == name


def test_another_name_is_refused_with_those_there_are():
    assert PUBLIC["__dir__"]() == PUBLIC["__all__"]
    with pytest.raises(AttributeError, match=r"has no 'no_such_thing'; it offers: AblationSpec, "):
        PUBLIC["__getattr__"]("no_such_thing")
