"""Every format becomes the masks that a slow rasterisation of its shapes gives, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from datasets import folder
from tests.support.annotators import LABELS, WRITERS, expected, random_shape
from tests.support.prepare import NO_WORKERS, memory_folder, read
from tools.prepare.formats import FORMATS
from tools.prepare_folder import main


def test_every_format_of_shapes_has_a_writer_here() -> None:
    assert WRITERS.keys() | {"cityscapes"} == FORMATS.keys()


@pytest.mark.parametrize("name", WRITERS)
@settings(
    max_examples=4,
    phases=(Phase.generate,),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_random_shapes_become_the_masks_of_the_slow_rule(name: str, seed: int) -> None:
    write, kinds = WRITERS[name]
    rng = np.random.default_rng(seed)
    drawings = {
        f"i{number}": [
            random_shape(rng, kinds[int(rng.integers(len(kinds)))]) for _ in range(rng.integers(4))
        ]
        for number in range(5)
    }
    drawings["all"] = [random_shape(rng, kind) for kind in kinds]
    with memory_folder() as place:
        arguments = write(Path(place), drawings)
        output = Path(place) / "out"
        assert main([*arguments, "--output", str(output), "--classes", *LABELS, *NO_WORKERS]) == 0
        assert folder.open_split(output, "train").classes == ("background", *LABELS)
        prefix = "ds_" if name == "supervisely" else ""
        for stem, shapes in drawings.items():
            np.testing.assert_array_equal(read(output, prefix + stem), expected(shapes), err_msg=stem)
