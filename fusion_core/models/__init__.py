"""Networks: T5, decoders, multi-layer perceptrons, convolutional classifiers."""
