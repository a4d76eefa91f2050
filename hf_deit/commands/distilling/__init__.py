"""The parts of `hf-deit distil`: its options, the images, the teacher, the time, the stages and the README."""
