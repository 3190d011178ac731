"""The records of all decoder-only networks."""

from __future__ import annotations

from fusion_core.models.decoder import files, gemma2, gpt2, gpt_neox, llama, mistral, phi3, qwen2, qwen3
from fusion_core.models.decoder.record import decoder

LLAMA = decoder(files.LLAMA, llama.arrays, llama.run)
QWEN2 = decoder(qwen2.SPELLING, qwen2.arrays, llama.run)
GPT2 = decoder(
    files.GPT2,
    gpt2.arrays,
    gpt2.run,
    "n_embd",
    "transformer.wte.weight",
    norm=gpt2.norm_kind,
    stacks=gpt2.stacks,
    tied=gpt2.tied,
    ratio=("n_embd", "n_head", "all heads of a GPT-2 are equally wide"),
    longest=lambda config: config.n_positions,
)
DECODERS = (LLAMA, QWEN2, GPT2, mistral.RECORD, qwen3.RECORD, gemma2.RECORD, phi3.RECORD, gpt_neox.RECORD)
