"""The zeros in the written file, for graphs in which weights are renamed, folded and merged."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from sparseticket.errors import RunFailure
from sparseticket.export import graph, layers, places


@pytest.fixture(scope="module")
def written(awkward, tmp_path_factory):
    program = graph.trace(awkward, 20)
    holders = places.find_weights(program, awkward)
    expected = places.expected_zeros(program, awkward.module, holders)
    file = tmp_path_factory.mktemp("awkward") / "model.onnx"
    graph.write(program, file)
    return file, holders, expected


def test_every_layer_is_found_and_its_zeros_are_those_of_the_model(written):
    file, holders, expected = written
    counted = layers.recount(file, holders, expected)
    by_name = {layer.name: layer.sparsity for layer in counted}
    assert by_name == {"stem": 2 / 8, "dead_1": 1.0, "dead_2": 1.0, "halved": 0.5, "head": 0.0}


@pytest.mark.parametrize("layer", ["stem", "halved", "head"])
def test_one_zero_more_in_the_file_is_noticed_and_the_layer_named(written, layer, tmp_path):
    file, holders, expected = written
    model = onnx.load(file)
    tensor = next(one for one in model.graph.initializer if one.name == holders[layer].initializer)
    array = numpy_helper.to_array(tensor).copy()
    array[np.unravel_index(np.flatnonzero(array)[0], array.shape)] = 0.0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "tampered.onnx")
    with pytest.raises(RunFailure, match=f"^{layer} has"):
        layers.recount(tmp_path / "tampered.onnx", holders, expected)


def test_a_weight_that_is_not_in_the_graph_is_a_failure_unless_no_answer_depends_on_it(awkward):
    program = graph.trace(awkward, 20)
    more = replace(awkward, module=copy.deepcopy(awkward.module))
    more.module.unused = nn.Linear(5, 3)
    more.module.dropped = nn.Linear(8, 7)
    more.module.halved.register_forward_hook(lambda _, given, answer: (more.module.dropped(*given), answer)[1])
    assert not places.find_weights(program, more).keys() & {"unused", "dropped"}
    more.module.stem = nn.Sequential(more.module.stem, nn.Conv2d(8, 8, 1))
    with pytest.raises(RunFailure, match=r"weight of stem\."):
        places.find_weights(program, more)


def test_zeros_of_a_file_are_counted_without_its_model(written):
    assert sum(layer.zeros for layer in layers.file_layers(written[0])) >= 2 * 27 + 24
