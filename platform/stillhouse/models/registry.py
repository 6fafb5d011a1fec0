"""Models by name: shipped ones, torchvision's, timm's, and user-defined functions."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from stillhouse.errors import (
    Problem,
    StillhouseError,
    UnknownNameError,
    UsageError,
    describe_error,
    did_you_mean,
    shorten,
    suggestion,
)
from stillhouse.models import (
    bilstm,
    cnn,
    faster_rcnn,
    gan,
    ghost,
    ghost_cifar,
    hf_models,
    lenet,
    mlp,
    mobilenet_v2,
    nin,
    resnet,
    shufflenet_v1,
    shufflenet_v2,
    text_cnn,
    text_transformer,
    timm_models,
    torchvision_detectors,
    torchvision_models,
    vgg,
    vit,
    wide_resnet,
)
from stillhouse.models.architecture import describe
from stillhouse.models.layer_limit import TooManyLayersError, bounded_building, check_layers
from stillhouse.models.layers import Shape
from stillhouse.models.options import CHOICES, broken_rule
from stillhouse.user_code import OTHER_MODELS, check_origin, import_user_module, is_of_library, user_code

Builder = Callable[..., nn.Module]

_FAMILIES = (
    mlp,
    lenet,
    cnn,
    nin,
    resnet,
    wide_resnet,
    vgg,
    mobilenet_v2,
    shufflenet_v1,
    shufflenet_v2,
    vit,
    ghost,
    ghost_cifar,
)
_OTHER_FAMILIES = (gan, faster_rcnn)
"""Of networks that do not classify images."""
_TEXT_FAMILIES = (text_cnn, bilstm, text_transformer)
_SHIPPED: dict[str, Builder] = {
    name: builder for family in (*_FAMILIES, *_OTHER_FAMILIES, *_TEXT_FAMILIES) for name, builder in family.MODELS.items()
}
_READ_TEXTS = frozenset(name for family in _TEXT_FAMILIES for name in family.MODELS)
_TORCHVISION, _TIMM, _HF = "torchvision", "timm", "hf"
_GIVEN = ("num_classes", "input_shape")


def model_names() -> list[str]:
    """The names of the shipped models that classify images, family by family."""
    return [name for family in _FAMILIES for name in family.MODELS]


def all_model_names() -> list[str]:
    """The names of all shipped models: those of `model_names`, then those of other tasks."""
    return list(_SHIPPED)


def usual_shape(model: str) -> Shape:
    """The shape of samples for which the model's size is shown where there is no data set: an image of CIFAR, or 64 tokens."""
    return (64,) if _reads_texts(model) else (3, 32, 32)


def _reads_texts(model: str) -> bool:
    return model in _READ_TEXTS or model.partition(":")[0] == _HF


def brings_weights(model: str) -> bool:
    """Whether the model may have weights of its own before any training: a user-defined one, or one from a folder."""
    return is_user_defined(model) or model.partition(":")[0] == _HF


def model_options(model: str) -> dict[str, Any]:
    """The options of `model` with their defaults, `inspect.Parameter.empty` for one without a default.

    Raises:
        UsageError: there is no such model.
    """
    return {name: item.default for name, item in _parameters(_builder(model)).items() if item.kind is not item.VAR_KEYWORD}


def build_model(model: str, *, num_classes: int, input_shape: Shape, **options: Any) -> nn.Module:
    """A model with new weights from torch's global generator, which the caller seeds; its `forward` returns logits.

    Args:
        model: a shipped name, `torchvision:<name>` (or the bare name if no shipped model has it), `timm:<name>`, or
            `package.module:function` for a user-defined one, called with `num_classes`, `input_shape` and the options.
        num_classes: number of logits.
        input_shape: (channels, height, width).
        options: those of `model_options(model)`.

    Raises:
        UsageError: there is no such model, an option is unknown or breaks its rule, or the model cannot be built or has
            more than `MAX_LAYERS` layers.
    """
    builder = _builder(model)
    problems = _option_problems(model, builder, options)
    if problems:
        raise UsageError("; ".join(map(str, problems)))
    _check_samples(model, builder, input_shape)
    try:
        with user_code(), bounded_building(model):
            built = builder(num_classes=num_classes, input_shape=input_shape, **options)
    except StillhouseError:
        raise
    except Exception as error:
        raise UsageError(f"{model} cannot be built for {_images(input_shape)}: {describe_error(error)}") from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"{model} must return a torch.nn.Module, got {type(built).__name__}")
    check_layers(model, built)
    return built


