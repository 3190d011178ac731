"""The smallest growth plans: their head, and the network of their nodes."""

MODEL = "{ d_model = 8, d_kv = 4, d_ff = 16, num_heads = 2, num_layers = 1, num_decoder_layers = 1 }"
HEAD = """
steps_per_dispatch = 5
[data]
text = ["text.txt"]
vocab = 300
validation_share = 0.2
validation_batches = 2
[defaults]
batch = 4
length = 16
optimizer = { name = "adafactor", rate = 0.02 }
cadence = { log = 5, evaluate = 10, checkpoint = 10 }
"""
