import base64
import io

import torch
from PIL import Image

from stillhouse.tasks._detection_pictures import picture, real, surely, words
from stillhouse.tasks.detection import Detection
from stillhouse.tasks.task import SplitOutputs
from stillhouse.testing.grounds.detection import data


def _opened(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB")


def test_boxes_are_drawn_where_they_are_in_the_colour_of_their_class() -> None:
    images = torch.zeros(2, 3, 80, 100, dtype=torch.uint8)
    drawn = _opened(picture(images, [torch.tensor([[10.0, 20, 30, 40, 0], [50, 20, 60, 40, 1]]), torch.zeros(0, 5)]))
    assert drawn.size == (2 * 200 + 4, 160)
    # Twice as large: the left upper corners are at (20, 40) and (100, 40).
    assert drawn.getpixel((20, 40)) == (0xE6, 0x9F, 0x00)
    assert drawn.getpixel((100, 40)) == (0x56, 0xB4, 0xE9)
    assert drawn.getpixel((40, 60)) == drawn.getpixel((300, 60)) == (0, 0, 0)


def test_unsure_detections_and_rows_without_a_box_are_not_drawn() -> None:
    found = torch.tensor([[[0.0, 0, 4, 4, 0.9, 1], [0, 0, 4, 4, 0.4, 0], [0, 0, 0, 0, 0, -1]]])
    assert [each.tolist() for each in surely(found)] == [[[0, 0, 4, 4, 1]]]
    assert [each.tolist() for each in real(torch.tensor([[[0.0, 0, 4, 4, 1], [0, 0, 0, 0, -1]]]))] == [[[0, 0, 4, 4, 1]]]


def test_the_words_count_the_boxes() -> None:
    boxes = [torch.tensor([[0.0, 0, 4, 4, 1], [0, 0, 4, 4, 0]]), torch.tensor([[0.0, 0, 4, 4, 1]])]
    assert words("the true boxes", boxes, ("red", "white")) == "2 test images with the true boxes: 1 red, 2 white"
    assert words("the boxes", [torch.zeros(0, 5)], ()) == "1 test images with the boxes: none"


def test_the_page_has_one_picture_of_the_truth_the_teacher_and_the_student() -> None:
    split = data()
    outputs = SplitOutputs(outputs={"detections": torch.zeros(8, 100, 6)}, targets=split.test.labels)
    made = Detection().pictures(split, outputs, outputs)
    assert [what for what, _, _ in made] == ["truth", "teacher", "student"]
    assert _opened(made[0][1]).height == 160
    assert made[2][2] == "4 test images with the boxes that the student finds: none"
    assert len(Detection().pictures(split, outputs, None)) == 2
