"""What a training step costs, counted from the shapes."""

from fusion_core.t5.config import T5Config


def step_flops(config: T5Config, batch: int, source: int, target: int) -> float:
    """Floating-point operations of one training step: matrix products, forward and backward.

    A product of [m, n] and [n, p] counts 2·m·n·p; the backward pass costs twice the forward one. Embedding look-ups,
    norms, softmax and the optimizer are left out (under 5 % at every size that we train).

    Args:
      batch: sequences in the global batch.
      source, target: their lengths in tokens.
    """
    d, inner, v = config.d_model, config.inner_dim, config.vocab_size
    ff = (3 if config.gated else 2) * d * config.d_ff
    encoder = source * (4 * d * inner + ff) + 2 * source * source * inner
    decoder = target * (4 * d * inner + ff) + 2 * target * target * inner
    cross = target * 2 * d * inner + source * 2 * d * inner + 2 * target * source * inner
    forward = config.num_layers * encoder + config.num_decoder_layers * (decoder + cross) + target * d * v
    return 3.0 * 2.0 * batch * forward
