"""Layers with rounded weights and inputs: phases of their ranges, and their final form."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.parts import rounding
from stillhouse.compress.parts.quantized_layers import (
    MOMENTUM,
    FixedInput,
    InputQuantizer,
    Phase,
    QuantizedLayer,
    WeightQuantizer,
    finalise_layer,
    numbers_of,
    quantized_layer,
    set_phase,
    weight_of,
)


def layer_of(
    *, weight_bits: int = 4, activation_bits: int = 8, learnt: bool = False, train: bool = True
) -> tuple[nn.Conv2d, QuantizedLayer]:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, padding=1)
    quantized = quantized_layer(layer, weight_bits=weight_bits, activation_bits=activation_bits, learnt=learnt, train=train)
    return layer, quantized


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_the_quantized_layer_has_the_weights_themselves() -> None:
    layer, quantized = layer_of()
    assert quantized.weight is layer.weight
    assert quantized.bias is layer.bias


def test_it_computes_the_convolution_of_torchs_fake_quantized_numbers() -> None:
    layer, quantized = layer_of()
    ours = quantized(images())
    scale = layer.weight.detach().abs().flatten(1).amax(1)
    scale = torch.minimum(scale, 7 * rounding.normal_step(15) * layer.weight.detach().square().flatten(1).mean(1).sqrt()) / 7
    weight = torch.fake_quantize_per_channel_affine(layer.weight, scale, torch.zeros(5, dtype=torch.int32), 0, -7, 7)
    low, high = float(images().min()), float(images().max())
    zero_point = round(-low / ((high - low) / 255))
    inputs = torch.fake_quantize_per_tensor_affine(images(), (high - low) / 255, zero_point, 0, 255)
    torch.testing.assert_close(ours, nn.functional.conv2d(inputs, weight, layer.bias, padding=1))


def test_ranges_of_inputs_are_a_running_mean() -> None:
    _, quantized = layer_of()
    quantizer = quantized.input_quantizer
    assert isinstance(quantizer, InputQuantizer)
    quantized(images())
    first = torch.stack([images().min(), images().max()])
    torch.testing.assert_close(quantizer.seen, first)
    quantized(2 * images())
    torch.testing.assert_close(quantizer.seen, first + MOMENTUM * first)


def test_evaluation_changes_no_range() -> None:
    _, quantized = layer_of()
    quantized(images())
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    quantized.eval()(5 * images())
    assert all(torch.equal(value, before[name]) for name, value in quantized.state_dict().items())


@pytest.mark.parametrize("learnt", [False, True])
def test_frozen_ranges_do_not_change_with_inputs_weights_or_steps(learnt: bool) -> None:
    layer, quantized = layer_of(learnt=learnt)
    quantized(images())
    for quantizer in (quantized.weight_quantizer, quantized.input_quantizer):
        assert isinstance(quantizer, WeightQuantizer | InputQuantizer)
        if learnt:
            set_phase(quantizer, Phase.LEARNING)
    quantized(images())
    for quantizer in (quantized.weight_quantizer, quantized.input_quantizer):
        assert isinstance(quantizer, WeightQuantizer | InputQuantizer)
        set_phase(quantizer, Phase.FROZEN)
    weights, inputs = quantized.weight_quantizer, quantized.input_quantizer
    assert isinstance(weights, WeightQuantizer)
    assert isinstance(inputs, InputQuantizer)
    before = [weights.current_scale(layer.weight).clone(), *[end.clone() for end in inputs.current_range()]]
    quantized(3 * images(2))
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.mul_(2)
    after = [weights.current_scale(layer.weight), *inputs.current_range()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_learnt_ranges_begin_as_observed_and_have_gradients_in_every_phase() -> None:
    _, quantized = layer_of(learnt=True)
    quantizer = quantized.input_quantizer
    assert isinstance(quantizer, InputQuantizer)
    for phase in (Phase.OBSERVING, Phase.LEARNING, Phase.FROZEN):
        if phase != Phase.OBSERVING:
            set_phase(quantizer, phase)
        quantized.zero_grad()
        quantized(images()).square().sum().backward()
        assert quantizer.ends.grad is not None
        assert bool((quantizer.ends.grad != 0).any()) == (phase == Phase.LEARNING)
        if phase == Phase.LEARNING:
            torch.testing.assert_close(quantizer.ends.detach(), quantizer.seen)


def test_a_learnt_range_reduces_the_error_of_the_layer() -> None:
    layer, quantized = layer_of(weight_bits=2, activation_bits=2, learnt=True)
    target = layer(images()).detach()
    optimiser = torch.optim.SGD([parameter for name, parameter in quantized.named_parameters() if "quantizer" in name], lr=0.02)
    errors = []
    quantized(images())
    for quantizer in (quantized.weight_quantizer, quantized.input_quantizer):
        assert isinstance(quantizer, WeightQuantizer | InputQuantizer)
        set_phase(quantizer, Phase.LEARNING)
    for _ in range(60):
        error = (quantized(images()) - target).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_final_layer_computes_what_the_trained_one_did(bits: int) -> None:
    _, quantized = layer_of(weight_bits=bits)
    quantized(images())
    quantized.eval()
    before = quantized(images(3)).detach()
    assert finalise_layer(quantized)
    torch.testing.assert_close(quantized(images(3)).detach(), before, rtol=1e-6, atol=1e-6)
    assert isinstance(quantized.input_quantizer, FixedInput)
    levels = 2 ** (bits - 1) - 1
    numbers = quantized.weight / quantized.get_buffer("weight_scale")[:, None, None, None]
    torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-4)
    assert float(numbers.detach().abs().max()) <= levels + 1e-4
    assert not finalise_layer(quantized), "a second time changes nothing"


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_numbers_and_weights_are_the_same_after_a_round_trip(bits: int) -> None:
    scale = torch.tensor([0.1, 3e-5, 0.0, 7.0])
    levels = 2 ** (bits - 1) - 1
    numbers = torch.randint(-levels, levels + 1, (4, 6), generator=torch.Generator().manual_seed(0)).float()
    numbers[2] = 0
    weight = weight_of(numbers, scale, torch.empty(4, 6))
    assert torch.equal(numbers_of(weight, scale, bits), numbers)
    assert torch.equal(weight_of(numbers_of(weight, scale, bits), scale, weight), weight)


def test_a_mask_of_another_operator_stays_with_the_layer() -> None:
    layer = nn.Linear(3, 2)
    layer.register_buffer("mask", torch.tensor([True]))
    quantized = quantized_layer(layer, weight_bits=4, activation_bits=32, learnt=False, train=True)
    assert quantized.get_buffer("mask") is layer.get_buffer("mask")
    assert isinstance(quantized.input_quantizer, nn.Identity)


def test_without_training_the_layer_computes_in_full_precision_until_the_end() -> None:
    layer, quantized = layer_of(weight_bits=2, train=False)
    assert torch.equal(quantized(images()), layer(images()))
    finalise_layer(quantized)
    assert quantized.weight.detach().unique().numel() <= 3 * 5


def test_inputs_of_half_precision_are_rounded_to_the_steps_of_their_range() -> None:
    _, quantized = layer_of()
    quantizer = quantized.input_quantizer
    assert isinstance(quantizer, InputQuantizer)
    inputs = images().bfloat16()
    rounded = quantizer(inputs)
    scale = (inputs.float().max() - inputs.float().min()) / 255
    assert float((rounded - inputs.float()).abs().max()) <= 0.51 * float(scale)
    with torch.autocast("cpu", torch.bfloat16):
        quantized(inputs).float().square().sum().backward()
    assert quantized.weight.grad is not None
    assert bool(quantized.weight.grad.isfinite().all())
