"""What Ray says of dead machines is a message; what it says of code is a bug."""

import pytest
from ray.exceptions import NodeDiedError, RayTaskError

from pipeline.cluster import named_deaths
from pipeline.errors import InfinegError


def test_death_of_a_node_tells_how_to_go_on() -> None:
    with pytest.raises(InfinegError, match=r"again: it resumes\. Ray says: node-7"), named_deaths():
        raise NodeDiedError("node-7 is gone")


def test_error_in_the_code_of_a_task_stays_what_it_is() -> None:
    bug = RayTaskError("build", "Traceback", ZeroDivisionError())
    with pytest.raises(RayTaskError) as caught, named_deaths():
        raise bug
    assert caught.value is bug