def sketch_model(model: str, *, num_classes: int, input_shape: Shape, **options: Any) -> nn.Module:
    """The model without storage, on the meta device; a user-defined model that cannot be built there is built on the CPU.

    torch's global generator does not change.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build_model(model, num_classes=num_classes, input_shape=input_shape, **options)
        except TooManyLayersError:
            raise
        except UsageError:
            return build_model(model, num_classes=num_classes, input_shape=input_shape, **options)


def model_problems(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> list[Problem]:
    """Everything that is wrong with this model for these images; [] when it can be built and run.

    The key of a problem is an option, or "" for the model as a whole.
    """
    try:
        builder = _builder(model)
        if problems := _option_problems(model, builder, options):
            return problems
        sketch = sketch_model(model, num_classes=num_classes, input_shape=input_shape, **options)
    except UsageError as error:
        return [Problem("", str(error))]
    try:
        with user_code():
            architecture = describe(sketch, name=model, input_shape=input_shape)
    except Exception as error:
        return [Problem("", f"{model} does not accept {_images(input_shape)}: {describe_error(error)}")]
    if architecture.num_classes != num_classes:
        rule = f"{model} must return {num_classes} numbers for each image, one for each class or target"
        return [Problem("", rule, str(architecture.num_classes))]
    return [
        Problem("", f"{model} names '{layer}' as a useful layer, but has no layer of that name")
        for layer in (*architecture.stages, *([architecture.pooled] if architecture.pooled else ()))
        if layer not in architecture.shapes
    ]


def unknown_options(model: str, options: Collection[str]) -> list[Problem]:
    """One problem for each option that the model does not have; a user-defined function with `**options` has all of them.

    Raises:
        UsageError: there is no such model.
    """
    builder = _builder(model)
    return [_unknown_option(model, builder, option) for option in options if not _takes(builder, option)]


def choices_of(model: str) -> dict[str, tuple[Any, ...]]:
    """The options of a shipped model that have few values, with those values besides the default."""
    if model not in _SHIPPED:
        return {}
    defaults = model_options(model)
    return {name: tuple(each for each in CHOICES[name] if each != defaults[name]) for name in defaults if name in CHOICES}


def with_data_options(model: str, options: Mapping[str, Any], data_options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, and those of `data_options` that the model has and `options` does not name.

    Args:
        data_options: what every model of a data set is built with, such as the number of tokens.

    Raises:
        UsageError: there is no such model.
    """
    known = _parameters(_builder(model)) if data_options else {}
    return {**options, **{name: value for name, value in data_options.items() if name in known and name not in options}}


def is_user_defined(model: str) -> bool:
    """Whether the model is a user's `package.module:function`."""
    return ":" in model and not is_of_library(model)


def _builder(model: str) -> Builder:
    if model in _SHIPPED:
        return _SHIPPED[model]
    prefix, colon, rest = model.partition(":")
    if is_user_defined(model):
        return _imported(model, prefix, rest)
    if colon and prefix == _TIMM:
        return partial(timm_models.build_timm, timm_models.timm_name(rest))
    if colon and prefix == _HF:
        return partial(hf_models.build_hf, hf_models.hf_folder(rest))
    name = rest if colon else model
    known = torchvision_models.torchvision_names()
    if name in known:
        return partial(torchvision_models.build_torchvision, name)
    if name in torchvision_detectors.NAMES:
        return partial(torchvision_detectors.build_torchvision_detector, name)
    if colon:
        raise UsageError(f"torchvision has no model '{name}'{did_you_mean(name, [*known, *torchvision_detectors.NAMES])}")
    hint = did_you_mean(model, _SHIPPED)
    raise UnknownNameError(f"no model '{model}'{hint}; or {OTHER_MODELS}")


def _imported(model: str, module_name: str, function_name: str) -> Builder:
    module = import_user_module(module_name, f"model '{model}'")
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UsageError(f"module '{module_name}' has no function '{function_name}'{did_you_mean(function_name, functions)}")
    check_origin(function, f"model '{model}'")
    builder: Builder = function
    return builder


def _parameters(builder: Builder) -> dict[str, inspect.Parameter]:
    """A builder's parameters besides `num_classes` and `input_shape`, by name."""
    parameters = inspect.signature(builder).parameters
    return {name: item for name, item in parameters.items() if name not in _GIVEN and item.kind is not item.VAR_POSITIONAL}


def _takes(builder: Builder, option: str) -> bool:
    parameters = _parameters(builder)
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    return takes_any or option in parameters


def _unknown_option(model: str, builder: Builder, option: str) -> Problem:
    return Problem(option, f"is not an option of {model}", remedy=suggestion(option, _parameters(builder)))


def _option_problems(model: str, builder: Builder, options: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for option, value in options.items():
        if not _takes(builder, option):
            problems.append(_unknown_option(model, builder, option))
        elif (rule := _broken_rule(builder, option, value)) is not None:
            problems.append(Problem(option, rule, shorten(repr(value))))
    for option, item in sorted(_parameters(builder).items()):
        required = item.default is inspect.Parameter.empty and item.kind is not item.VAR_KEYWORD
        if required and option not in options:
            problems.append(Problem(option, f"is an option that {model} requires; give it a value"))
    return problems


def _broken_rule(builder: Builder, option: str, value: Any) -> str | None:
    """The rules are those of the shipped models and those of libraries: a user-defined `width` may mean something else."""
    ours = builder in _SHIPPED.values() or isinstance(builder, partial)
    return broken_rule(option, value) if ours else None


def _check_samples(model: str, builder: Builder, input_shape: Shape) -> None:
    """Checks that a shipped or a library's model reads such samples: images of three dimensions, or texts of one.

    Raises:
        UsageError: it does not.
    """
    if _reads_texts(model):
        wanted, reads, given = 1, "texts", "images"
    elif builder in _SHIPPED.values() or isinstance(builder, partial):
        wanted, reads, given = 3, "images", "texts"
    else:
        return
    if len(input_shape) != wanted:
        raise UsageError(f"{model} reads {reads}, and the samples of this data set are {given}; choose another model")


def _images(input_shape: Shape) -> str:
    return f"{'x'.join(map(str, input_shape))} images" if len(input_shape) == 3 else f"samples of {list(input_shape)}"
