"""What learns and what teaches: DeiT and CaiT, the zoo, any checkpoint as a student, any classifier as a teacher."""

from . import zoo  # noqa: F401 (transformers' Auto classes learn of CaiT)
