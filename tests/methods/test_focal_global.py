import math

import pytest
import torch

from stillhouse.methods.focal_global import FocalGlobal, Relation, attentions, place_weights
from stillhouse.testing import suiting_trial


def test_attentions_by_hand() -> None:
    # Two channels on two places; T = 1. Means over channels 1 and 2, over places 2 and 1.
    maps = torch.tensor([[[[0.0, 4.0]], [[2.0, 0.0]]]])
    places, channels = attentions(maps, 1.0)
    first = 1 / (1 + math.e)
    torch.testing.assert_close(places, 2 * torch.tensor([[[first, 1 - first]]]))
    torch.testing.assert_close(channels, 2 * torch.tensor([[1 - first, first]]))


def test_the_temperature_sharpens_attention() -> None:
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    soft, sharp = attentions(maps, 1.0)[0], attentions(maps, 0.1)[0]
    torch.testing.assert_close(soft.mean((1, 2)), torch.ones(2))
    assert bool((sharp.amax((1, 2)) > soft.amax((1, 2))).all())


def test_places_are_weighted_by_the_smallest_box_that_covers_them() -> None:
    # A map of 4 x 4 places of 8 pixels. The first box covers places 0..2 in both directions (its end is included, as in the
    # authors' code), 9 of them; the second one places 2..3 of the first two rows.
    targets = torch.tensor([[[0.0, 0, 16, 16, 0], [16, 0, 24, 8, 1], [0, 0, 0, 0, -1]]])
    objects, background = place_weights(targets, (32, 32), (4, 4))
    ninth, quarter = 1 / 9, 1 / 4
    expected = [[ninth, ninth, quarter, quarter], [ninth, ninth, quarter, quarter], [ninth, ninth, ninth, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(objects[0], torch.tensor(expected))
    torch.testing.assert_close(background[0], (torch.tensor(expected) == 0) / 5)


def test_an_image_without_a_box_is_background() -> None:
    objects, background = place_weights(torch.tensor([[[0.0, 0, 0, 0, -1]]]), (32, 32), (2, 2))
    assert objects.sum().item() == 0
    assert background[0].tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_a_new_relation_changes_nothing() -> None:
    maps = torch.rand(2, 6, 3, 4)
    assert torch.equal(Relation(6)(maps), maps)


def test_the_terms_of_a_map_by_hand() -> None:
    """Maps of one channel and two places with equal attention, of which a box covers the first."""
    method = FocalGlobal(temperature=1.0)
    theirs, ours = torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, 2.0]]]])
    targets = torch.tensor([[[0.0, 0, 3, 4, 0]]])  # of an image of 4 x 8 pixels: columns 0..1, all places
    objects, background, _ = method._focal(ours, theirs, targets, (4, 8))
    # The box covers columns floor(0) to ceil(0.75) and rows 0 to 1 of a larger map: 4 places, each of weight 1/4.
    torch.testing.assert_close(objects, torch.tensor((4 + 1) / 4))
    assert background.item() == 0


@pytest.mark.parametrize("weight", ["object_weight", "background_weight", "attention_weight", "global_weight"])
def test_every_term_can_be_switched_off_alone(weight: str) -> None:
    trial = suiting_trial(FocalGlobal(**{weight: 0}))
    trainer = trial.trainer()
    trainer.run_epoch()
    term = {"object_weight": "objects", "background_weight": "background", "attention_weight": "attention"}.get(
        weight, "global"
    )
    assert term not in trainer.curve[-1]
    assert {"objects", "background", "attention", "global"} - {term} <= trainer.curve[-1].keys()


def test_without_any_weight_it_asks_for_nothing() -> None:
    off = dict.fromkeys(("object_weight", "background_weight", "attention_weight", "global_weight"), 0.0)
    assert suiting_trial(FocalGlobal(**off)).knowledge() == {}
