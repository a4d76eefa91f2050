"""A `Preprocessing` in ONNX's standard operators, for images of any size.

ONNX's own Resize is left alone: ONNX Runtime's bilinear one differs from Pillow's by up to 8 levels, OpenVINO's reads
over the antialiasing (24 levels on average on noise), and there is none with Pillow's other filters. Instead each side
is one matrix product with the weights that Pillow or PyTorch gives the pixels: of those alone that the crop shows, so
that a narrow stripe is not blown up to millions of pixels. Black around an image are weights of 0. In ONNX Runtime the
levels are those of the image processor, but for a few where its floats decide; in OpenVINO one in a thousand differs
by 1.
"""

import math
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .preprocessing import Filter, Preprocessing

OPSET = 20
_IR_VERSION = 10  # of ONNX 1.16, which has this opset; older runtimes read no newer one
# How far each of Pillow's filters reaches, in pixels of the larger of both images, rounded up.
_REACH: dict[Filter, int] = {"nearest": 1, "box": 1, "bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3}
_EDGE = 4  # places
_NAME = "preprocessing"


def preprocessing_graph(preprocessing: Preprocessing) -> GraphProto:
    """`images`, uint8 (batch, height, width, 3), RGB, to `prepared`, float32 (batch, 3, height, width)."""
    graph = _Graph()
    value = "images"
    if preprocessing.resize is not None or preprocessing.crop is not None:
        value = _shown(graph, preprocessing)
    else:
        value = graph.add("Cast", graph.add("Transpose", value, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    slope, intercept = preprocessing.slope_and_intercept()
    value = graph.add("Mul", value, graph.array(slope.reshape(1, 3, 1, 1)))
    value = graph.add("Add", value, graph.array(intercept.reshape(1, 3, 1, 1)))
    if preprocessing.channel_order == "BGR":
        value = graph.add("Gather", value, graph.ints([2, 1, 0]), axis=1)
    height, width = preprocessing.input_size
    # Of another size than the model's, which none of the above has changed, it fails here.
    value = graph.add("Reshape", value, graph.ints([0, 3, height, width]))
    graph.nodes.append(helper.make_node("Identity", [value], ["prepared"], name=f"{_NAME}/prepared"))
    return helper.make_graph(
        graph.nodes,
        _NAME,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("prepared", TensorProto.FLOAT, ["batch", 3, height, width])],
        graph.constants,
    )


def preprocessing_model(preprocessing: Preprocessing) -> ModelProto:
    """`preprocessing_graph` as a model of its own."""
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(preprocessing_graph(preprocessing), opset_imports=[opset], ir_version=_IR_VERSION)


class _Graph:
    """Nodes and constants of a graph, with names that are given as they come."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{_NAME}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"{name}_{operator}", **attributes))
        return name

    def array(self, values: np.ndarray) -> str:
        name = f"{_NAME}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def ints(self, values: Any) -> str:
        return self.array(np.asarray(values, dtype=np.int64))

    def float(self, value: float, type: type = np.float64) -> str:
        return self.array(np.asarray(value, dtype=type))

    def twice(self, value: str, plus: int = 0) -> str:
        twice = self.add("Mul", value, self.ints(2))
        return self.add("Add", twice, self.ints(plus)) if plus else twice


def _shown(graph: _Graph, preprocessing: Preprocessing) -> str:
    """The images as they are resized and cropped: float32 (B, 3, height, width), whole levels in [0, 255]."""
    shape = graph.add("Shape", "images", start=1, end=3)
    given = [graph.add("Gather", shape, graph.ints(axis), axis=0) for axis in (0, 1)]
    resized = given
    if preprocessing.resize == "exact":
        resized = [graph.ints(side) for side in preprocessing.size]
    elif preprocessing.resize == "shortest":
        shorter = graph.add("ReduceMin", shape, keepdims=0)
        wanted = graph.ints(preprocessing.size[0])
        resized = [graph.add("Div", graph.add("Mul", side, wanted), shorter) for side in given]
    name = preprocessing.filter if preprocessing.resize is not None else "nearest"
    sides = zip(given, resized, preprocessing.crop or preprocessing.size, strict=True)
    parts = [_weights(graph, *side, name, preprocessing) for side in sides]
    begin, end = (
        graph.add("Concat", *(graph.add("Unsqueeze", part[bound], graph.ints([0])) for part in parts), axis=0)
        for bound in (1, 2)
    )
    value = graph.add("Slice", "images", begin, end, graph.ints([1, 2]))
    value = graph.add("Cast", graph.add("Transpose", value, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    # As Pillow: the width, then the height, each rounded to a level.
    value = _levels(graph, graph.add("MatMul", value, parts[1][0]))
    return _levels(graph, graph.add("MatMul", graph.add("Transpose", parts[0][0], perm=[1, 0]), value))


def _levels(graph: _Graph, value: str) -> str:
    """Rounded as Pillow does."""
    value = _nearest_integer(graph, value, np.float32)
    return graph.add("Clip", value, graph.float(0.0, np.float32), graph.float(255.0, np.float32))


def _weights(
    graph: _Graph, given: str, resized: str, crop: int, name: Filter, preprocessing: Preprocessing
) -> tuple[str, str, str]:
    """The weights of a side's pixels in what is shown of it: float32 (P, crop); and the first of the P and what
    follows their last, in pixels of the image.

    Places are counted from the middle, where the crop is, in halves of a pixel: so their products fit into 32 bits,
    of which OpenVINO makes its integers. None that is divided is negative, as runtimes round these differently.
    """
    start = _crop_start(graph, resized, crop, preprocessing)
    scale = resized if name == "nearest" else graph.add("Max", given, resized)
    reach = graph.add("Mul", scale, graph.ints(2 * _REACH[name]))
    first = graph.add("Max", start, graph.ints(0))
    last = graph.add("Sub", graph.add("Min", graph.add("Add", start, graph.ints(crop)), resized), graph.ints(1))
    first, last = (graph.add("Mul", graph.add("Sub", graph.twice(at, 1), resized), given) for at in (first, last))
    before = graph.add("Max", graph.add("Sub", reach, first), graph.ints(0))
    after = graph.add("Max", graph.add("Add", reach, last), graph.ints(0))
    before, after = (
        graph.add("Add", graph.add("Div", side, graph.twice(resized)), graph.ints(1)) for side in (before, after)
    )
    half = graph.add("Div", given, graph.ints(2))
    begin = graph.add("Max", graph.add("Sub", half, before), graph.ints(0))
    end = graph.add("Min", graph.add("Add", graph.add("Sub", given, half), after), given)

    places = graph.add("Add", graph.ints(np.arange(crop)), start)  # in the resized image
    pixels = graph.add("Range", begin, end, graph.ints(1))
    middles = (
        graph.add("Mul", graph.add("Sub", graph.twice(at, 1), side), factor)
        for at, side, factor in ((pixels, given, resized), (places, resized, given))
    )
    is_inside = graph.add(
        "And", graph.add("GreaterOrEqual", places, graph.ints(0)), graph.add("Less", places, resized)
    )
    weights = _normalised(graph, *middles, scale, is_inside, name)
    if name == "nearest":
        return graph.add("Cast", weights, to=TensorProto.FLOAT), begin, end
    if not preprocessing.has_short_weights:
        one = graph.float(2.0**22)
    else:
        # The largest weights are at an edge, which may lie outside the crop; both edges have the same.
        edge = np.arange(_EDGE)
        end_of_edge = graph.add("Add", graph.add("Mul", given, graph.ints(2 * _EDGE)), reach)
        end_of_edge = graph.add("Min", graph.add("Div", end_of_edge, graph.twice(resized)), given)
        pixels = graph.add("Range", graph.ints(0), end_of_edge, graph.ints(1))
        middles = graph.add("Mul", graph.twice(pixels, 1), resized), graph.add("Mul", graph.ints(2 * edge + 1), given)
        edges = _normalised(graph, *middles, scale, graph.add("Less", graph.ints(edge), resized), name)
        one = _finest(graph, weights, edges)
    weights = graph.add("Div", _nearest_integer(graph, graph.add("Mul", weights, one)), one)
    return graph.add("Cast", weights, to=TensorProto.FLOAT), begin, end


def _normalised(graph: _Graph, pixels: str, places: str, scale: str, is_inside: str, name: Filter) -> str:
    """Weights float64 (P, places), of sum 1, or 0 of places outside; middles are in units of 1 / (2 · scale)."""
    weights = _filter(graph, graph.add("Sub", graph.add("Unsqueeze", pixels, graph.ints([1])), places), scale, name)
    total = graph.add("ReduceSum", weights, graph.ints([0]), keepdims=0)
    total = graph.add("Where", is_inside, total, graph.float(1.0))
    return graph.add("Mul", weights, graph.add("Div", graph.add("Cast", is_inside, to=TensorProto.DOUBLE), total))


def _finest(graph: _Graph, *weights: str) -> str:
    """What makes 1 in weights of 16 bits, as fine as the largest allows: products with levels are exact in float32."""
    largest = graph.add("Max", *(graph.add("ReduceMax", part, keepdims=0) for part in weights))
    scales = graph.array(np.exp2(np.arange(23.0)))
    is_fitting = graph.add("Less", _nearest_integer(graph, graph.add("Mul", largest, scales)), graph.float(2.0**15))
    return graph.add("ReduceMax", graph.add("Where", is_fitting, scales, graph.float(1.0)), keepdims=0)


def _nearest_integer(graph: _Graph, value: str, type: type = np.float64) -> str:
    """Halves up."""
    return graph.add("Floor", graph.add("Add", value, graph.float(0.5, type)))


def _crop_start(graph: _Graph, resized: str, crop: int, preprocessing: Preprocessing) -> str:
    """Where the crop of a side begins, in pixels of the resized image; negative where black is added."""
    side, two, none = graph.ints(crop), graph.ints(2), graph.ints(0)
    over = graph.add("Max", graph.add("Sub", resized, side), none)
    missing = graph.add("Max", graph.add("Sub", side, resized), none)
    start = graph.add("Div", over, two)
    if preprocessing.crop_rounding == "down":
        missing = graph.add("Add", missing, graph.ints(1))
    if preprocessing.crop_rounding == "even":
        odd, half_odd = (graph.add("Mod", value, two) for value in (over, start))
        start = graph.add("Add", start, graph.add("Mul", odd, half_odd))
    return graph.add("Sub", start, graph.add("Div", missing, two))


def _filter(graph: _Graph, distance: str, scale: str, name: Filter) -> str:
    """Pillow's filter, before its sum is made 1.

    Args:
        distance: int64 (P, crop), of the middles of two pixels, in units of 1 / (2 · scale).
    """
    if name in ("nearest", "box"):
        above = graph.add("Greater", distance, graph.add("Neg", scale))
        return graph.add(
            "Cast", graph.add("And", above, graph.add("LessOrEqual", distance, scale)), to=TensorProto.DOUBLE
        )
    x = graph.add("Cast", graph.add("Abs", distance), to=TensorProto.DOUBLE)
    x = graph.add("Div", x, graph.add("Cast", graph.twice(scale), to=TensorProto.DOUBLE))
    zero = graph.float(0.0)
    if name == "bilinear":
        return graph.add("Max", graph.add("Sub", graph.float(1.0), x), zero)
    if name == "bicubic":  # a = -0.5
        near, far = _polynomial(graph, x, (1.5, -2.5, 0.0, 1.0)), _polynomial(graph, x, (-0.5, 2.5, -4.0, 2.0))
        far = graph.add("Where", graph.add("Less", x, graph.float(2.0)), far, zero)
        return graph.add("Where", graph.add("Less", x, graph.float(1.0)), near, far)
    if name == "lanczos":
        window = _sinc(graph, graph.add("Div", x, graph.float(3.0)))
    else:
        cosine = graph.add("Cos", graph.add("Mul", x, graph.float(math.pi)))
        window = graph.add("Add", graph.add("Mul", cosine, graph.float(0.46)), graph.float(0.54))
    within = graph.add("Less", x, graph.float(float(_REACH[name])))
    return graph.add("Where", within, graph.add("Mul", _sinc(graph, x), window), zero)


def _polynomial(graph: _Graph, x: str, coefficients: tuple[float, ...]) -> str:
    value = graph.float(coefficients[0])
    for coefficient in coefficients[1:]:
        value = graph.add("Add", graph.add("Mul", value, x), graph.float(coefficient))
    return value


def _sinc(graph: _Graph, x: str) -> str:
    """sin(πx) / (πx), at 0 its limit."""
    angle = graph.add("Max", graph.add("Mul", x, graph.float(math.pi)), graph.float(1e-6))
    return graph.add("Div", graph.add("Sin", angle), angle)
