"""A trained student as a folder of files: weights, a `torch.export` program, ONNX, preprocessing facts, a model card.

Every file is loaded again and compared with the student on real images of the data set before the folder gets its name. Needs
the packages of the extra `export`; they are imported when something is exported, not before.
"""

from stillhouse.export.export import FILES, MAY_WRITE, Student, export_student
from stillhouse.export.folder import check_target
from stillhouse.export.onnx import require_packages

__all__ = ["FILES", "MAY_WRITE", "Student", "check_target", "export_student", "require_packages"]
